"""E3VA: a highway of adapters beside the frozen blocks, up to the feature pyramid.

Paper: Yin et al., "Parameter-efficient is not sufficient: Exploring Parameter, Memory,
and Time Efficient Adapter Tuning for Dense Predictions", ACM MM 2024,
https://arxiv.org/abs/2306.09729.
A reconstruction: no code is public, and only the abstract and captions were at hand.
From them come the highway, parallel dual-low-rank adapters on what attention and MLP
give, down-sampling taken over from the backbone, trainable norms in front of the
pyramid, and no backward pass through the backbone. Ours are the equations, the rank and
hidden width (which meet both published sizes), the start, and plain transformers and
video.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    add_to_own,
    check_range,
    in_stages,
    kaiming_uniform_,
    without_extra,
)
from mmpetl.registry import METHODS


class DualLowRank(nn.Module):
    """``A(v) = W_U gelu(W_D v + b_D) + b_U``, ``W_D = U_d V_d`` and ``W_U = U_u V_u``.

    The hidden width is C / 2; V_u starts at zero.
    """

    def __init__(self, dims: int, rank: int) -> None:
        super().__init__()
        hidden = dims // 2
        self.V_d = nn.Linear(dims, rank, bias=False)
        self.U_d = nn.Linear(rank, hidden)
        self.V_u = nn.Linear(hidden, rank, bias=False)
        self.U_u = nn.Linear(rank, dims)
        for layer in (self.V_d, self.U_d, self.U_u):
            kaiming_uniform_(layer.weight)
        nn.init.zeros_(self.U_d.bias)
        nn.init.zeros_(self.V_u.weight)
        nn.init.zeros_(self.U_u.bias)

    def forward(self, v: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.U_u(self.V_u(F.gelu(self.U_d(self.V_d(v)))))


class BranchDelta(Delta):
    """Remembers what a residual adds, behind scale and stochastic depth."""

    taps = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes, own = self.notes(ctx), without_extra(y, ctx)
        # Blocks that divide attention over space and time have two branches of it.
        notes[self.kind] = notes[self.kind] + own if self.kind in notes else own
        return y


class HighwayDelta(Delta):
    """``h <- h + a + A_1(a)``, ``h <- h + m + A_2(m)`` behind a block.

    a and m: (B, N, C), what attention and MLP added to the stream z. Kept as
    ``e = h - z``, so that ``e <- e + A_1(a) + A_2(m)`` needs no sum of its own and
    whatever else changes the stream reaches the highway.
    """

    taps = True

    def __init__(self, dims: int, rank: int) -> None:
        super().__init__()
        self.attn = DualLowRank(dims, rank)
        self.ffn = DualLowRank(dims, rank)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        for kind, adapter in (('attn', self.attn), ('ffn', self.ffn)):
            step = adapter(self.own(notes.pop(f'{kind}.branch')))
            notes['e'] = notes['e'] + step if 'e' in notes else step
        return y


class MergeDelta(Delta):
    """The backbone's own patch merging M takes the highway on: ``M(z + e) - M(z)``."""

    taps = True

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        h = (without_extra(x, ctx) + notes['e']).to(x.dtype)
        notes['merged'] = ctx.rerun(h, ctx.own())
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        notes['e'] = notes.pop('merged') - without_extra(y, ctx)
        return y


class ExitDelta(Delta):
    """The highway ``z + e`` leaves, in front of the norm."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return add_to_own(x, self.notes(ctx)['e'].to(x.dtype), ctx)


class NormDelta(Delta):
    """``gamma * y + beta``: with the frozen norm in front a trainable one."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dims))
        self.beta = nn.Parameter(torch.zeros(dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.gamma * y + self.beta


class NormedExitDelta(NormDelta, ExitDelta):
    """Both, where the next stage of the trunk reads the frozen norm as well."""


@METHODS.register_module()
class E3VA(Method):
    """Adapter highway.

    Args:
        rank: Rank of each of the four factors, 1 <= rank <= width / 2.
    """

    targets = ('attn.branch', 'ffn.branch', 'block', 'out')
    optional = ('downsample', 'out.norm')
    family = 'side'
    apart = False

    def __init__(self, rank: int = 16) -> None:
        check_range(self, 'rank', rank, 1)
        self.rank = rank

    def choose(self, sites: list[Site]) -> list[Site]:
        outs = [site for site in sites if site.kind == 'out']
        staged = in_stages(sites)
        last = max((site.index for site in outs), default=0)
        end = max((i for i, site in enumerate(sites) if site.kind == 'out'), default=0)
        chosen = []
        for i, site in enumerate(sites):
            # What lies behind the last output is never read.
            place = site.stage if staged else site.block
            read = i <= end and (site.block is None or place <= last)
            # A norm behind a mean over tokens goes with the head, which may train it;
            # what the next stage reads stays frozen, and the exit has the pair.
            leaves = site.has_grid and not site.in_stream
            if self.wants(site) and read and (site.kind != 'out.norm' or leaves):
                chosen.append(site)
        return chosen

    def check(self, sites: list[Site]) -> None:
        dims = [site.out_dims for site in sites if site.kind == 'block']
        if any(d % 2 for d in dims):
            raise PETLError(f'E3VA halves the width; this backbone has {min(dims)}')
        if self.rank > min(dims) // 2:
            raise PETLError(
                f'E3VA needs rank of at most half the width ({min(dims) // 2}), '
                f'got {self.rank}'
            )

    def build(self, site: Site) -> Delta:
        if site.kind == 'block':
            return HighwayDelta(site.out_dims, self.rank)
        if site.kind == 'out.norm':
            return NormDelta(site.out_dims)
        if site.kind in ('attn.branch', 'ffn.branch'):
            return BranchDelta(site.kind)
        if site.kind == 'downsample':
            return MergeDelta()
        return NormedExitDelta(site.out_dims) if site.in_stream else ExitDelta()
