"""What timm's Swin Transformers share: windows, stages, heads, interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_model import TimmModel
from mmpetl.core import (
    FFN,
    Context,
    Partition,
    PETLError,
    Site,
    WindowBackboneHost,
    WindowBlockHost,
    WindowSiteMap,
    numbers,
    without_extra,
)


class TimmSwinBlock(WindowBlockHost):
    """A block of ``attn`` and ``mlp``; maps are rolled first and padded then.

    Windows and shifts are settled when the model is built, or its input size set.
    """

    mlp: Mlp

    def partition(self, grid: tuple[int, ...]) -> Partition:
        return Partition(
            tuple(grid), tuple(self.window_size), tuple(self.shift_size), True
        )

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self) -> FFN:
        mlp = self.mlp
        return FFN.of(mlp.fc1, (mlp.act, mlp.drop1, mlp.norm), mlp.fc2, mlp.drop2)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path1(x) if branch == 1 else self.drop_path2(x)


class TimmSwinBackbone(TimmModel, WindowBackboneHost):
    """Stages that a merging opens, one norm at the end, and a head."""

    opening = True

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        x, ctx = self.embedded(x)
        for index in range(len(self.layers)):
            x = self.run_stage(index, x, ctx)
        return self.ended(x, ctx, True).unflatten(1, ctx.grid)

    @property
    def last(self) -> int:
        """Index of the last stage."""
        return len(self.layers) - 1

    def embedded(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, (B, N, C), and the facts of the pass."""
        embed = self.patch_embed
        x, ctx = self.embed_patches(embed.proj, embed.norm, self.fitted(x))
        ctx.grid = numbers(ctx.grid)
        return self.after('embed', x, x, ctx), ctx

    def run_stage(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        """One stage with the merging that opens it, which moves ``ctx.grid``."""
        stage = self.layers[index]
        if not isinstance(stage.downsample, nn.Identity):
            x = self.merge_patches(index - 1, stage.downsample, x, ctx)
        return self.run_blocks(stage, x, ctx)

    def run_blocks(self, stage: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        for block in stage.blocks:
            block.with_cp = stage.grad_checkpointing
        return super().run_blocks(stage, x, ctx)

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        (h, w), c = grid, x.shape[-1]
        x = x.unflatten(1, grid)
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        h, w = -(-h // 2), -(-w // 2)
        x = x.reshape(-1, h, 2, w, 2, c).permute(0, 1, 3, 4, 2, 5)
        return x.reshape(-1, h * w, 4 * c), (h, w)

    def repeat_four(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, 4)

    def ended(self, x: Tensor, ctx: Context, norm: bool) -> Tensor:
        """What leaves behind the last stage, with or without its norm."""
        return self.emit(x, self.norm if norm else None, ctx, self.last)[1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several stages, as upstream gives them.

        Deltas act and extra tokens do not leave. What a method does at ``out`` it does
        to the output of the last stage.
        """
        if output_fmt != 'NCHW':
            raise PETLError(f'output_fmt is NCHW, got {output_fmt!r}')
        taken, deepest = feature_take_indices(len(self.layers), indices)
        x, ctx = self.embedded(x)
        found, index = [], 0
        for index in range(deepest + 1 if stop_early else len(self.layers)):
            x = self.run_stage(index, x, ctx)
            if index in taken:
                last = index == self.last
                y = self.ended(x, ctx, norm) if last else without_extra(x, ctx)
                found.append(y.mT.unflatten(2, ctx.grid).contiguous())
        if intermediates_only:
            return found
        last = index == self.last
        y = self.ended(x, ctx, True) if last else without_extra(x, ctx)
        return y.unflatten(1, ctx.grid), found

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        window_size: int | Sequence[Any] | None = None,
        window_ratio: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Change windows, shifts and position tables, as upstream does.

        The tables are part of the base from then on, and the sites stand for the new
        windows.

        Raises:
            PETLError: The patch size would change, or a method has deltas of the
                windows, or trains the tables, that would.
        """
        windows = {
            'window_size': window_size,
            'window_ratio': window_ratio,
            'always_partition': always_partition,
        }
        resize = partial(super().set_input_size, img_size, **windows)
        given = any(value is not None for value in windows.values())
        if given or self.moves(img_size):
            self.check_windows_free('set_input_size')
        self.resize_input(img_size, patch_size, resize, given)
        self.renew_sites()


class TimmSwinMap(WindowSiteMap):
    """Site map of such a backbone.

    Attributes:
        merging: Class of the patch mergings.
    """

    merging: type[nn.Module]
    head = ('head.fc',)
    outer_parts = {'patch_embed': (PatchEmbed,), 'patch_embed.proj': (nn.Conv2d,)}
    stages_name = 'layers'
    channels_first = False

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for i, stage in enumerate(backbone.layers):
            classes = (self.merging,) if i else (nn.Identity,)
            self.check_class(f'layers.{i}.downsample', stage.downsample, classes)

    def projection(self, backbone: nn.Module) -> nn.Module:
        return backbone.patch_embed.proj

    def stage_dims(self, stage: nn.Module) -> int:
        return stage.blocks[0].dim

    def block_facts(self, block: nn.Module):
        mlp = block.mlp.fc1.out_features
        window, shift = tuple(block.window_size), tuple(block.shift_size)
        return block.attn.num_heads, mlp, window, shift

    def exits(self, backbone: nn.Module, facts: dict) -> list[Site]:
        if facts['index'] != len(backbone.layers) - 1:
            return []
        n = backbone.num_features
        window = facts.pop('window')
        facts['pooled'] = backbone.head.global_pool.pool_type == 'avg'
        sites = []
        if not isinstance(backbone.norm, nn.Identity):
            sites.append(Site('out.norm', '', n, n, has_grid=True, **facts))
        sites.append(Site('out', '', n, n, window=window, has_grid=True, **facts))
        return sites

    def exit_norms(self, backbone: nn.Module) -> dict[str, nn.Module]:
        return {f'out_norm_{len(backbone.layers) - 1}': backbone.norm}
