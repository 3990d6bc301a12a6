"""Parts that several methods are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmpetl.core.context import Context
from mmpetl.core.delta import Delta


def on_maps(op: Callable[[Tensor], Tensor], x: Tensor, ctx: Context) -> Tensor:
    """Run a spatial operator on the grid, frame by frame; prefix tokens pass it by.

    Args:
        op: (B * frames, C, H, W) -> the same shape.
        x: (B, num_prefix + prod(grid), C).
        ctx: Facts of this forward pass.
    """
    p, (h, w) = ctx.num_prefix, ctx.grid[-2:]
    maps = x[:, p:].reshape(-1, h, w, x.shape[-1]).permute(0, 3, 1, 2)
    y = op(maps).permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[-1])
    return torch.cat((x[:, :p], y), dim=1) if p else y


def join_tokens(
    x: Tensor, tokens: Tensor, ctx: Context, group: str, replaces: bool = False
) -> Tensor:
    """Put extra tokens behind all that stand in front of the grid.

    Args:
        x: (B, num_prefix + prod(grid), C).
        tokens: (B, P, C).
        ctx: Facts of this forward pass; its counts are brought up to date.
        group: A name for these tokens.
        replaces: Whether the group that joined first under this name leaves. First in,
            first out: where two methods of one kind take turns, each replaces its own.
    """
    joined: list[tuple[str, int]] = ctx.scratch.setdefault('joined', [])
    start = stop = end = ctx.num_prefix
    if replaces:
        i = next(i for i, (name, _) in enumerate(joined) if name == group)
        start = end - ctx.num_extra + sum(count for _, count in joined[:i])
        stop = start + joined.pop(i)[1]
    joined.append((group, tokens.shape[1]))
    grown = tokens.shape[1] - (stop - start)
    ctx.num_prefix += grown
    ctx.num_extra += grown
    kept = x[:, :start], x[:, stop:end], tokens.to(x.dtype), x[:, end:]
    return torch.cat([part for part in kept if part.shape[1]], dim=1)


def projections(inner_dims: int, widths: Iterable[int]) -> nn.ModuleDict:
    """One ``Linear(inner_dims, width)`` per width, for prompts that are narrower.

    They start from a Kaiming normal of the fan out, as in VPT's code.
    """
    found = {}
    for width in sorted(set(widths)):
        found[str(width)] = nn.Linear(inner_dims, width)
        nn.init.kaiming_normal_(found[str(width)].weight, a=0, mode='fan_out')
    return nn.ModuleDict(found)


class Prompts(Delta):
    """Learned tokens that join the stream: ``[class; drop(E); grid]``.

    Where E has another width than the stream, the projection for C that the deltas
    share (:func:`projections`) brings it there: ``[class; drop(E F^T + b); grid]``.

    Args:
        dims: Width of the stream, C.
        num_tokens: How many, P.
        bound: E starts uniform in [-bound, bound].
        drop_rate: Dropout on E, drawn anew for every sample.
        group: Name of the group they form in the stream.
        replaces: Whether the group of the block before leaves first.
        inner_dims: Width of E where it is projected, else None.
    """

    def __init__(
        self,
        dims: int,
        num_tokens: int,
        bound: float,
        drop_rate: float,
        group: str,
        replaces: bool,
        inner_dims: int | None = None,
    ) -> None:
        super().__init__()
        self.projection = None if inner_dims is None else str(dims)
        start = torch.empty(num_tokens, dims if inner_dims is None else inner_dims)
        self.E = nn.Parameter(start.uniform_(-bound, bound))
        self.drop = nn.Dropout(drop_rate)
        self.group = group
        self.replaces = replaces

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        e = self.E if self.projection is None else self.shared[self.projection](self.E)
        tokens = self.drop(e.expand(len(x), -1, -1))
        return join_tokens(x, tokens, ctx, self.group, self.replaces)


class PoolPrompts(Delta):
    """Let a mean over the grid be the mean over grid and extra tokens.

    What averages the grid stands behind the backbone, so each token of the grid gets
    the same share, ``g + mean([e; g]) - mean(g)`` with grid tokens g and extra ones e.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        own = ctx.num_prefix - ctx.num_extra
        grid = y[:, own:]
        share = x[:, own:].mean(1, keepdim=True) - grid.mean(1, keepdim=True)
        return torch.cat((y[:, :own], grid + share), dim=1)
