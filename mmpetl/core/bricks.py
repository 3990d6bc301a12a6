"""Parts that several methods are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.attention import split_heads
from mmpetl.core.context import Context, records_gradients
from mmpetl.core.delta import Delta
from mmpetl.core.dropout import Dropout
from mmpetl.core.errors import PETLError
from mmpetl.core.lean import scale_shift, scaled, scaled_norm
from mmpetl.core.site import Site


def on_maps(op: Callable[[Tensor], Tensor], x: Tensor, ctx: Context) -> Tensor:
    """Run a spatial operator on the grid, frame by frame; prefix tokens pass it by.

    Args:
        op: (B * frames, C, H, W) -> the same shape.
        x: (B, num_prefix + prod(grid), C).
        ctx: Facts of this forward pass.
    """
    p, (h, w) = ctx.num_prefix, ctx.grid[-2:]
    if not h * w:
        return x  # tokens in front of no grid
    cells = x[:, p:]
    maps = cells.reshape(-1, h, w, x.shape[-1]).permute(0, 3, 1, 2)
    y = op(maps).permute(0, 2, 3, 1).reshape(cells.shape)
    return torch.cat((x[:, :p], y), dim=1) if p else y


def on_volumes(op: Callable[[Tensor], Tensor], x: Tensor, ctx: Context) -> Tensor:
    """Run an operator over time and space on the grid; prefix tokens pass it by.

    Time is an axis of the grid, or the frames of a clip are images of the batch.

    Args:
        op: (clips, C, T, H, W) -> the same shape.
        x: (B, num_prefix + prod(grid), C), with B = clips * frames.
        ctx: Facts of this forward pass.
    """
    p, grid = ctx.num_prefix, ctx.grid
    if not all(grid):
        return x  # tokens in front of no grid
    cells = x[:, p:]
    shape = cells.shape
    if len(grid) == 2:
        cells, grid = cells.unflatten(0, (-1, ctx.frames)), (ctx.frames, *grid)
        cells = cells.flatten(1, 2)
    y = op(cells.unflatten(1, grid).movedim(-1, 1)).movedim(1, -1)
    y = y.reshape(shape)
    return torch.cat((x[:, :p], y), dim=1) if p else y


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples with probability ``rate`` and scale up the others."""
    shape = x.shape[0], *[1] * (x.ndim - 1)
    kept = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
    return x * kept / (1 - rate or 1)


TILE = 16
"""From so many rows or columns on a product of matrices is fast."""


class GroupedLinear(nn.Module):
    """``diag(B_1, ..., B_g) h + c``: every group of inputs feeds a group of outputs.

    ``weight``: (out_dims, in_dims / groups), the blocks ``B_j`` below each other, zero
    at the start; ``bias``: (out_dims,), zero.
    """

    def __init__(self, in_dims: int, out_dims: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(out_dims, in_dims // groups))
        self.bias = nn.Parameter(torch.zeros(out_dims))

    def forward(self, h: Tensor) -> Tensor:
        if self.groups == 1:
            return nn.functional.linear(h, self.weight, self.bias)
        blocks = self.weight.unflatten(0, (self.groups, -1))
        h = h.unflatten(-1, (self.groups, -1))
        return torch.einsum('...gi,goi->...go', h, blocks).flatten(-2) + self.bias

    def dense(self) -> Tensor:
        """(out_dims, in_dims), zero outside of the blocks."""
        return torch.block_diag(*self.weight.unflatten(0, (self.groups, -1)))

    def add_to_(self, weight: Tensor, own: Tensor) -> Tensor:
        """Add the blocks to a weight, (out_dims, in_dims), in place.

        Args:
            weight: Contiguous.
            own: The blocks, as :attr:`weight` has them.
        """
        g = self.groups
        blocks = weight.view(g, -1, g, own.shape[1]).diagonal(dim1=0, dim2=2)
        blocks.add_(own.view(g, -1, own.shape[1]).movedim(0, -1))
        return weight

    def collect(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient of :attr:`weight` from (M, out_dims) and (M, in_dims)."""
        outputs, inputs = (t.shape[-1] // self.groups for t in (grad, x))
        # Blocks of a few entries are no work for a matrix product. So several groups
        # stand in a tile, and what they have in common there is left aside.
        fit = [
            n
            for n in range(1, self.groups + 1)
            if self.groups % n == 0 and n * min(outputs, inputs) <= TILE
        ]
        count = max(fit, default=1)
        tiles = self.groups // count
        grad, x = (t.unflatten(-1, (tiles, -1)).transpose(0, 1) for t in (grad, x))
        whole = grad.mT @ x
        own = whole.unflatten(1, (count, -1)).unflatten(-1, (count, -1))
        return own.diagonal(dim1=1, dim2=3).movedim(-1, 1).reshape(-1, inputs)


class ScaleShift(Delta):
    """``gamma * y + beta``.  y: (..., C); gamma, beta: (C,).

    Args:
        dims: C.
        exact_identity: Whether scales start at one and shifts at zero, or are drawn
            around these, with a deviation of 0.02.
        kind: The site, where what is in front of it is known by it.
    """

    def __init__(self, dims: int, exact_identity: bool, kind: str = '') -> None:
        super().__init__()
        self.kind = kind
        self.gamma = nn.Parameter(torch.ones(dims))
        self.beta = nn.Parameter(torch.zeros(dims))
        if not exact_identity:
            nn.init.normal_(self.gamma, mean=1.0, std=0.02)
            nn.init.normal_(self.beta, std=0.02)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = scale_shift(y, self.gamma, self.beta, ctx.output_kept)
        if not ctx.output_kept:
            ctx.tell(z, (y, self.gamma, self.beta), scaled)
        return z

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        # In front of the second norm stands a sum of what the first norm keeps and
        # what the scale behind the projection of attention has kept.
        seen = ctx if self.kind == 'norm2' else None
        return scaled_norm(module, x, self.gamma, self.beta, seen)

    def fold_into(self, affine: Affine) -> None:
        """Write the same into a map."""
        affine.scale_(self.gamma)
        affine.shift_(self.beta)


def add_to_own(x: Tensor, update: Tensor, ctx: Context) -> Tensor:
    """Add to the base's own tokens; those that deltas have added stay as they are.

    Args:
        x: (B, num_prefix + prod(grid), C).
        update: (B, num_prefix - num_extra + prod(grid), C).
        ctx: Facts of this forward pass.
    """
    if not ctx.num_extra:
        return x + update
    p, own = ctx.num_prefix, ctx.num_prefix - ctx.num_extra
    parts = x[:, :own] + update[:, :own], x[:, own:p], x[:, p:] + update[:, own:]
    return torch.cat(parts, dim=1)


def extra_tokens(ctx: Context, slot: str) -> tuple[int, int]:
    """Where the extra tokens of a slot start and stop in the sequence."""
    start = ctx.num_prefix - ctx.num_extra
    for name, count in ctx.joined:
        if name == slot:
            return start, start + count
        start += count
    return ctx.num_prefix, ctx.num_prefix


def join_tokens(x: Tensor, tokens: Tensor, ctx: Context, slot: str) -> Tensor:
    """Put the extra tokens of a slot behind all that stand in front of the grid.

    Those that the slot put there before leave.

    Args:
        x: (B, num_prefix + prod(grid), C).
        tokens: (B, P, C).
        ctx: Facts of this forward pass; its counts are brought up to date.
        slot: Name of the slot.
    """
    start, stop = extra_tokens(ctx, slot)
    end = ctx.num_prefix
    ctx.joined = [group for group in ctx.joined if group[0] != slot]
    ctx.joined.append((slot, tokens.shape[1]))
    grown = tokens.shape[1] - (stop - start)
    # Not in place: to TorchScript's trace numbers are tensors, which forks share.
    ctx.num_prefix = ctx.num_prefix + grown
    ctx.num_extra = ctx.num_extra + grown
    # A frozen block keeps 10 features of a token where full fine-tuning keeps 16: with
    # a third of the tokens more that is hardly less.
    if records_gradients() and 4 * ctx.num_extra > x.shape[1] + grown:
        ctx.recomputes = True
    kept = x[:, :start], x[:, stop:end], tokens.to(x.dtype), x[:, end:]
    return torch.cat([part for part in kept if part.shape[1]], dim=1)


def grow(qkv: tuple[Tensor, Tensor, Tensor], pk: Tensor, pv: Tensor):
    """(q, [Pk; k], [Pv; v]).

    Args:
        qkv: q, k and v, each (B, heads, N, d).
        pk: Keys, (P, heads * d).
        pv: Values, (P, heads * d).
    """
    q, k, v = qkv
    shape = k.shape[0], -1, -1, -1
    pk, pv = (
        split_heads(p[None].to(k.dtype), k.shape[1]).expand(shape) for p in (pk, pv)
    )
    return q, torch.cat((pk, k), dim=2), torch.cat((pv, v), dim=2)


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

    Where the slot has put tokens there in a block before, these replace them.

    Where E has another width than the stream, the projection for C that the deltas
    share (:func:`projections`) brings it there: ``[class; drop(E F^T + b); grid]``.

    Args:
        dims: Width of the stream, C.
        num_tokens: How many, P.
        bound: E starts uniform in [-bound, bound].
        drop_rate: Dropout on E, drawn anew for every sample.
        inner_dims: Width of E where it is projected, else None.
    """

    def __init__(
        self,
        dims: int,
        num_tokens: int,
        bound: float,
        drop_rate: float,
        inner_dims: int | None = None,
    ) -> None:
        super().__init__()
        self.projection = None if inner_dims is None else str(dims)
        start = torch.empty(num_tokens, dims if inner_dims is None else inner_dims)
        self.E = nn.Parameter(start.uniform_(-bound, bound))
        self.drop = Dropout(drop_rate)

    def tokens(self, batch: int) -> Tensor:
        """What joins the stream, (batch, P, C)."""
        e = self.E if self.projection is None else self.shared[self.projection](self.E)
        return self.drop(e.expand(batch, -1, -1))

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return join_tokens(x, self.tokens(x.shape[0]), ctx, self.slot)


def pools_prompts(site: Site, wanted: bool | None) -> bool:
    """Whether prompts take part where the tokens of an output are averaged.

    Args:
        site: Any site.
        wanted: None lets them in windowed backbones with one output, as published for
            Swin, and nowhere else.
    """
    if site.kind != 'out' or not site.pooled:
        return False
    return site.window is not None if wanted is None else wanted


def check_pooling(who: str, wanted: bool | None, sites: Iterable[Site]) -> None:
    """Raise PETLError where prompts are to be averaged and nothing is."""
    if wanted and not any(site.kind == 'out' for site in sites):
        raise PETLError(
            f'{who} has pool_prompts=True, but this backbone does not average its '
            'tokens into one output; leave pool_prompts out'
        )


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
