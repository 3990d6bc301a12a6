"""Blocks that pool queries, so that the stream leaves on a coarser grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import BlockHost, Context, Site, block_sites

Extents = tuple[int, ...]


def extents(grid: Extents, pool: nn.Module) -> Extents:
    """Grid behind a convolution or a pooling, as numbers."""
    n = len(grid)
    sizes = (_per_axis(pool, name, n) for name in ('kernel_size', 'stride', 'padding'))
    return tuple(
        (int(g) + 2 * p - k) // s + 1 for g, k, s, p in zip(grid, *sizes, strict=True)
    )


def _per_axis(pool: nn.Module, name: str, axes: int) -> Extents:
    size = getattr(pool, name)
    return (size,) * axes if isinstance(size, int) else tuple(size)


def pool_tokens(pool: nn.Module, x: Tensor, own: int, grid: Extents) -> Tensor:
    """Pool the tokens of a grid: (B, own + prod(grid), C) -> (B, own + fewer, C).

    Args:
        pool: On (B, C, *grid).
        x: Tokens.
        own: Those in front of the grid, which stay.
        grid: Extents of the grid.
    """
    maps = x[:, own:].unflatten(1, grid).movedim(-1, 1)
    if isinstance(pool, nn.MaxPool2d):  # as fast with the channels behind: no copy
        y = pool(maps).movedim(1, -1).flatten(1, -2)
    else:
        y = pool(maps.contiguous()).flatten(2).transpose(1, 2)
    return torch.cat((x[:, :own], y), dim=1) if own else y


class PoolingHost(BlockHost):
    """A block whose shortcuts may pool the stream and change its width.

    ``ctx.grid`` is that of the input up to the pooling of queries, and
    :meth:`grid_behind` of it from there on. Tokens in front of the grid are not pooled.
    """

    def source(self, branch: int, normed: Tensor, x: Tensor) -> Tensor:
        """What the shortcut of a branch is made of, the stream or its norm."""
        return x

    def skipped(self, branch: int, x: Tensor, num_prefix: int, grid: Extents) -> Tensor:
        """The shortcut, made of :meth:`source`.

        Args:
            branch: 1 (attention) or 2 (ffn).
            x: (B, num_prefix + prod(grid), C).
            num_prefix: Tokens in front of the grid.
            grid: Grid of ``x``.
        """
        return x

    def sublayer(
        self,
        branch: int,
        name: str,
        norm: Callable[[Tensor], Tensor],
        inside: Callable[[Tensor, Context], Tensor],
        x: Tensor,
        ctx: Context,
    ) -> Tensor:
        """One sub-layer; at its sum stands what the shortcut makes of the stream."""
        grid = ctx.grid
        normed = self.through(f'norm{branch}', norm, x, ctx)
        h = self.before(name, normed, ctx)
        b = self.after(name, h, inside(h, ctx), ctx)
        r = self.through(f'{name}.branch', partial(self.residual, branch), b, ctx)
        behind, ctx.grid = ctx.grid, grid
        s = self.before(f'{name}.skip', self.source(branch, normed, x), ctx)
        ctx.grid = behind
        skip = self.skipped(branch, s, ctx.num_prefix, grid)
        seen = x if skip is s else skip
        skip = self.after(f'{name}.skip', s, skip, ctx)
        return self.after(f'{name}.sum', seen, skip + r, ctx)


def pooling_sites(
    host: str,
    widths: tuple[int, int, int],
    mlp_dims: int,
    pools: bool,
    has_grid: bool = True,
    **facts: Any,
) -> list[Site]:
    """The sites of such a block, in the order of its forward pass.

    Args:
        host: Path of the block.
        widths: Of the stream that enters, behind attention, and of what leaves.
        mlp_dims: Hidden width of the feed-forward network.
        pools: Whether attention moves the stream to a coarser grid.
        has_grid: Whether there is a grid at all.
        facts: What else :func:`~mmpetl.core.block_sites` takes.
    """
    d, a, out = widths
    entry, exit_ = pools or d != a, a != out
    turned = {
        'tokens': (d, out),
        'block': (d, out),
        'attn': (d, a),
        'attn.proj': (a, a),
        'attn.branch': (a, a),
        'attn.skip': (d, a),
        'attn.sum': (a, a),
        'norm2': (a, a),
        'ffn': (a, out),
        'ffn.fc1': (a, mlp_dims),
        'ffn.fc2': (mlp_dims, out),
        'ffn.branch': (out, out),
        'ffn.skip': (a, out),
        'ffn.sum': (out, out),
    }
    changes = {'block': entry or exit_, 'attn': entry, 'attn.skip': entry}
    changes |= {'ffn': exit_, 'ffn.skip': exit_}
    on_two_grids = ('tokens', 'block', 'attn', 'attn.skip') if pools else ()
    sites = []
    for site in block_sites(host, d, mlp_dims, attn_dims=a, **facts):
        wide = turned.get(site.kind, (site.in_dims, site.out_dims))
        sites.append(
            replace(
                site,
                in_dims=wide[0],
                out_dims=wide[1],
                reshapes=changes.get(site.kind, False),
                has_grid=site.has_grid and has_grid and site.kind not in on_two_grids,
            )
        )
    return sites
