"""VQT: learned queries look into every frozen block, and a head reads what they saw.

Paper: Tu et al., "Visual Query Tuning: Towards Effective Usage of Intermediate
Representations for Parameter and Memory Efficient Transfer Learning", CVPR 2023,
https://arxiv.org/abs/2212.03220.
Differs from the authors' code: theirs puts the queries into the token sequence and runs
both together; here they run through the block by themselves, against the keys and
values of the tokens, which is the same result without a graph through the trunk. Where
the trunk has stochastic depth (off by default), queries draw their own. Compressing the
feature afterwards, means and learned sums over queries, and attention over the layers'
queries are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, Site, check_range, in_stages
from mmpetl.core.dropout import Dropout
from mmpetl.registry import METHODS


class QueryDelta(Delta):
    """``Y = Block(drop(E))`` whose keys and values are those of the tokens.

    x, y: (B, N, C), the stream, which stays as it is; E: (T, C); Y: (B, T, C).
    """

    def __init__(
        self, dims: int, num_tokens: int, bound: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(num_tokens, dims).uniform_(-bound, bound))
        self.drop = Dropout(drop_rate)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        queries = self.drop(self.E.expand(x.shape[0], -1, -1)).to(x.dtype)
        notes = self.notes(ctx)
        alone = ctx.apart(len(self.E))
        alone.notes[self.slot] = {'kv': notes.pop('kv'), 'asking': True}
        notes.setdefault('seen', []).append(ctx.rerun(queries, alone))
        return y


class KeyValueDelta(Delta):
    """Remembers keys and values of the tokens, and lends them to the queries."""

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        notes = self.notes(ctx)
        if 'asking' in notes:
            return x[0], *notes['kv']
        kept = x[1:]
        if torch.is_grad_enabled():
            # Views would keep the tokens' queries alive until backward as well.
            kept = tuple(t.contiguous() for t in kept)
        notes['kv'] = kept
        return x


class ConcatDelta(Delta):
    """``[n(z); n(vec Y_1); ...; n(vec Y_l)]`` with ``n`` dividing by the length.

    y: (B, 1, C), the feature z of the trunk.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        seen = [s.flatten(1).unsqueeze(1) for s in self.notes(ctx)['seen']]
        return torch.cat([F.normalize(part, dim=-1) for part in (y, *seen)], dim=-1)


@METHODS.register_module()
class VQT(Method):
    """Visual query tuning.

    The feature grows to ``C (1 + L T)``, L blocks being in front of it, and so must
    the head: :meth:`feature_dims`.

    Args:
        num_tokens: Queries per block, T >= 1. The authors take 1, 10 or 20 per task.
        drop_rate: Dropout on the queries, 0.1 in the authors' code.
    """

    targets = ('block', 'attn.core', 'feature')
    starts_as_identity = False
    family = 'prefix'
    apart = False

    def __init__(self, num_tokens: int = 1, drop_rate: float = 0.1) -> None:
        check_range(self, 'num_tokens', num_tokens, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.num_tokens = num_tokens
        self.drop_rate = drop_rate

    def choose(self, sites: list[Site]) -> list[Site]:
        # What lies behind the last feature is never read.
        last = max((s.index for s in sites if s.kind == 'feature'), default=-1)
        staged = in_stages(sites)
        return [
            s
            for s in sites
            if self.wants(s) and ((s.stage if staged else s.block) or 0) <= last
        ]

    def build(self, site: Site) -> Delta:
        if site.kind == 'feature':
            return ConcatDelta()
        if site.kind == 'attn.core':
            return KeyValueDelta()
        bound = (6 / (site.patch_dims + site.embed_dims)) ** 0.5
        return QueryDelta(site.in_dims, self.num_tokens, bound, self.drop_rate)

    def feature_dims(self, site: Site) -> int:
        return site.out_dims * (1 + (site.index + 1) * self.num_tokens)
