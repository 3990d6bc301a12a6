"""AdaLoRA: a low-rank sum whose rank is shared out among the projections.

Paper: Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
ICLR 2023, https://arxiv.org/abs/2303.10512, eq. (3), (4), (6)-(13).
Differs from the authors' code: the penalty acts on gradients that are clipped already,
since it is added in front of the step; its gradient is otherwise that of the loss.
``alpha`` is the initial rank by default, so that nothing is scaled. Moving averages are
in every checkpoint. Where a running average of the weights is evaluated, directions
that are pruned for good are left out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import (
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    Site,
    Stepped,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    is_wider,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    alone,
)
from mmpetl.registry import METHODS

EVERY = PROJECTIONS[1:]


class AdaLoRADelta(Delta):
    """``y + scale * drop(x) (E * A)^T B^T``.  x: (B, N, in_dims), y: (B, N, out_dims).

    A: (rank, in_dims), E: (rank, 1), B: (out_dims, rank). A direction is a row of A,
    an entry of E and a column of B; ``importance`` and ``uncertainty`` are moving
    averages for its 1 + in_dims + out_dims numbers, (rank, ...). ``kept``, (rank, 1),
    is zero where a direction is pruned for good.
    """

    importance: Tensor
    uncertainty: Tensor
    kept: Tensor

    def __init__(
        self, in_dims: int, out_dims: int, rank: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dims))
        self.E = nn.Parameter(torch.zeros(rank, 1))
        self.B = nn.Parameter(torch.empty(out_dims, rank))
        self.scale = scale
        self.drop = Dropout(drop_rate)
        nn.init.normal_(self.A, std=0.02)
        nn.init.normal_(self.B, std=0.02)
        self.register_buffer('importance', torch.zeros(rank, 1 + in_dims + out_dims))
        self.register_buffer('uncertainty', torch.zeros_like(self.importance))
        self.register_buffer('kept', torch.ones(rank, 1))

    @property
    def strength(self) -> Tensor:
        """E; in evaluation without what is pruned, which an average of E still has."""
        return self.E if self.training else self.E * self.kept

    def low(self, x: Tensor, weight: Tensor, ctx: Context) -> Tensor:
        """``drop(x) weight^T``."""
        return product(x, weight, ctx, self.drop)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        low = self.low(x, self.A * self.strength, ctx)
        return add_product(y, low, self.B, self.scale)

    def directions(self) -> Tensor:
        """E, A and B side by side, (rank, 1 + in_dims + out_dims)."""
        return torch.cat((self.E, self.A, self.B.T), dim=1)

    def gradients(self) -> Tensor:
        """Those of :meth:`directions`, zero where there are none."""
        parts = (self.E, self.A, self.B)
        e, a, b = (torch.zeros_like(p) if p.grad is None else p.grad for p in parts)
        return torch.cat((e, a, b.T), dim=1)

    def observe(self, beta1: float, beta2: float) -> None:
        """``M <- b1 M + (1 - b1) I`` and ``U <- b2 U + (1 - b2) |I - M|``.

        I = |p dL/dp| for every number p of a direction.
        """
        now = (self.directions() * self.gradients()).abs().to(self.importance)
        self.importance.mul_(beta1).add_(now, alpha=1 - beta1)
        spread = (now - self.importance).abs()
        self.uncertainty.mul_(beta2).add_(spread, alpha=1 - beta2)

    def scores(self) -> Tensor:
        """``s(E_i) + mean_j s(A_ij) + mean_j s(B_ji)`` with s = M U, (rank,)."""
        s = self.importance * self.uncertainty
        e, a, b = s.split((1, self.A.shape[1], len(self.B)), dim=1)
        return e[:, 0] + a.mean(1) + b.mean(1)

    def prune(self, chosen: Tensor, for_good: bool) -> None:
        """Set the entries of E to zero that are chosen, (rank,) of bool."""
        if not self.E.requires_grad:
            return
        self.E.masked_fill_(chosen[:, None], 0)
        if for_good:
            self.kept.copy_(~chosen[:, None])


class AdaLoRAConvDelta(AdaLoRADelta):
    """The same beside a convolution. x: (B, C, *extents), y: (B, *out_extents, C')."""

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__(site.in_dims, site.out_dims, rank, scale, drop_rate)
        self.site = site

    def low(self, x: Tensor, weight: Tensor, ctx: Context) -> Tensor:
        return convolve(self.drop(x), weight, self.site)


class AdaLoRAInPeft(PeftFormat):
    """``lora_A``, ``lora_B`` and ``lora_E``, without ``.weight``."""

    kind = 'ADALORA'
    names = ('lora_A', 'lora_B', 'lora_E')
    reads = (
        'init_r',
        'target_r',
        'lora_alpha',
        'lora_dropout',
        'orth_reg_weight',
        'beta1',
        'beta2',
        'deltaT',
        'tinit',
        'tfinal',
        'total_step',
        'rank_pattern',
    )
    idle = ('r', 'init_lora_weights', 'runtime_config', 'megatron_core') + (
        'qalora_group_size',
    )

    def why_not(self, config: Mapping[str, Any]) -> str:
        if config.get('rank_pattern'):
            return (
                'its rank_pattern says what was pruned, and here ranks stay as they '
                'were and pruned directions are zero'
            )
        return ''

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        total = config.get('total_step') or 0
        rank = config.get('init_r', 12)
        return {
            'rank': rank,
            'target_rank': min(rank, config.get('target_r', 8)),
            'alpha': config.get('lora_alpha', 8) or None,
            'drop_rate': config.get('lora_dropout') or 0.0,
            'orthogonality': config.get('orth_reg_weight', 0.5),
            'warm_up': config.get('tinit', 0) / total if total else 0.0,
            'final': config.get('tfinal', 0) / total if total else 0.0,
            'every': config.get('deltaT', 1),
            'beta1': config.get('beta1', 0.85),
            'beta2': config.get('beta2', 0.85),
        }

    def load(
        self, delta: AdaLoRADelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        for name, param in zip(self.names, (delta.A, delta.B, delta.E), strict=True):
            layer.take(name, param)

    def write(self, method: AdaLoRA, linears: Sequence[TunedLinear]) -> PeftAdapter:
        deltas = {x.path: x.whole('AdaLoRA') for x in linears}
        rank = alone('AdaLoRA', 'rank', {k: len(d.A) for k, d in deltas.items()})
        layers = {
            path: {'lora_A': d.A, 'lora_B': d.B, 'lora_E': d.E * d.kept}
            for path, d in deltas.items()
        }
        entries = {
            'init_r': rank,
            'target_r': method.target_rank,
            'lora_alpha': rank if method.alpha is None else method.alpha,
            'lora_dropout': method.drop_rate,
            'orth_reg_weight': method.orthogonality,
            'beta1': method.beta1,
            'beta2': method.beta2,
            'deltaT': method.every,
            'total_step': 1,  # a plan must have some; a Runner says how many
        }
        return PeftAdapter(entries, layers)


@METHODS.register_module()
class AdaLoRA(Method):
    """Adaptive low-rank adaptation.

    All projections begin with ``rank`` directions. After a warm-up directions are
    pruned, those of the lowest scores among all projections first, until there are
    ``target_rank`` per projection in the mean; then the rest trains on. It counts the
    steps of the optimizer, and a Runner says how many there are; where nobody does
    (:func:`mmpetl.core.plan_steps`), none are pruned.

    Args:
        rank: Directions of every projection at the start, 1 <= rank < width. By layer:
            ``{'*.attn.qkv': 16, '*': 8}``, the first pattern that fits.
        target_rank: Directions per projection at the end, in the mean.
        alpha: The update is scaled by ``alpha / (rank + 1e-5)``, with the rank of the
            start for ever; None means ``alpha = rank``.
        drop_rate: Dropout on the input of the low-rank path.
        orthogonality: Weight of the penalty, the mean of ``|A A^T - I|`` and
            ``|B^T B - I|`` (Frobenius) over all A and B; 0.1 to 0.5 in the paper.
        warm_up: Share of the steps before pruning begins.
        final: Share of the steps after it has ended.
        every: Steps between two prunings, 1 or more.
        beta1: Of the moving average of importance.
        beta2: Of the moving average of its uncertainty.
        targets: Projections that get an update of their own; the paper's are all.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    peft = AdaLoRAInPeft()
    family = 'reparameterisation'
    targets_any = True

    def __init__(
        self,
        rank: int = 12,
        target_rank: int = 8,
        alpha: float | None = None,
        drop_rate: float = 0.0,
        orthogonality: float = 0.1,
        warm_up: float = 0.1,
        final: float = 0.3,
        every: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.85,
        targets: Sequence[str] = EVERY,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'target_rank', target_rank, 1)
        check_range(self, 'every', every, 1)
        shares = {'drop_rate': drop_rate, 'warm_up': warm_up, 'final': final}
        for name, value in {**shares, 'beta1': beta1, 'beta2': beta2}.items():
            check_range(self, name, value, 0, 1)
        check_range(self, 'orthogonality', orthogonality, 0)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        if warm_up + final >= 1:
            raise PETLError(
                'AdaLoRA prunes between warm_up and final, which need a sum below 1; '
                f'got {warm_up} and {final}'
            )
        self.rank = rank
        self.target_rank = target_rank
        self.alpha = alpha
        self.drop_rate = drop_rate
        self.orthogonality = orthogonality
        self.warm_up = warm_up
        self.final = final
        self.every = every
        self.beta1 = beta1
        self.beta2 = beta2
        self.targets = check_kinds(self, targets, PROJECTIONS)

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    @property
    def scale(self) -> float:
        """``alpha / (rank + 1e-5)``."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank + 1e-5)

    def share(self, sites: list[Site]) -> Stepped:
        ranks = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
        if self.target_rank > max(ranks):
            raise PETLError(
                f'AdaLoRA needs target_rank of at most rank ({max(ranks)}), got '
                f'{self.target_rank}'
            )
        return Stepped()

    def build(self, site: Site) -> AdaLoRADelta:
        if site.kernel is not None:
            return AdaLoRAConvDelta(site, self.rank, self.scale, self.drop_rate)
        return AdaLoRADelta(
            site.in_dims, site.out_dims, self.rank, self.scale, self.drop_rate
        )

    @torch.no_grad()
    def before_step(self, place: Place, step: int, total: int | None) -> None:
        """Add the gradient of the penalty."""
        deltas = place.deltas
        weight = self.orthogonality / (2 * len(deltas))
        for delta in deltas if weight else ():
            for rows, param in ((delta.A, delta.A), (delta.B.T, delta.B)):
                if not param.requires_grad:
                    continue
                gradient = gradient_of_penalty(rows).mul_(weight)
                gradient = gradient if rows is param else gradient.T
                if param.grad is None:
                    param.grad = gradient.to(param.dtype).contiguous()
                else:
                    param.grad.add_(gradient)

    @torch.no_grad()
    def after_step(self, place: Place, step: int, total: int | None) -> None:
        """Take in what the step tells of importance, and prune where it is time."""
        deltas = place.deltas
        begins, ends = self.span(total)
        if total is None or step < ends:
            for delta in deltas:
                delta.observe(self.beta1, self.beta2)
        in_turn = begins < step <= ends and step % self.every == 0
        if total is None or not (in_turn or step > ends):
            return
        sizes = [len(delta.E) for delta in deltas]
        excess = sum(sizes) - self.budget(step, total, sizes)
        if not excess:
            return
        scores = torch.cat([delta.scores() for delta in deltas])
        low = scores <= scores.kthvalue(excess).values
        for delta, chosen in zip(deltas, low.split(sizes), strict=True):
            delta.prune(chosen, for_good=step > ends)

    def span(self, total: int | None) -> tuple[int, int]:
        """The last step of the warm-up, and the last that prunes more and more."""
        total = total or 0
        return int(self.warm_up * total), total - int(self.final * total)

    def budget(self, step: int, total: int, sizes: Sequence[int]) -> int:
        """Directions that are to be left after a step.

        Args:
            step: Its number, from 1.
            total: Steps of the training.
            sizes: Directions of every projection at the start.
        """
        begins, ends = self.span(total)
        first = sum(sizes)
        last = sum(min(self.target_rank, size) for size in sizes)
        if step <= begins:
            return first
        if step > ends:
            return last
        left = 1 - (step - begins) / (ends - begins)
        return int((first - last) * left**3 + last)

    def ranks(self, model: nn.Module) -> dict[Site, int]:
        """Directions that act in a model that holds this method, by site."""
        place = Place(model, self)
        return {
            site: int(delta.E.mul(delta.kept).count_nonzero())
            for site, delta in zip(place.sites, place.deltas, strict=True)
        }

    def fold(self, site: Site, delta: AdaLoRADelta, affine: Affine) -> None:
        strength = (delta.E * delta.kept).double()
        affine.add_(delta.B.double() @ (delta.A.double() * strength) * delta.scale)


def gradient_of_penalty(rows: Tensor) -> Tensor:
    """Gradient of ``|R R^T - I|`` (Frobenius) by R, (rank, dims)."""
    off = rows @ rows.T
    off.diagonal().sub_(1)
    norm = off.norm()
    # At orthonormal rows the norm has a kink, and its smallest gradient is none.
    return (off @ rows).mul_(2 / norm) if norm else torch.zeros_like(rows)
