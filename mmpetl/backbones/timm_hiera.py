"""Sites of timm's Hiera, whose tokens lie unit by unit and not on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.hiera import (
    Hiera,
    HieraBlock,
    MaskUnitAttention,
    PatchEmbed,
    get_resized_mask,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.pooling import Extents
from mmpetl.backbones.shared.timm_hiera import HieraHost, HieraMap, HieraTrunk
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


@dataclass(frozen=True)
class MaskUnits:
    """How a sequence of tokens is cut into units that attend apart.

    Token ``t`` of unit ``u`` stands at ``t * count + u``.

    Attributes:
        count: Units of one image.
        tokens: Tokens of a unit.
    """

    count: int
    tokens: int

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B * count, tokens, C), image-major."""
        return x.unflatten(1, (-1, self.count)).transpose(1, 2).flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        """(B * count, tokens, C) -> (B, N, C)."""
        return x.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(1, 2)


def largest(x: Tensor, axis: int, stride: int) -> Tensor:
    """The largest of ``stride`` tokens each, which lie that part of the axis apart."""
    return x.unflatten(axis, (stride, -1)).amax(axis)


class PETLHieraBlock(HieraHost, HieraBlock):
    """A block that runs sites; ``ctx.grid`` has one axis, that of the sequence."""

    @property
    def pools(self) -> bool:
        return self.attn.q_stride > 1

    def grid_behind(self, grid: Extents) -> Extents:
        return (grid[0] // self.attn.q_stride,)

    def partition(self, grid: Extents) -> MaskUnits:
        attn, count = self.attn, 1
        if attn.use_mask_unit_attn:
            count = grid[0] // (attn.q_stride * attn.window_size)
        return MaskUnits(count, grid[0] // count)

    def partition_behind(self, partition: MaskUnits) -> MaskUnits:
        return MaskUnits(partition.count, partition.tokens // self.attn.q_stride)

    def pool_queries(self, q: Tensor, own: int, grid: Extents) -> Tensor:
        pooled = largest(q[:, :, own:], 2, self.attn.q_stride)
        return torch.cat((q[:, :, :own], pooled), dim=2) if own else pooled

    def source(self, branch: int, normed: Tensor, x: Tensor) -> Tensor:
        projects = branch == 1 and self.do_expand and self.proj is not None
        return normed if projects else x

    def skipped(self, branch: int, x: Tensor, num_prefix: int, grid: Extents) -> Tensor:
        if branch == 2 or not self.do_expand:
            return x
        stride, p = self.attn.q_stride, num_prefix
        if self.proj is not None:
            x = self.proj(x)
            y = largest(x[:, p:], 1, stride)
        else:
            mean = x[:, p:].unflatten(1, (stride, -1)).mean(1)
            y = torch.cat((largest(x[:, p:], 1, stride), mean), dim=-1)
            x = torch.cat((x, x), dim=-1) if p else x
        return torch.cat((x[:, :p], y), dim=1) if p else y


class PETLHiera(HieraTrunk, Hiera):
    """A Hiera that runs sites; the last block is its output, in order of units."""

    def embedded(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Context]:
        if mask is not None:
            units = mask.view(x.shape[0], 1, *self.mask_spatial_shape)
            x = x * get_resized_mask(x.shape[2:], units).to(torch.bool)
        x, ctx = self.embed_patches(self.patch_embed.proj, None, x)
        x = self.unroll(self._pos_embed(x))
        if mask is not None:
            kept = mask[..., None].tile(1, self.mu_size, x.shape[2])
            x = x[kept].view(x.shape[0], -1, x.shape[-1])
        ctx.grid = (int(x.shape[1]),)
        return self.after('embed', x, x, ctx), ctx

    def map_of(
        self, x: Tensor, ctx: Context, index: int, mask: Tensor | None = None
    ) -> Tensor:
        return self.reroll(x, index, mask=mask)

    def tokens_of(
        self, x: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Context, list[Tensor]]:
        """What leaves behind the last block, the facts, and the map of every stage."""
        if self.training and self.patch_drop_rate > 0:
            mask = self.get_random_mask(x, mask_ratio=self.patch_drop_rate)
        x, ctx = self.embedded(x, mask)
        maps = []
        for i, y in self.run_blocks(x, ctx):
            x = y
            if i in self.stage_ends:
                maps.append((i, y))
        return x, ctx, [self.map_of(y, ctx, i, mask) for i, y in maps]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x, ctx, _ = self.tokens_of(x, mask)
        return self.head_of(x, ctx) if mask is None else x

    def forward_features(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_intermediates: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, _, maps = self.tokens_of(x, mask)
        return (x, maps) if return_intermediates else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head_of(x, self.new_context((x.shape[1],)), pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = True,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        coarse: bool = True,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps behind several stages, or blocks, as upstream gives them.

        What a method does at ``out`` it does to the output of the last block.
        """
        asked = indices, norm, stop_early, output_fmt, coarse
        y, _, found = self.intermediates(x, (mask,), *asked)
        return found if intermediates_only else (y, found)


@BACKBONES.register_module()
class TimmHiera(HieraMap):
    """``timm.models.hiera.Hiera``."""

    host = Hiera
    host_block = HieraBlock
    swapped = PETLHiera
    swapped_block = PETLHieraBlock
    parts = {**HieraMap.parts, 'attn': (MaskUnitAttention,)}
    positions = (
        'pos_embed',
        'pos_embed_win',
        'pos_embed_spatial',
        'pos_embed_temporal',
    )
    outer_parts = {
        **HieraMap.outer_parts,
        'patch_embed': (PatchEmbed,),
        'patch_embed.proj': (nn.Conv2d, nn.Conv3d),
    }
    flat = 'its tokens lie unit by unit, and form a map only when they are rolled back'

    def example(self) -> nn.Module:
        return Hiera(num_classes=0)

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        attn = block.attn
        return {'pools': attn.q_stride > 1, 'windowed': attn.use_mask_unit_attn}
