"""A linear change of what enters a projection, wherever the projection stands."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.context import Context
from mmpetl.core.delta import Delta
from mmpetl.core.site import AFTER_ONLY, LEAF_KINDS, Site

INSTEAD = {
    'attn.qkv': ('attn.q', 'attn.k', 'attn.v'),
    'attn.proj': ('ffn.fc1', 'ffn.fc2'),
}
"""What stands for a fused projection, and for attention, where a trunk has none."""


class InputChange(nn.Module):
    """``x -> x C``, which is added to x, for a matrix C of (in, in) that is learnt.

    Small changes would round to nothing in half precision beside the x that they are
    added to, so a change gives what is added alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x C``.  x: (..., in), in any floating dtype."""
        raise NotImplementedError

    def added(self, x: Tensor) -> Tensor:
        """``x + x C``, which a change may have by one product that keeps all digits."""
        return x + self(x)

    def of_weight(self, weight: Tensor) -> Tensor:
        """``W C^T``, what a projection changes by.  W: (out, in), float64."""
        raise NotImplementedError

    def terms(self) -> dict[str, Tensor]:
        """What its delta notes for losses of the method in a training pass, by name."""
        return {}


class ChangingDelta(Delta):
    """What the two kinds share."""

    def __init__(self, change: InputChange) -> None:
        super().__init__()
        self.change = change

    def changed(self, x: Tensor) -> Tensor:
        """``x C``, with what is noted for losses."""
        self.note()
        return self.change(x)

    def note(self) -> None:
        """Note in a training pass what the method has for losses."""
        for name, value in self.change.terms().items() if self.training else ():
            self.add_term(name, value)


class FrontDelta(ChangingDelta):
    """``x + x C`` enters a projection instead of x.  x: (B, N, in_dims)."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        self.note()
        return self.change.added(x)


class RowsDelta(ChangingDelta):
    """``y + (x C) W^T``: the same where others read the projection's input too.

    x: (..., in_dims), y: (..., out_dims). Others at the same rows see x as it was.
    """

    reads_base = True

    def __init__(self, change: InputChange, kind: str) -> None:
        super().__init__(change)
        self.kind = kind

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + F.linear(self.changed(x), self.own(ctx.affine(self.kind).weight))


def only_after(site: Site) -> bool:
    """Whether what enters a site cannot be changed there."""
    return site.kind in AFTER_ONLY or site.kind in LEAF_KINDS


def changed_input(site: Site, change: InputChange) -> Delta:
    """The delta that changes what enters a site, or what it makes of that."""
    return RowsDelta(change, site.kind) if only_after(site) else FrontDelta(change)


@torch.no_grad()
def fold_change(change: InputChange, affine: Affine, rows: bool) -> None:
    """``W <- W + W C^T``; with ``rows`` it is the base's W that is changed."""
    source = affine.base if rows else affine
    affine.add_(change.of_weight(source.weight.double()))
