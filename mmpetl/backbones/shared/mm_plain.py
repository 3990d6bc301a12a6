"""What the plain transformers of mmpretrain and mmsegmentation share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    FFN,
    BlockHost,
    Context,
    PETLError,
    Rows,
    Site,
    SiteMap,
    block_sites,
)


def parts_of_ffn(ffn: nn.Module) -> FFN:
    """fc1, what follows it, fc2 and its dropout, of mmcv's FFN or a SwiGLU one.

    Scale and stochastic depth behind them belong to the residual of a block.
    """
    if hasattr(ffn, 'w12'):
        return FFN(
            ffn.w12, lambda x, ctx: ffn.norm(silu_gate(x)), ffn.w3, by_token=True
        )
    (fc1, *between), fc2, behind = ffn.layers
    return FFN.of(fc1, between, fc2, behind)


def silu_gate(x: Tensor) -> Tensor:
    """``silu(gate) * value`` of both next to each other, (..., 2 m) -> (..., m)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def check_ffn(path: str, ffn: nn.Module, add_identity: bool) -> None:
    """Refuse a feed-forward network of another depth or with another shortcut."""
    depth = getattr(ffn, 'num_fcs', 2)
    if depth != 2 or ffn.add_identity is not add_identity:
        raise PETLError(
            f'{path} has {depth} linear layers and add_identity={ffn.add_identity}; '
            f'the site map knows 2 and {add_identity}'
        )


def table_bias(owner: nn.Module) -> Tensor:
    """Bias of class token and patches by a table, (heads, 1 + N, 1 + N)."""
    index = owner.relative_position_index
    rows = owner.relative_position_bias_table[index.flatten()]
    return rows.view(*index.shape, -1).permute(2, 0, 1)


def check_table_grid(grid: tuple[int, ...], table: tuple[int, ...]) -> None:
    """Refuse an input whose patches a table of relative positions does not cover."""
    grid, table = tuple(map(int, grid)), tuple(table)
    if grid != table:
        raise PETLError(
            f'the tables of relative positions are for {table[0]} x {table[1]} '
            f'patches, and the input has {grid[0]} x {grid[1]}; set img_size to the '
            "size of the input, and segment larger images with test_cfg mode='slide'"
        )


class TableBlock(BlockHost):
    """A BEiT block: biases of queries and values, tables, scaled branches.

    The table of a block, or the one that all share and the backbone hands over, covers
    the class token and the patches. Keys have no bias and need none.
    """

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': self.projections(),
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
            'bias': self.position_bias,
            'bias_prefix': 1,
        }

    def projections(self) -> nn.Module | Rows:
        """The fused projection with its biases, wherever they are."""
        attn = self.attn
        if attn.bias != 'qv_bias':
            return attn.qkv
        return Rows(attn.qkv.weight, (attn.q_bias, len(attn.q_bias), attn.v_bias))

    def position_bias(self, q: Tensor, ctx: Context) -> Tensor | None:
        """Of the block's own table and of the one that all blocks share."""
        if self.attn.relative_position_bias_table is None:
            return ctx.handed
        own = table_bias(self.attn)
        return own if ctx.handed is None else own + ctx.handed

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self) -> FFN:
        return parts_of_ffn(self.ffn)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 2:  # stochastic depth stands here twice, as upstream
            x = self.ffn.dropout_layer(self.ffn.gamma2(x))
        gamma = self.gamma_1 if branch == 1 else self.gamma_2
        return self.drop_path(x if gamma is None else gamma * x)


class MMPlainMap(SiteMap):
    """Site map of ``patch_embed``, ``layers``, and norms called ``norm1``, ``norm2``.

    Attributes:
        add_identity: Whether the feed-forward network adds the shortcut itself.
    """

    add_identity = True

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            check_ffn(f'{path}.ffn', self.ffn(block), self.add_identity)
        self.check_outputs(backbone)

    def ffn(self, block: nn.Module) -> nn.Module:
        """The feed-forward network of a block."""
        return block.ffn

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.layers):
            yield f'layers.{i}', block

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        """What else the sites of a block say."""
        return {}

    def pools(self, backbone: nn.Module) -> bool:
        """Whether an output is the mean of its patches."""
        return getattr(backbone, 'out_type', '') == 'avg_featmap'

    def gives_vectors(self, backbone: nn.Module) -> bool:
        """Whether an output is a vector that a head outside of the backbone reads."""
        return getattr(backbone, 'out_type', '') in ('cls_token', 'avg_featmap')

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = backbone.patch_embed.projection
        d = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.layers)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        sites = [Site('embed.proj', '', patch, d, has_grid=True, **facts)]
        if backbone.patch_embed.norm is not None:
            sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            ffn = self.ffn(block)
            gated = hasattr(ffn, 'w12')
            sites += block_sites(
                path,
                d,
                ffn.w3.in_features if gated else ffn.feedforward_channels,
                gated=gated,
                block=i,
                num_heads=block.attn.num_heads,
                **self.block_facts(block),
                **facts,
            )
        facts['pooled'] = self.pools(backbone)
        grid, vector = ({**facts, 'has_grid': has} for has in (True, False))
        outputs = sorted({i for i in backbone.out_indices if i < depth})
        modules = self.outer_modules(backbone)
        for i in outputs:
            if f'out_norm_{i}' in modules:
                sites.append(Site('out.norm', '', d, d, index=i, **grid))
            sites.append(Site('out', '', d, d, index=i, **grid))
            if f'out_norm_{depth}' in modules and i == outputs[-1]:
                # One site, as one norm serves every output.
                sites.append(Site('out.norm', '', d, d, index=depth, **vector))
            if self.gives_vectors(backbone):
                sites.append(Site('feature', '', d, d, index=i, **vector))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        depth = len(backbone.layers)
        modules = {
            'embed_proj': backbone.patch_embed.projection,
            'embed_norm': backbone.patch_embed.norm,
        }
        if getattr(backbone, 'final_norm', False):
            modules[f'out_norm_{depth - 1}'] = backbone.norm1
        if self.pools(backbone) and hasattr(backbone, 'norm2'):
            modules[f'out_norm_{depth}'] = backbone.norm2
        return modules


def to_map(x: Tensor, ctx: Context) -> Tensor:
    """(B, own prefix + N, C) -> (B, C, H, W), contiguous; what leaves a dense trunk."""
    x = x[:, ctx.num_prefix - ctx.num_extra :]
    return x.transpose(1, 2).unflatten(2, ctx.grid).contiguous()


def with_tokens(tokens: list[Tensor], x: Tensor, ctx: Context) -> Tensor:
    """Put tokens of the backbone, (1, 1, C) each, in front of the patches."""
    ctx.num_prefix += len(tokens)
    return torch.cat((*(t.expand(x.shape[0], -1, -1) for t in tokens), x), dim=1)
