"""Res-Tuning-Bypass: tuners in a stream beside the frozen blocks, fed by their outputs.

Paper: Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding
Tuner from Backbone", NeurIPS 2023, https://arxiv.org/abs/2310.19859, section 3.3.
Differs from the authors' code: outputs of blocks are not detached. Nothing trainable
lies below the trunk, so it builds no graph anyhow, and other methods may stand in it.
Tuners are adapters; those in groups and the path of diffusion models are not offered.
Trunks of several stages (their own patch merging takes the bypass on) and video are our
extension. Res-Tuning inside of blocks is U-Tuning's (``mmpetl/methods/u_tuning.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    Site,
    check_range,
    in_stages,
    without_extra,
)
from mmpetl.registry import METHODS


class Tuner(nn.Module):
    """``z + Wu gelu(Wd z + bd) + bu``, (B, N, C) -> (B, N, C)."""

    def __init__(self, dims: int, hidden_dims: int, zero_init: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.up = nn.Linear(hidden_dims, dims)
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.up(F.gelu(self.down(z)))


class EntryDelta(Delta):
    """``x_0``: the embedded tokens."""

    taps = True

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        self.notes(ctx)['x'] = without_extra(y, ctx)
        return y


class BypassDelta(Delta):
    """``x_l = V_l(x_{l-1}) + H_l(F_l)`` beside block l, which leaves F_l.

    F_l: (B, num_prefix + prod(grid), C). The bypass has the base's own tokens.
    """

    taps = True

    def __init__(self, dims: int, hidden_dims: int, zero_init: bool) -> None:
        super().__init__()
        self.vertical = Tuner(dims, hidden_dims, zero_init)
        self.horizontal = Tuner(dims, hidden_dims, zero_init)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        fed = self.horizontal(without_extra(y, ctx))
        notes['x'] = self.vertical(self.own(notes['x'])) + fed
        return y


class MergeDelta(Delta):
    """The backbone's own patch merging takes the bypass on."""

    taps = True

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        notes['x'] = ctx.rerun(notes['x'].to(x.dtype), ctx.own())
        return x


class ExitDelta(Delta):
    """The bypass takes the place of what enters the norm of an output."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        p, own = ctx.num_prefix, ctx.num_prefix - ctx.num_extra
        mine = self.notes(ctx)['x'].to(x.dtype)
        if p == own:
            return mine
        return torch.cat((mine[:, :own], x[:, own:p], mine[:, own:]), dim=1)


@METHODS.register_module()
class ResTuningBypass(Method):
    """Res-Tuning-Bypass.

    Args:
        hidden_dims: Width of a tuner, h >= 1; 10 gives the published size.
        zero_init_last: Whether both tuners of the last block start as nothing, an
            option of the authors' code.
    """

    targets = ('embed', 'block', 'out')
    optional = ('downsample',)
    starts_as_identity = False
    family = 'side'
    apart = False
    replaces = ('out',)
    normed = True

    def __init__(self, hidden_dims: int = 10, zero_init_last: bool = False) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        self.hidden_dims = hidden_dims
        self.zero_init_last = zero_init_last

    def choose(self, sites: list[Site]) -> list[Site]:
        outs = [i for i, site in enumerate(sites) if site.kind == 'out']
        if not outs:
            return []
        last, staged = max(sites[i].index for i in outs), in_stages(sites)
        # What lies behind the last output is never read.
        return [
            site
            for i, site in enumerate(sites)
            if self.wants(site)
            and i <= outs[-1]
            and (site.block is None or (site.stage if staged else site.block) <= last)
        ]

    def build(self, site: Site) -> Delta:
        if site.kind == 'block':
            last = self.zero_init_last and site.block == site.num_blocks - 1
            return BypassDelta(site.out_dims, self.hidden_dims, last)
        parts = {'embed': EntryDelta, 'downsample': MergeDelta, 'out': ExitDelta}
        return parts[site.kind]()
