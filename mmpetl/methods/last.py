"""LAST: a side network of tiny attention layers corrects the frozen feature.

Paper: Tang et al., "Low-rank Attention Side-Tuning for Parameter-Efficient
Fine-Tuning", 2024, https://arxiv.org/abs/2402.04009.
A reconstruction: no code is public, and only the abstract and reviews were at hand.
From them come the groups of frozen blocks, attention in r dimensions without MLP,
frozen outputs and the correction that takes the frozen terms out. Ours are the depth
and rank of each group (the published size fits but does not fix them), the norm, the
start, the indices of the correction, and everything on windowed and video backbones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpetl.core import (
    Context,
    Delta,
    Method,
    Partition,
    PETLError,
    Site,
    add_to_own,
    autocasts,
    check_range,
    in_stages,
    kaiming_uniform_,
    records_gradients,
    softmax_attention,
    without_extra,
)
from mmpetl.registry import METHODS


class LowRankAttention(nn.Module):
    """``O softmax(q k^T / sqrt(r)) v`` with q, k, v of r dimensions from ``LN(x)``."""

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        self.window, self.shift = site.window, site.shift
        self.norm = nn.LayerNorm(site.out_dims)
        self.qkv = nn.Linear(site.out_dims, 3 * rank, bias=False)
        self.out = nn.Linear(rank, site.out_dims, bias=False)
        kaiming_uniform_(self.qkv.weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """What the unit adds: (B, N, C) -> (B, N, C)."""
        return self.out(self.mix(self.qkv(self.norm(x)), ctx))

    def mix(self, h: Tensor, ctx: Context) -> Tensor:
        """Attention over q, k and v side by side: (B, N, 3 r) -> (B, N, r)."""
        if self.window is None:
            return self.attend(h)
        partition = Partition.shrunk(ctx.grid, self.window, self.shift)
        n = partition.tokens
        mask = partition.mask_in(ctx, h.device)
        return partition.join(
            self.attend(partition.split(h), h.new_zeros(1, n, n), mask)
        )

    @staticmethod
    def attend(
        h: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """One head over q, k and v side by side: (B, N, 3 r) -> (B, N, r)."""
        q, k, v = h.unsqueeze(1).chunk(3, dim=-1)
        return softmax_attention(q, k, v, bias, mask).squeeze(1)


class EntryDelta(Delta):
    """The side network of a stage starts from what enters the stage."""

    taps = True

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = without_extra(y, ctx)
        # Sums of many feature maps lose too much in half precision.
        total = z.to(torch.promote_types(z.dtype, torch.float32))
        self.notes(ctx)[self.stage] = total, None
        return y


class GroupDelta(Delta):
    """``u_i = F_i(u_{i-1} + z_i)`` behind a group of blocks, F_i of T units.

    Kept as ``e_i = u_i - sum_{j <= i} z_j`` beside the sum itself, which needs no
    gradient: the final feature ``u_m - sum_{j < m} z_j`` is then ``z_m + e_m``.
    """

    taps = True

    def __init__(self, site: Site, rank: int, units: int, num_parallel: int) -> None:
        super().__init__()
        self.stage = site.stage
        self.units = nn.ModuleList(
            nn.ModuleList(LowRankAttention(site, rank) for _ in range(units))
            for _ in range(num_parallel)
        )

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        total, past = self.notes(ctx)[self.stage]
        total = total + without_extra(y, ctx)
        past = past or [None] * len(self.units)
        now = []
        # Beside a norm in half precision the plain sums round as they always have.
        thin = total.dtype == y.dtype and not autocasts(y)
        for units, e in zip(self.units, past, strict=True):
            args = units, total, e, y.dtype, ctx.fork()
            if thin:
                e = self.grown_thin(units, total, e, ctx)
            elif records_gradients():
                # A unit is a few products, but would keep two maps of full width.
                e = checkpoint(
                    self.grown, *args, use_reentrant=False, preserve_rng_state=False
                )
            else:
                e = self.grown(*args)
            now.append(e)
        self.notes(ctx)[self.stage] = total, now
        return y

    @staticmethod
    def grown(
        units: nn.ModuleList,
        total: Tensor,
        e: Tensor | None,
        dtype: torch.dtype,
        ctx: Context,
    ) -> Tensor:
        """The correction e, None for nothing yet, with what the units add to it."""
        for unit in units:
            u = total if e is None else total + e
            step = unit(u.to(dtype), ctx)
            e = step.to(total.dtype) if e is None else e + step
        return e

    @staticmethod
    def grown_thin(
        units: nn.ModuleList, total: Tensor, e: Tensor | None, ctx: Context
    ) -> Tensor:
        """:meth:`grown` in a few numbers per token, after one look at the features.

        Let u be what enters the group and c = u - mean(u). Unit t reads
        ``u + sum_{j < t} O_j a_j``, with the a_j of r numbers per token that the units
        in front of it gave. With the columns of O_j centred as well, and
        ``R_t = W_t diag(w_t)`` of the projection and the weight of the norm,

            h_t = (R_t c + sum_j R_t O_j a_j) / sqrt(var + eps) + W_t b_t,
            var = (|c|^2 + 2 sum_j a_j . O_j^T c + |sum_j O_j a_j|^2) / C,

        in which c meets weights alone, once for all units.
        """
        u = total if e is None else total + e
        c = u - u.mean(-1, keepdim=True)
        size = c.square().sum(-1, keepdim=True)
        dims, width = c.shape[-1], units[0].qkv.out_features
        reads = [unit.qkv.weight * unit.norm.weight for unit in units]
        outs = [unit.out.weight.T for unit in units]
        added = torch.cat(outs[:-1]) if len(outs) > 1 else outs[0][:0]
        added = added - added.mean(-1, keepdim=True)
        weights = torch.cat([*reads, added])
        seen = F.linear(c, weights)
        rows = seen[..., : len(units) * width].split(width, dim=-1)
        met = seen[..., len(units) * width :]
        sizes = [*[width] * len(units), len(added)]
        *gram_rows, gram = (weights @ added.T).split(sizes)
        a = None
        for unit, h, by in zip(units, rows, gram_rows, strict=True):
            square = size
            if a is not None:
                n = a.shape[-1]
                h = h + a @ by[:, :n].T
                cross = 2 * met[..., :n] + a @ gram[:n, :n]
                square = (size + (cross * a).sum(-1, keepdim=True)).clamp_min(0)
            h = h * torch.rsqrt(square / dims + unit.norm.eps)
            h = unit.mix(h + unit.qkv.weight @ unit.norm.bias, ctx)
            a = h if a is None else torch.cat((a, h), dim=-1)
        step = a @ torch.cat(outs)
        return step if e is None else e + step


class CorrectionDelta(Delta):
    """``z_m + e_m`` in front of the output's norm; parallel networks share the batch.

    An output in front of the end of the first group is that of the trunk.

    x: (B, num_prefix + prod(grid), C) -> (P B, num_prefix + prod(grid), C).
    """

    def __init__(self, stage: int, num_parallel: int) -> None:
        super().__init__()
        self.stage = stage
        self.num_parallel = num_parallel

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        _, corrections = self.notes(ctx)[self.stage]
        if corrections is None:
            features = [x] * self.num_parallel
        else:
            features = [add_to_own(x, e.to(x.dtype), ctx) for e in corrections]
        return features[0] if len(features) == 1 else torch.cat(features)


@METHODS.register_module()
class LAST(Method):
    """Low-rank attention side-tuning.

    Args:
        rank: Dimensions of queries, keys and values, 1 <= r < width.
        units: Attention layers per group, T >= 1.
        group_size: Frozen blocks per group; it divides the depth of every stage.
        num_parallel: Side networks on one pass of the trunk, for a search over
            hyperparameters. Their features leave one behind the other in the batch,
            (P B, ...), for P heads.
    """

    targets = ('embed', 'block', 'out')
    optional = ('downsample',)
    family = 'side'
    reads_grid = True
    apart = False
    reads_windows = True

    def __init__(
        self,
        rank: int = 4,
        units: int = 4,
        group_size: int = 1,
        num_parallel: int = 1,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'units', units, 1)
        check_range(self, 'group_size', group_size, 1)
        check_range(self, 'num_parallel', num_parallel, 1)
        self.rank = rank
        self.units = units
        self.group_size = group_size
        self.num_parallel = num_parallel
        self.starts_as_identity = num_parallel == 1

    @property
    def features_per_input(self) -> int:
        return self.num_parallel

    def choose(self, sites: list[Site]) -> list[Site]:
        outs = [site for site in sites if site.kind == 'out']
        staged = in_stages(sites)
        # A stage without an output, and what lies behind the last one, is never read.
        stages = {site.stage for site in outs} if staged else {0}
        last = max((site.index for site in outs), default=0)
        chosen = []
        for stage in sorted(stages):
            blocks = [s for s in sites if s.kind == 'block' and s.stage == stage]
            if not staged:
                blocks = [s for s in blocks if s.block <= last]
            if len(blocks) % self.group_size:
                raise PETLError(
                    f'LAST needs groups that fill a stage; stage {stage} has '
                    f'{len(blocks)} blocks, and group_size is {self.group_size}'
                )
            chosen += blocks[self.group_size - 1 :: self.group_size]
        return [
            site
            for site in sites
            if site in chosen
            or site.kind == 'out'
            or (site.kind == 'embed' and 0 in stages)
            or (site.kind == 'downsample' and site.index + 1 in stages)
        ]

    def check(self, sites: list[Site]) -> None:
        blocks = [site for site in sites if site.kind == 'block']
        narrow = min(site.out_dims for site in blocks)
        if self.rank >= narrow:
            raise PETLError(
                f'LAST needs rank below the width ({narrow}), got {self.rank}'
            )
        for site in sites:
            dims = {b.out_dims for b in blocks if b.stage == site.stage}
            if site.kind == 'out' and dims != {site.in_dims}:
                raise PETLError(
                    'LAST corrects what a stage gives; this backbone emits it behind '
                    'the patch merging (out_after_downsample)'
                )

    def build(self, site: Site) -> Delta:
        if site.kind == 'block':
            return GroupDelta(site, self.rank, self.units, self.num_parallel)
        if site.kind == 'out':
            return CorrectionDelta(site.stage, self.num_parallel)
        return EntryDelta(0 if site.kind == 'embed' else site.index + 1)
