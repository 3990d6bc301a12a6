"""Sites of timm's HieraDet, the image encoder of Segment Anything 2."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.hieradet_sam2 import (
    HieraDet,
    HieraPatchEmbed,
    MultiScaleAttention,
    MultiScaleBlock,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.pooling import Extents, extents, pool_tokens
from mmpetl.backbones.shared.timm_hiera import HieraHost, HieraMap, HieraTrunk
from mmpetl.core import Context, Partition, PETLError
from mmpetl.registry import BACKBONES


class PETLMultiScaleBlock(HieraHost, MultiScaleBlock):
    """A block that runs sites; where attention is global, the grid is its one window.

    Windows are padded behind the norm, and the padding attends.
    """

    @property
    def pools(self) -> bool:
        return self.q_stride is not None

    def grid_behind(self, grid: Extents) -> Extents:
        return extents(grid, self.pool) if self.pools and all(grid) else grid

    def partition(self, grid: Extents) -> Partition:
        window = self.window_size if self.is_windowed else grid
        return Partition(tuple(grid), tuple(window), (0, 0))

    def partition_behind(self, partition: Partition) -> Partition:
        grid = self.grid_behind(partition.grid)
        if not (self.pools and self.is_windowed):
            return self.partition(grid)
        window = extents(partition.window, self.pool)
        behind = Partition(grid, window, (0, 0))
        if counts(behind) != counts(partition):
            raise PETLError(
                f'windows of {partition.window} do not divide a map of '
                f'{partition.grid}, which is pooled inside of them; take images whose '
                'sides they divide'
            )
        return behind

    def pool_queries(self, q: Tensor, own: int, grid: Extents) -> Tensor:
        window = self.partition(grid).window
        joined = q.transpose(1, 2).flatten(2)  # channel by channel: no copy for heads
        pooled = pool_tokens(self.attn.q_pool, joined, own, window)
        return pooled.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

    def source(self, branch: int, normed: Tensor, x: Tensor) -> Tensor:
        return normed if branch == 1 and self.dim != self.dim_out else x

    def skipped(self, branch: int, x: Tensor, num_prefix: int, grid: Extents) -> Tensor:
        if branch == 2 or self.dim == self.dim_out:
            return x
        x = self.proj(x)
        if self.pool is None or not all(grid):
            return x
        return pool_tokens(self.pool, x, num_prefix, grid)


def counts(partition: Partition) -> Extents:
    """Windows per axis."""
    axes = zip(partition.grid, partition.window, strict=True)
    return tuple(-(-n // w) for n, w in axes)


class PETLHieraDet(HieraTrunk, HieraDet):
    """A HieraDet that runs sites; the last stage is its output."""

    def embedded(self, x: Tensor, *args: Any) -> tuple[Tensor, Context]:
        embed = self.patch_embed
        if isinstance(embed, PatchEmbed):
            sizes = zip(x.shape[-2:], embed.patch_size, strict=True)
            pads = [-n % p for n, p in sizes]
            x = F.pad(x, (0, pads[1], 0, pads[0])) if any(pads) else x
        x, ctx = self.embed_patches(embed.proj, None, x)
        ctx.grid = tuple(map(int, ctx.grid))
        window = tuple(self.pos_embed_window.shape[-2:])
        if any(n % w for n, w in zip(ctx.grid, window, strict=True)):
            raise PETLError(
                f'positions repeat in windows of {window}, which do not divide a map '
                f'of {ctx.grid}; take images whose sides they divide'
            )
        x = self._pos_embed(x.unflatten(1, ctx.grid)).flatten(1, 2)
        return self.after('embed', x, x, ctx), ctx

    def map_of(self, x: Tensor, ctx: Context, index: int, *args: Any) -> Tensor:
        return x.unflatten(1, ctx.grid)

    def tokens_of(self, x: Tensor) -> tuple[Tensor, Context]:
        """What leaves behind the last block, (B, N, C), and the facts of the pass."""
        x, ctx = self.embedded(x)
        for _, y in self.run_blocks(x, ctx):
            x = y
        return x, ctx

    def forward(self, x: Tensor) -> Tensor:
        x, ctx = self.tokens_of(x)
        x = self.head_of(x, ctx)
        return x if self.head.pool_type else x.unflatten(1, ctx.grid)

    def forward_features(self, x: Tensor) -> Tensor:
        x, ctx = self.tokens_of(x)
        return x.unflatten(1, ctx.grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        grid = tuple(x.shape[1:3])
        x = self.head_of(x.flatten(1, 2), self.new_context(grid), pre_logits)
        return x if self.head.pool_type else x.unflatten(1, grid)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = True,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        coarse: bool = True,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of several stages, or blocks, as upstream gives them.

        What a method does at ``out`` it does to the output of the last block.
        """
        asked = indices, norm, stop_early, output_fmt, coarse
        y, ctx, found = self.intermediates(x, (), *asked)
        return found if intermediates_only else (y.unflatten(1, ctx.grid), found)


@BACKBONES.register_module()
class TimmHieraDet(HieraMap):
    """``timm.models.hieradet_sam2.HieraDet``."""

    host = HieraDet
    host_block = MultiScaleBlock
    swapped = PETLHieraDet
    swapped_block = PETLMultiScaleBlock
    parts = {**HieraMap.parts, 'attn': (MultiScaleAttention,)}
    positions = ('pos_embed', 'pos_embed_window')
    outer_parts = {
        **HieraMap.outer_parts,
        'patch_embed': (HieraPatchEmbed, PatchEmbed),
        'patch_embed.proj': (nn.Conv2d,),
    }

    def example(self) -> nn.Module:
        return HieraDet(
            embed_dim=112, num_heads=2, global_pos_size=(14, 14), num_classes=0
        )

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if block.q_stride is not None and block.dim == block.dim_out:
                raise PETLError(
                    f'{path} pools its queries and not its shortcut, as it does not '
                    'widen; build the model with dim_mul above 1'
                )

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        facts: dict[str, Any] = {'pools': block.q_stride is not None}
        if block.is_windowed:
            window = tuple(block.window_size)
            facts |= {'windowed': True, 'window': window, 'shift': (0, 0)}
        return facts
