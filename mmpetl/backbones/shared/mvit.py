"""What the multi-scale transformers (MViTv2) of OpenMMLab share, on any number of axes.

Queries, keys and values are pooled behind their projection, per head, by a depth-wise
convolution and a norm. Tokens in front of the grid pass the convolutions by, as the
class token of the authors does: they are normed, take part in no relative position, and
queries are not added to what attention makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.backbones.shared.pooling import (
    Extents,
    PoolingHost,
    extents,
    pool_tokens,
    pooling_sites,
)
from mmpetl.core import (
    Context,
    PETLError,
    PyramidBackboneHost,
    Site,
    SiteMap,
    Stage,
)

AXES = 'thw'


class MViTBlock(PoolingHost):
    """A block of ``attn`` and ``mlp`` whose stream may be pooled and widened.

    Attributes:
        tables: Names of the relative position tables of ``attn``, one per axis.
        resize: ``resize(table, q_size, k_size)``: (q_size, k_size, d).
    """

    tables: tuple[str, ...]
    resize: Callable[[Tensor, int, int], Tensor]

    @property
    def pools(self) -> bool:
        strides = (*self.attn.pool_q.stride, *self.attn.pool_k.stride)
        return any(s > 1 for s in strides)

    def has_positions(self) -> bool:
        """Whether attention has relative positions."""
        raise NotImplementedError

    def grid_behind(self, grid: Extents) -> Extents:
        return extents(grid, self.attn.pool_q) if all(grid) else grid

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'scale': attn.scale,
            'bias': self.relative_bias if self.has_positions() else None,
            'prepare': self.pooled,
            'behind': self.with_queries if attn.residual_pooling else None,
        }

    def pooled(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pool and norm per head; it moves ``ctx.grid``, and hands on that of keys."""
        attn, grid = self.attn, ctx.grid
        q = self.pool_heads(q, grid, attn.pool_q, attn.norm_q)
        k = self.pool_heads(k, grid, attn.pool_k, attn.norm_k)
        v = self.pool_heads(v, grid, attn.pool_v, attn.norm_v)
        ctx.grid = self.grid_behind(grid)
        ctx.handed = extents(grid, attn.pool_k) if all(grid) else grid
        return q, k, v

    def pool_heads(
        self, t: Tensor, grid: Extents, pool: nn.Module, norm: nn.Module
    ) -> Tensor:
        """(B, heads, num_prefix + prod(grid), d), or more tokens in front, pooled."""
        n = math.prod(grid)
        if n:
            heads = pool_tokens(pool, t.flatten(0, 1), t.shape[2] - n, grid)
            t = heads.unflatten(0, t.shape[:2])
        return norm(t)

    def relative_bias(self, q: Tensor, ctx: Context) -> Tensor:
        """What queries make of the tables of all axes, (B, heads, Nq, Nk).

        Args:
            q: (B, heads, prod(ctx.grid), d), not scaled.
            ctx: Facts of this pass; the grid of keys is handed on.
        """
        cells = q.unflatten(2, ctx.grid)
        n, total = len(ctx.grid), None
        for axis, name in enumerate(self.tables):
            sizes = ctx.grid[axis], ctx.handed[axis]
            table = type(self).resize(getattr(self.attn, name), *sizes)
            each = AXES[-n:]
            term = torch.einsum(f'by{each}c,{each[axis]}kc->by{each}k', cells, table)
            alone = [-1 if other == axis else 1 for other in range(n)]
            term = term.unflatten(-1, alone)
            total = term if total is None else total + term
        return total.flatten(2 + n).flatten(2, 1 + n)

    def with_queries(self, o: Tensor, q: Tensor, x: Tensor, ctx: Context) -> Tensor:
        """The pooled queries on top of what attention made of the grid."""
        p = ctx.num_prefix
        q = q.transpose(1, 2).flatten(2)
        return torch.cat((o[:, :p], o[:, p:] + q[:, p:]), dim=1) if p else o + q

    def ffn_parts(self):
        return self.mlp.fc1, (self.mlp.act,), self.mlp.fc2, nn.Identity()

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x)

    def projects(self, branch: int) -> bool:
        """Whether the shortcut of a branch is projected, and made of the norm."""
        return self.proj is not None and self.dim_mul_in_attention == (branch == 1)

    def source(self, branch: int, normed: Tensor, x: Tensor) -> Tensor:
        return normed if self.projects(branch) else x

    def skipped(self, branch: int, x: Tensor, num_prefix: int, grid: Extents) -> Tensor:
        if self.projects(branch):
            x = self.proj(x)
        if branch == 2 or self.pool_skip is None or not all(grid):
            return x
        return pool_tokens(self.pool_skip, x, num_prefix, grid)


class MViTTrunk(PyramidBackboneHost):
    """A patch embedding, ``blocks``, and norms in the stream behind some of them."""

    def tokens_of(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, and the facts of the pass."""
        embed = self.patch_embed
        if embed.adaptive_padding:
            x = embed.adaptive_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        ctx.grid = tuple(map(int, ctx.grid))
        x = self.entered(0, x, ctx)
        return self.after('embed', x, x, ctx), ctx

    def run_blocks(self, x: Tensor) -> Iterator[tuple[Tensor, Extents]]:
        """Every output: class tokens and cells, (B, own + N, C), and their grid."""
        x, ctx = self.tokens_of(x)
        for i, block in enumerate(self.blocks):
            x = block(x, ctx)
            index = self.stage_indices.get(i)
            if index is not None and index in self.out_scales:
                stage = Stage('blocks', (), None, None, getattr(self, f'norm{index}'))
                normed = self.closed(index, stage, x, ctx)
                yield self.output(index, stage, x, normed, ctx), ctx.grid
                x = normed


class MViTMap(SiteMap):
    """Site map of such a backbone."""

    positions = ('pos_embed',)
    position_biases = ('rel_pos_h', 'rel_pos_w', 'rel_pos_t')
    absent = {
        'feature': 'maps leave, and a head outside of the backbone pools them',
    }
    convolutions: tuple[type[nn.Module], ...]

    def averaged(self, backbone: nn.Module) -> bool:
        """Whether the only output is a map, whose cells a head averages."""
        return len(backbone.out_scales) == 1

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        self.check_class(
            'patch_embed.projection', backbone.patch_embed.projection, self.convolutions
        )
        for path, block in self.blocks(backbone):
            for name in ('pool_q', 'pool_k', 'pool_v'):
                if any(k % 2 == 0 for k in getattr(block.attn, name).kernel_size):
                    raise PETLError(
                        f'{path}.attn.{name} has an even kernel, of which queries and '
                        'shortcut leave on different grids; build the model with odd '
                        'pool_kernel'
                    )

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        embed = backbone.patch_embed
        first, patch = embed.embed_dims, embed.projection.weight[0].numel()
        depth = len(backbone.blocks)
        facts = {'num_blocks': depth, 'embed_dims': first, 'patch_dims': patch}
        facts['timed'] = len(embed.projection.kernel_size) == 3
        at = {**facts, 'stage': 0, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, first, **at)]
        if embed.norm is not None:
            sites.append(Site('embed.norm', '', first, first, **at))
        sites.append(Site('embed', '', first, first, **at))
        stage, pooled = 0, self.averaged(backbone)
        for i, (path, block) in enumerate(self.blocks(backbone)):
            fc1 = block.mlp.fc1
            widths = block.in_dims, fc1.in_features, block.out_dims
            inside = {**facts, 'stage': stage, 'block': i}
            inside['num_heads'] = block.attn.num_heads
            pools = block.pool_skip is not None
            sites += pooling_sites(path, widths, fc1.out_features, pools, **inside)
            index = backbone.stage_indices.get(i)
            if index is None:
                continue
            if index in backbone.out_scales:
                at = {**facts, 'stage': index, 'index': index, 'has_grid': True}
                at |= {'in_stream': i + 1 < depth}
                d = block.out_dims
                sites.append(Site('out.norm', '', d, d, **at))
                sites.append(Site('out', '', d, d, pooled=pooled, **at))
            stage = index + 1
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        modules = {'embed_proj': backbone.patch_embed.projection}
        if backbone.patch_embed.norm is not None:
            modules['embed_norm'] = backbone.patch_embed.norm
        for index in {*backbone.out_scales} & {*backbone.stage_indices.values()}:
            modules[f'out_norm_{index}'] = getattr(backbone, f'norm{index}')
        return modules
