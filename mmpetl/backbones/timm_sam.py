"""Sites of timm's VisionTransformerSAM, the image encoder of Segment Anything."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import (
    Mlp,
    PatchEmbed,
    apply_rot_embed_cat,
    resample_abs_pos_embed_nhwc,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer_sam import (
    Attention,
    Block,
    VisionTransformerSAM,
    get_decomposed_rel_pos_bias,
    samvit_base_patch16,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_plain import TimmBlock, TimmPlainMap, TimmTrunk
from mmpetl.core import Context, Partition, PETLError, Site, WindowBlockHost
from mmpetl.registry import BACKBONES


class PETLBlock(WindowBlockHost, TimmBlock, Block):
    """A block that runs sites; where attention is global, the grid is its one window.

    Windows are padded behind the norm, and the padding attends. Stochastic depth of
    attention drops windows, so it lies inside of attention.
    """

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size = self.window_size
        return Partition(tuple(grid), (size, size) if size else tuple(grid), (0, 0))

    def window_terms(
        self, partition: Partition, ctx: Context, device: torch.device
    ) -> dict[str, Any]:
        own = partial(self.relative_bias, partition.window)
        return {'bias': own if self.attn.use_rel_pos else None, 'mask': None}

    def relative_bias(self, window: tuple[int, int], q: Tensor, ctx: Context) -> Tensor:
        """What queries make of the tables of both axes, (B * windows, heads, N, N)."""
        tables = self.attn.rel_pos_h, self.attn.rel_pos_w
        bias = get_decomposed_rel_pos_bias(q.flatten(0, 1), *tables, window, window)
        return bias.unflatten(0, q.shape[:2])

    def norm_heads(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().norm_heads(q, k, v, ctx)
        if self.attn.rope is not None:
            rope = self.attn.rope.get_embed()
            q, k = (self.rotated(t, rope).type_as(v) for t in (q, k))
        return q, k, v

    def rotated(self, t: Tensor, rope: Tensor) -> Tensor:
        """(B * windows, heads, num_prefix + N, d) with its last N tokens turned."""
        own = t.shape[2] - len(rope)
        window = apply_rot_embed_cat(t[:, :, own:], rope)
        return torch.cat((t[:, :, :own], window), dim=2)

    def attend(self, x: Tensor, ctx: Context, **parts: Any) -> Tensor:
        x = super().attend(x, ctx, **parts)
        return self.drop_path1(self.attn.proj_drop(x))

    def drop_projection(self, x: Tensor) -> Tensor:
        return x

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.ls1(x) if branch == 1 else self.drop_path2(self.ls2(x))


class PETLVisionTransformerSAM(TimmTrunk, VisionTransformerSAM):
    """A timm VisionTransformerSAM that runs sites; its neck is part of the base."""

    def forward_features(self, x: Tensor) -> Tensor:
        x, ctx = self.embedded(x)
        for i in range(len(self.blocks)):
            x = self.run_block(i, x, ctx)
        return self.neck(self.as_map(x, ctx, self.last))

    def embedded(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, and the facts of the pass."""
        embed = self.patch_embed
        x, ctx = self.embed_patches(embed.proj, embed.norm, self.fitted(x))
        ctx.grid = tuple(map(int, ctx.grid))
        x = x.unflatten(1, ctx.grid)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(self.pos_embed, x.shape[1:3])
        x = self.norm_pre(self.pos_drop(x)).flatten(1, 2)
        return self.after('embed', x, x, ctx), ctx

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several blocks, as upstream gives them, (B, C, H, W) each.

        Deltas act and extra tokens do not leave. What a method does at ``out`` it does
        to the output of the last block.
        """
        if output_fmt != 'NCHW':
            raise PETLError(f'output_fmt is NCHW, got {output_fmt!r}')
        taken, deepest = feature_take_indices(len(self.blocks), indices)
        x, ctx = self.embedded(x)
        found = []
        for i in range(len(self.blocks)):
            if stop_early and i > deepest:
                break
            x = self.run_block(i, x, ctx)
            if i in taken:
                y = self.as_map(x, ctx, i)
                found.append(self.neck(y) if norm else y)
        if intermediates_only:
            return found
        return self.neck(self.as_map(x, ctx, self.last)), found

    def as_map(self, x: Tensor, ctx: Context, index: int) -> Tensor:
        """What leaves behind a block, (B, C, H, W)."""
        own = ctx.num_prefix
        x = self.emit(x, None, ctx, index)[1] if index == self.last else x[:, own:]
        return x.transpose(1, 2).unflatten(2, ctx.grid)


@BACKBONES.register_module()
class TimmSAM(TimmPlainMap):
    """``timm.models.vision_transformer_sam.VisionTransformerSAM``."""

    host = VisionTransformerSAM
    host_block = Block
    swapped = PETLVisionTransformerSAM
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (Mlp,)}
    position_biases = ('rel_pos_h', 'rel_pos_w')
    scales = ('gamma',)
    head_dropout = ()  # it stands inside of the head
    absent = {'feature': 'a neck of convolutions stands in front of the pooling'}

    def example(self) -> nn.Module:
        return samvit_base_patch16(num_classes=0)

    def sites_of_block(
        self, path: str, module: nn.Module, dims: int, **facts: Any
    ) -> list[Site]:
        size = module.window_size
        window = {'window': (size, size), 'shift': (0, 0)} if size else {}
        return super().sites_of_block(
            path, module, dims, windowed=bool(size), **window, **facts
        )

    def end_sites(self, backbone: nn.Module, facts: dict[str, Any]) -> list[Site]:
        d, depth = backbone.embed_dim, len(backbone.blocks)
        return [Site('out', '', d, d, index=depth - 1, has_grid=True, **facts)]

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        return self.absent.get(kind)

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        embed: PatchEmbed = backbone.patch_embed
        return {'embed_proj': embed.proj, 'embed_norm': embed.norm}
