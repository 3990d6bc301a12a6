"""Parts that several methods are made of."""

from __future__ import annotations

from collections.abc import Callable

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


def _joined(ctx: Context) -> list[tuple[str, int]]:
    """The groups of extra tokens in the stream, from front to back."""
    return ctx.scratch.setdefault('joined', [])


def join_tokens(x: Tensor, tokens: Tensor, ctx: Context, group: str) -> Tensor:
    """Put extra tokens behind the ones that stand in front of the grid.

    Args:
        x: (B, num_prefix + prod(grid), C).
        tokens: (B, P, C).
        ctx: Facts of this forward pass; its counts are raised.
        group: A name by which :func:`leave_tokens` finds them again.
    """
    at, count = ctx.num_prefix, tokens.shape[1]
    _joined(ctx).append((group, count))
    ctx.num_prefix += count
    ctx.num_extra += count
    return torch.cat((x[:, :at], tokens.to(x.dtype), x[:, at:]), dim=1)


def leave_tokens(x: Tensor, ctx: Context, group: str) -> Tensor:
    """Take the group that joined first under this name out of the stream.

    First in, first out: where two methods of one kind take turns, each removes its
    own.
    """
    joined = _joined(ctx)
    i = next(i for i, (name, _) in enumerate(joined) if name == group)
    count = joined[i][1]
    at = ctx.num_prefix - ctx.num_extra + sum(n for _, n in joined[:i])
    del joined[i]
    ctx.num_prefix -= count
    ctx.num_extra -= count
    return torch.cat((x[:, :at], x[:, at + count :]), dim=1)


class Prompts(Delta):
    """Learned tokens that join the stream: ``[class; drop(E); grid]``.

    Args:
        dims: Width of the stream, C.
        num_tokens: How many, P.
        bound: E starts uniform in [-bound, bound].
        drop_rate: Dropout on E, drawn anew for every sample.
        group: Name of the group they form in the stream.
        replaces: Whether the group of the block before leaves first.
    """

    def __init__(
        self,
        dims: int,
        num_tokens: int,
        bound: float,
        drop_rate: float,
        group: str,
        replaces: bool,
    ) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(num_tokens, dims).uniform_(-bound, bound))
        self.drop = nn.Dropout(drop_rate)
        self.group = group
        self.replaces = replaces

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        if self.replaces:
            x = leave_tokens(x, ctx, self.group)
        tokens = self.drop(self.E.expand(len(x), -1, -1))
        return join_tokens(x, tokens, ctx, self.group)


class PoolPrompts(Delta):
    """Let a mean over the grid be the mean over grid and extra tokens.

    What averages the grid stands behind the backbone, so each token of the grid gets
    the same share: with N grid tokens g and P extra tokens e,
    ``g + P / (N + P) * (mean(e) - mean(g))``.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        own, p = ctx.num_prefix - ctx.num_extra, ctx.num_prefix
        if not ctx.num_extra:
            return y
        extra, grid = x[:, own:p], y[:, own:]
        share = (extra.mean(1) - grid.mean(1)) * (p - own) / (x.shape[1] - own)
        return torch.cat((y[:, :own], grid + share.unsqueeze(1)), dim=1)
