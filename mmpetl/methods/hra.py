"""HRA: a few Householder reflections of the input of a frozen projection.

Paper: Yuan et al., "Bridging the Gap between Low-Rank and Orthogonal Adaptation via
Householder Reflection Adaptation", NeurIPS 2024, https://arxiv.org/abs/2405.17484.
Read beside the paper: the ``hra`` tuner of PEFT, which has no penalty on directions
that are not orthogonal; it is off by default here. Differs from it: orthogonal
directions start at random, since of two equal ones that are made orthogonal the second
is rounding noise. The reflections are applied two by two, so that equal ones cancel bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    PROJECTIONS,
    Affine,
    Delta,
    Method,
    PETLError,
    Site,
    check_kinds,
    check_range,
    kaiming_uniform_,
    uncast,
)
from mmpetl.core.input_change import (
    INSTEAD,
    InputChange,
    changed_input,
    fold_change,
    only_after,
)
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    alone,
    by_layer,
)
from mmpetl.registry import METHODS

STARTS = ('pairs', 'random')


def paired(u: Tensor) -> tuple[Tensor, Tensor]:
    """``(I - 2 u_1 u_1^T) ... (I - 2 u_r u_r^T) = I + left right``.

    Two reflections are ``I + 2 u_1 d^T - 2 d u_2^T - 2 |d|^2 u_1 u_2^T`` with
    ``d = u_2 - u_1``, where nothing is left of two that are equal. A single one at the
    end is as it is.

    Args:
        u: (r, C), rows of length one.

    Returns:
        ``left``, (C, r), and ``right``, (r, C).
    """
    left, right = u[:0].mT, u[:0]
    for i in range(0, len(u), 2):
        if i + 1 == len(u):
            more_left, more_right = -2 * u[i, :, None], u[i, None]
        else:
            first, second = u[i], u[i + 1]
            d = second - first
            more_left = torch.stack((2 * first, -2 * (d + (d @ d) * first)), dim=1)
            more_right = torch.stack((d, second))
        # (I + L R) (I + M S) = I + [L, M] [R + (R M) S; S]
        right = torch.cat((right + (right @ more_left) @ more_right, more_right))
        left = torch.cat((left, more_left), dim=1)
    return left, right


class Reflections(InputChange):
    """``C = R^T - I`` with ``R = (I - 2 u_1 u_1^T) ... (I - 2 u_r u_r^T)``.

    The u are the columns of U, (in_dims, r), at length one.
    """

    def __init__(
        self,
        dims: int,
        rank: int,
        start: str,
        orthogonal: bool = False,
        penalised: bool = False,
    ) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(dims, rank))
        self.orthogonal = orthogonal
        self.penalised = penalised
        if start == 'pairs':
            half = torch.empty(dims, rank // 2)
            kaiming_uniform_(half)
            self.U.data.copy_(half.repeat_interleave(2, dim=1))
        else:
            kaiming_uniform_(self.U)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``left``, (in_dims, r), and ``right``, (r, in_dims): ``R = I + left right``.

        Computed and given in a dtype.
        """
        if self.orthogonal:
            # What a Gram-Schmidt process spans, and the sum asks for no more.
            basis = torch.linalg.qr(self.U.to(dtype)).Q
            return -2 * basis, basis.mT
        return paired(self.directions(dtype))

    def directions(self, dtype: torch.dtype) -> Tensor:
        """The u as rows, (r, in_dims)."""
        # As rows, for two that are equal to have the same length to the last bit.
        return F.normalize(self.U.to(dtype).mT.contiguous(), dim=-1)

    @property
    def fine(self) -> torch.dtype:
        """What it is computed in, since differences of directions may be small."""
        return torch.promote_types(self.U.dtype, torch.float32)

    def terms(self) -> dict[str, Tensor]:
        if not self.penalised:
            return {}
        with uncast(self.U):
            u = self.directions(self.fine)
            off = u @ u.mT - torch.eye(len(u), dtype=u.dtype, device=u.device)
            return {'orthogonal': (off**2).sum()}

    def forward(self, x: Tensor) -> Tensor:
        with uncast(self.U):
            parts = self.factors(self.fine)
        left, right = (part.to(x.dtype) for part in parts)
        return F.linear(F.linear(x, right), left)

    def of_weight(self, weight: Tensor) -> Tensor:
        left, right = self.factors(weight.dtype)
        return (weight @ left) @ right


class HRAInPeft(PeftFormat):
    """``hra_u`` is U; ``apply_GS`` makes its columns orthogonal."""

    kind = 'HRA'
    names = ('hra_u',)
    reads = ('r', 'apply_GS')

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        ranks = {x.path: x.need('hra_u').shape[-1] for x in layers}
        orthogonal = bool(config.get('apply_GS'))
        odd = any(rank % 2 for rank in ranks.values())
        return {
            'rank': by_layer(ranks),
            'orthogonal': orthogonal,
            'start': 'random' if odd or orthogonal else 'pairs',
        }

    def load(
        self, delta: Delta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        layer.take('hra_u', delta.change.U)

    def write(self, method: HRA, linears: Sequence[TunedLinear]) -> PeftAdapter:
        found = {x.path: x.whole('HRA').change.U for x in linears}
        rank = alone('HRA', 'rank', {path: U.shape[1] for path, U in found.items()})
        layers = {path: {'hra_u': U} for path, U in found.items()}
        return PeftAdapter({'r': rank, 'apply_GS': method.orthogonal}, layers)


@METHODS.register_module()
class HRA(Method):
    """Householder reflections before a projection.

    Args:
        rank: Number of reflections, r <= width; 8 in the paper. Even for a start in
            pairs. By layer: ``{'*.attn.qkv': 16, '*': 8}``.
        start: ``'pairs'``: two neighbours are equal and cancel, so that the model
            starts as the frozen one. ``'random'``: all are drawn apart.
        orthogonal: Whether directions are made orthogonal before they reflect; then
            only a random start makes sense.
        penalty: Factor of the sum of ``|u^T u - I|^2`` over all projections, a loss of
            its own (``hra_orthogonal``) that draws directions apart; a Runner of
            MMEngine adds and logs it, a loop of one's own adds
            :func:`mmpetl.core.collect_losses`.
        targets: Projections whose input is reflected. ``attn.q``, ``attn.k`` and
            ``attn.v`` are reflected apart; they stand for ``attn.qkv`` where these have
            no projection of one input. Where a backbone has no attention, both
            projections of its feed-forward networks stand for ``attn.proj``. In a model
            that no file describes every Linear has reflections.
    """

    leaf_kinds = ('layer.linear',)
    sized = ('rank',)
    peft = HRAInPeft()
    family = 'reparameterisation'
    targets_any = True

    def __init__(
        self,
        rank: int = 8,
        start: Literal['pairs', 'random'] = 'pairs',
        orthogonal: bool = False,
        penalty: float = 0.0,
        targets: Sequence[str] = ('attn.qkv', 'attn.proj'),
    ) -> None:
        check_range(self, 'rank', rank, 1)
        if start not in STARTS:
            raise PETLError(f'HRA needs start {" or ".join(STARTS)}, got {start!r}')
        ranks = rank.values() if isinstance(rank, Mapping) else (rank,)
        odd = [number for number in ranks if number % 2]
        if start == 'pairs' and (odd or orthogonal):
            what = f'rank {odd[0]} is odd' if odd else 'orthogonal directions differ'
            raise PETLError(
                f'HRA starts at the frozen model by pairs that cancel, and {what}; set '
                "start='random'"
            )
        check_range(self, 'penalty', penalty, 0)
        if penalty and orthogonal:
            raise PETLError('HRA has orthogonal directions, which need no penalty')
        self.rank = rank
        self.start = start
        self.orthogonal = orthogonal
        self.penalty = penalty
        self.losses = ('orthogonal',) if penalty else ()
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = INSTEAD
        self.starts_as_identity = start == 'pairs'

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if self.rank > site.in_dims:
                raise PETLError(
                    f'HRA needs rank of at most the width that enters, {site.in_dims} '
                    f'at {site}, got {self.rank}'
                )

    def has_room(self, site: Site) -> bool:
        return self.rank <= site.in_dims

    def build(self, site: Site) -> Delta:
        U = Reflections(
            site.in_dims, self.rank, self.start, self.orthogonal, self.penalty > 0
        )
        return changed_input(site, U)

    def loss(self, name: str, terms: Sequence[Tensor]) -> Tensor:
        return self.penalty * torch.stack(tuple(terms)).sum()

    def fold(self, site: Site, delta: Delta, affine: Affine) -> None:
        fold_change(delta.change, affine, only_after(site))
