"""E2VPT: prompts in front of every block, and learned keys and values in attention.

Paper: Han et al., "E2VPT: An Effective and Efficient Approach for Visual Prompt
Tuning", ICCV 2023, https://arxiv.org/abs/2307.13770, sections 3.2 and 3.3.
Differs from the authors' code: one pair of shares is pruned (there 72 pairs are
retrained, and the best by validation is kept); segments are scored by their own
gradients (there by that of their token, so that the first ones leave); the pass that
scores updates nothing. As there, a segment is the channels of one remainder by the
number of segments, and no run of neighbours. Pooling is that of our VPT-deep.

Its pruning is the loops of :mod:`mmpetl.engine.loops.e2vpt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    PoolPrompts,
    Prompts,
    Site,
    check_pooling,
    check_range,
    grow,
    one_epoch,
    pools_prompts,
    task_loss,
)
from mmpetl.core.boundary import read_json
from mmpetl.core.dropout import Dropout
from mmpetl.registry import METHODS

Mask = Sequence[int]
NUM_SEGMENTS = 16
"""Segments of a prompt in the paper."""
PRUNED = ('tokens', 'segments', 'num_segments')


class MaskedPrompts(Prompts):
    """``[class; drop(mask * E); grid]``; a masked token is zero and still there.

    Args:
        dims: Width of the stream, C.
        num_tokens: How many, P.
        bound: E starts uniform in [-bound, bound].
        drop_rate: Dropout on the prompts.
        mask: (P, segments), which segments of which tokens stay. Segment s is made of
            the channels c with ``c % segments == s``.
    """

    def __init__(
        self,
        dims: int,
        num_tokens: int,
        bound: float,
        drop_rate: float,
        mask: Tensor,
    ) -> None:
        super().__init__(dims, num_tokens, bound, drop_rate)
        channel = torch.arange(dims) % mask.shape[1]
        self.register_buffer('mask', mask[:, channel])

    def tokens(self, batch: int) -> Tensor:
        return super().tokens(batch) * self.mask.to(self.E.dtype)


class KeyValueDelta(Delta):
    """``softmax(q [Ek; k]^T / sqrt(d)) [Ev; v]``; Ek and Ev (K, D) may be one.

    Both start uniform as a Kaiming start of (heads, K, d) has it, ± sqrt(6 / (K d)).
    """

    def __init__(self, site: Site, num_tokens: int, share: bool, rate: float) -> None:
        super().__init__()
        bound = (6 * site.num_heads / (num_tokens * site.in_dims)) ** 0.5
        start = torch.empty(num_tokens, site.in_dims)
        self.Ek = nn.Parameter(start.uniform_(-bound, bound))
        if not share:
            self.Ev = nn.Parameter(torch.empty_like(start).uniform_(-bound, bound))
        self.drop = Dropout(rate)

    def before(self, x: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, ...]:
        keys = self.drop(self.Ek)
        return grow(x, keys, self.drop(self.Ev) if hasattr(self, 'Ev') else keys)


@METHODS.register_module()
class E2VPT(Method):
    """Effective and efficient visual prompt tuning.

    Args:
        num_tokens: Prompts per block, P >= 0. The paper's runs have 1 to 32 per task,
            mostly 10.
        num_kv_tokens: Learned keys and values per block, K >= 0; mostly 5 there.
        share_kv: Whether one set serves as keys and as values, as published.
        token_mask: P numbers 0 or 1, which prompts are left; None leaves all.
        segment_mask: For each prompt the numbers 0 or 1 of its segments, as many for
            all; 16 in the paper. None leaves all.
        drop_rate: Dropout on the prompts, 0.1 as in VPT.
        kv_drop_rate: Dropout on keys and values; the default of the authors' code.
        pool_prompts: Whether the last block's prompts take part where all tokens are
            averaged, as in VPT-deep.
        prune: ``dict(tokens=0.5, segments=0.5)`` trains the prompts first, prunes these
            shares of the tokens and then of the segments of each, and trains what is
            left from the start; ``num_segments=16`` is how many there are. 0.1 to 0.9
            in the paper, 0 prunes none. It stands in place of masks. None: no pruning.
    """

    targets = ('tokens', 'attn.core')
    optional = ('out',)
    starts_as_identity = False
    family = 'prompt'
    apart = False
    phases = ('mmpetl.E2VPTPromptLoop', 'mmpetl.E2VPTPruneLoop')

    def __init__(
        self,
        num_tokens: int = 10,
        num_kv_tokens: int = 5,
        share_kv: bool = True,
        token_mask: Mask | None = None,
        segment_mask: Sequence[Mask] | None = None,
        drop_rate: float = 0.1,
        kv_drop_rate: float = 0.0,
        pool_prompts: bool | None = None,
        prune: Mapping[str, float] | None = None,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 0)
        check_range(self, 'num_kv_tokens', num_kv_tokens, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        check_range(self, 'kv_drop_rate', kv_drop_rate, 0, 1)
        if not num_tokens + num_kv_tokens:
            raise PETLError('E2VPT needs num_tokens or num_kv_tokens of at least 1')
        self.num_tokens = num_tokens
        self.num_kv_tokens = num_kv_tokens
        self.share_kv = share_kv
        self.token_mask = token_mask
        self.segment_mask = segment_mask
        self.drop_rate = drop_rate
        self.kv_drop_rate = kv_drop_rate
        self.pool_prompts = pool_prompts
        kinds = {'tokens': num_tokens, 'attn.core': num_kv_tokens}
        self.targets = tuple(kind for kind, count in kinds.items() if count)
        self.mask()
        self.prune = None if prune is None else self._shares(prune)
        if prune is None:
            self.phases = ()

    def _shares(self, prune: Mapping[str, float]) -> dict[str, Any]:
        """What is pruned, with the number of segments."""
        given = dict(prune) if isinstance(prune, Mapping) else {}
        if not {'tokens', 'segments'} <= given.keys() <= {*PRUNED}:
            raise PETLError(
                'E2VPT needs prune=dict(tokens=..., segments=...), shares from 0 to 1, '
                f'and perhaps num_segments=16; got {prune!r}'
            )
        for name in ('tokens', 'segments'):
            check_range('prune of E2VPT', name, given[name], 0, 1)
        given = {'num_segments': NUM_SEGMENTS, **given}
        check_range('prune of E2VPT', 'num_segments', given['num_segments'], 1)
        if not self.num_tokens or 1 in (given['tokens'], given['segments']):
            raise PETLError('E2VPT prunes prompts, and needs some that are left')
        if self.token_mask is not None or self.segment_mask is not None:
            raise PETLError('E2VPT takes prune or masks, not both')
        return {name: given[name] for name in PRUNED}

    @classmethod
    def after_phases(cls, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        found = read_json(folder / 'masks.json', _Masks, 'masks of E2VPT')
        kept = {name: value for name, value in args.items() if name != 'prune'}
        masks = {'token_mask': found.token_mask, 'segment_mask': found.segment_mask}
        return kept | masks

    def importance(self, model: nn.Module, batches: Iterable[Any]) -> Tensor:
        """Gradients of the loss by the mask of each segment, summed over blocks.

        The mean over batches, signed. The mask of a token is that of all its segments,
        so its gradient is the sum of theirs. Nothing moves, and no dropout acts.

        Args:
            model: A model that holds this method and its trained prompts.
            batches: The training data.

        Returns:
            (P, segments), in float64 on the CPU.

        Raises:
            PETLError: There are no data.
        """
        place = Place(model, self)
        prompts = [d.E for d in place.deltas if isinstance(d, MaskedPrompts)]
        count = self.prune['num_segments']
        total = torch.zeros(self.num_tokens, count, dtype=torch.float64)
        training, seen = model.training, 0
        model.eval()
        for (batch,) in one_epoch(batches):
            seen += 1
            loss = task_loss(model, batch)
            for E, grad in zip(
                prompts, torch.autograd.grad(loss, prompts), strict=True
            ):
                # With a mask of ones, what it multiplies has the gradient of E.
                by_channel = (E.detach() * grad).double().cpu()
                segment = torch.arange(E.shape[1]) % count
                total.index_add_(1, segment, by_channel)
        model.train(training)
        if not seen:
            raise PETLError('E2VPT prunes by data, and there are none')
        return total / seen

    def masks(self, importance: Tensor) -> dict[str, list]:
        """``token_mask`` and ``segment_mask`` by what :meth:`importance` gives.

        The lowest share of tokens goes, then of the segments of each token, both
        rounded down; of equal ones the first.
        """

        def kept(scores: Tensor, share: float) -> list[int]:
            order = torch.argsort(scores, stable=True).tolist()
            gone = {*order[: int(len(order) * share)]}
            return [int(i not in gone) for i in range(len(order))]

        return {
            'token_mask': kept(importance.sum(1), self.prune['tokens']),
            'segment_mask': [kept(row, self.prune['segments']) for row in importance],
        }

    def mask(self) -> Tensor:
        """(P, segments), 1 where a segment of a token is left.

        Raises:
            PETLError: A mask has another shape, or other values.
        """
        tokens = [1] * self.num_tokens if self.token_mask is None else self.token_mask
        segments = self.segment_mask
        if segments is None:
            segments = [[1]] * self.num_tokens
        rows = [*segments]
        if len(tokens) != self.num_tokens or len(rows) != self.num_tokens:
            raise PETLError(
                f'E2VPT needs a mask for each of its {self.num_tokens} prompts, got '
                f'{len(tokens)} in token_mask and {len(rows)} in segment_mask'
            )
        if len({len(row) for row in rows}) > 1 or any(not len(row) for row in rows):
            raise PETLError(
                'E2VPT needs as many segments in segment_mask for each prompt'
            )
        if any(value not in (0, 1) for row in (tokens, *rows) for value in row):
            raise PETLError('E2VPT has masks of 0 and 1')
        whole = torch.tensor([[*row] for row in rows], dtype=torch.bool)
        kept = torch.tensor([*tokens], dtype=torch.bool)
        return whole.view(self.num_tokens, -1) & kept[:, None]

    def wants(self, site: Site) -> bool:
        if site.kind == 'out':
            return bool(self.num_tokens) and pools_prompts(site, self.pool_prompts)
        return site.kind in self.targets

    def check(self, sites: list[Site]) -> None:
        check_pooling('E2VPT', self.pool_prompts, sites)

    def build(self, site: Site) -> Delta:
        if site.kind == 'out':
            return PoolPrompts()
        if site.kind == 'attn.core':
            return KeyValueDelta(
                site, self.num_kv_tokens, self.share_kv, self.kv_drop_rate
            )
        bound = (6 / (site.patch_dims + site.embed_dims)) ** 0.5
        return MaskedPrompts(
            site.in_dims, self.num_tokens, bound, self.drop_rate, self.mask()
        )


_Bit = Annotated[int, msgspec.Meta(ge=0, le=1)]


class _Masks(msgspec.Struct):
    """What pruning has left; a file may say more."""

    token_mask: list[_Bit]
    segment_mask: list[list[_Bit]]
