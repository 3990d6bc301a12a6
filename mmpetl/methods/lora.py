"""LoRA: a low-rank sum beside a frozen projection.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, eq. (3). Options: the scale of rsLoRA (Kalajdzievski,
2023, https://arxiv.org/abs/2312.03732), the rates of LoRA+ (Hayou et al., ICML 2024,
https://arxiv.org/abs/2402.12354), and the starts of PiSSA (Meng et al., NeurIPS 2024,
https://arxiv.org/abs/2404.02948), SoMA (Yun et al., CVPR 2025,
https://arxiv.org/abs/2412.04077), OLoRA (Büyükakyüz, 2024,
https://arxiv.org/abs/2406.01775) and EVA (Paischer et al., 2024,
https://arxiv.org/abs/2410.07170).
Differs from the authors' code: none in the algebra. Folding is explicit here, not tied
to ``train()`` and ``eval()``. Starts that public code subtracts from the base are
subtracted in the delta, so that the base stays what it is. The ratio of LoRA+ is for B
alone, where public code gives it to every trained vector of the model. EVA keeps one
rank for all layers, and its principal components are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpetl.core import (
    ATTENTION,
    PROJECTIONS,
    Affine,
    Calibrated,
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    disabled,
    in_networks,
    inputs_and_labels,
    is_wider,
    kaiming_uniform_,
    one_epoch,
    places_of,
    suggest,
    warn_uncalibrated,
    watching,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    by_layer,
    in_pattern,
    number,
    pair_shapes,
    patterned,
)
from mmpetl.registry import METHODS

STARTS = ('zero', 'pissa', 'minor', 'qr', 'eva')
FROM_BASE = ('pissa', 'minor', 'qr')
"""Starts that are read off the base weight, and subtracted again."""


class LoRADelta(Delta):
    """``y + scale * drop(x) (B A - B0 A0)^T``.

    x: (B, N, in_dims), y: (B, N, out_dims); beside a convolution x: (B, C, *extents),
    y: (B, *out_extents, out_dims).  A: (rank, in_dims), B: (out_dims, rank). A0 and B0
    are what A and B started from where that was read off the base weight, so that the
    start is the base; otherwise there are none.
    """

    def __init__(
        self,
        site: Site,
        rank: int,
        scale: float,
        drop_rate: float,
        start: str,
        lr_ratio: float,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_dims))
        self.B = nn.Parameter(torch.zeros(site.out_dims, rank))
        self.site = site
        self.scale = scale
        self.start = start
        self.drop = Dropout(drop_rate)
        kaiming_uniform_(self.A)
        if lr_ratio != 1:
            self.lr_mults = {'B': lr_ratio}
        if start in FROM_BASE:
            self.register_buffer('A0', torch.zeros(rank, site.in_dims))
            self.register_buffer('B0', torch.zeros(site.out_dims, rank))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if self.start == 'eva':
            warn_uncalibrated(self, "LoRA with start='eva' keeps its random A")
        down, up = self.factors()
        low = self.low(x, down, ctx)
        return add_product(y, low, up, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Of the update: (k, in_dims) and (out_dims, k), k being rank or twice that.

        ``B A - B0 A0`` is ``(B - B0) A + B0 (A - A0)``, which is exactly zero at the
        start, and small in between without a difference of large products.
        """
        if self.start not in FROM_BASE:
            return self.A, self.B
        down = torch.cat((self.A, self.A - self.A0))
        return down, torch.cat((self.B - self.B0, self.B0), dim=1)

    def low(self, x: Tensor, down: Tensor, ctx: Context) -> Tensor:
        """``drop(x) down^T``, for a convolution on its patches: channels come last."""
        if self.site.kernel is not None:
            return convolve(self.drop(x), down, self.site)
        return product(x, down, ctx, self.drop)

    def begin(self, A0: Tensor, B0: Tensor) -> None:
        """Start from these factors, and subtract them."""
        sign = signs(A0)
        for own, value in ((self.A, A0 * sign[:, None]), (self.B, B0 * sign)):
            own.copy_(value)
        self.A0.copy_(self.A)
        self.B0.copy_(self.B)


def signs(rows: Tensor) -> Tensor:
    """Sign of the entry with the largest magnitude in each row, 1 or -1.

    Decompositions leave the signs of directions open. Times this, none depends on the
    library that computed them.
    """
    largest = rows.abs().argmax(dim=1, keepdim=True)
    return 1 - 2 * (rows.gather(1, largest).squeeze(1) < 0).to(rows.dtype)


def factors_of(
    weight: Tensor, rank: int, scale: float, start: str
) -> tuple[Tensor, Tensor]:
    """A0 (rank, in) and B0 (out, rank) of a base weight (out, in), in float64.

    ``'pissa'``: with ``W = U S V^T``, ``A0 = sqrt(S_r / scale) V_r^T`` and ``B0 = U_r
    sqrt(S_r / scale)`` of the largest singular values; ``'minor'``: of the smallest;
    ``'qr'``: the first rows of R and columns of Q of ``W = Q R``.
    """
    weight = weight.detach().to('cpu', torch.float64)
    if start == 'qr':
        Q, R = torch.linalg.qr(weight)
        return R[:rank], Q[:, :rank]
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    part = slice(rank) if start == 'pissa' else slice(len(S) - rank, None)
    root = (S[part] / scale).sqrt()
    return root[:, None] * Vh[part], U[:, part] * root


class Moments:
    """Sums of inputs and of their products, in float64: what a covariance needs."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in rows (..., in_dims)."""
        rows = x.detach().flatten(0, -2).double()
        self.count += len(rows)
        self.first = self.first + rows.sum(0)
        self.second = self.second + rows.T @ rows

    def directions(self, rank: int) -> Tensor:
        """Principal directions of the centred rows, the largest first: (rank, in)."""
        mean = self.first / self.count
        spread = (self.second / self.count - torch.outer(mean, mean)).cpu()
        rows = torch.linalg.eigh(spread).eigenvectors.T.flip(0)[:rank]
        return rows * signs(rows)[:, None]


class LoRAInPeft(PeftFormat):
    """``lora_A.weight`` and ``lora_B.weight`` are A and B.

    What acts at rows of a Linear, or has begun at factors of the base weight, is one
    sum of a larger rank there. At a convolution A is one of the same kernel, and B one
    of a single place.
    """

    kind = 'LORA'
    convolves = True
    names = ('lora_A.weight', 'lora_B.weight')
    reads = (
        'r',
        'lora_alpha',
        'lora_dropout',
        'use_rslora',
        'rank_pattern',
        'alpha_pattern',
        'init_lora_weights',
    )
    idle = ('runtime_config', 'megatron_core', 'qalora_group_size')

    def fits(self, config: Mapping[str, Any]) -> bool:
        return not config.get('use_dora')

    def why_not(self, config: Mapping[str, Any]) -> str:
        return changed_base(config)

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        return {
            'rank': by_layer({x.path: len(x.need(self.names[0])) for x in layers}),
            'alpha': by_layer({x.path: alpha_in(config, x) for x in layers}),
            'drop_rate': config.get('lora_dropout') or 0.0,
            'scaling': 'sqrt' if config.get('use_rslora') else 'rank',
        }

    def load(
        self, delta: LoRADelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        down, up = pair_shapes(delta.A, delta.B, layer.kernel)
        layer.take('lora_A.weight', delta.A, down)
        layer.take('lora_B.weight', delta.B, up)

    def write(self, method: LoRA, linears: Sequence[TunedLinear]) -> PeftAdapter:
        root = method.scaling == 'sqrt'
        layers, ranks, alphas = {}, {}, {}
        for linear in linears:
            down, up = zip(*(d.factors() for _, _, d in linear.parts), strict=True)
            # One factor for all: the largest, which may be no power of two.
            scale = max(d.scale for _, _, d in linear.parts)
            rank = sum(map(len, down))
            B = up[0].new_zeros(linear.out_dims, rank)
            column = 0
            for (start, stop, delta), part in zip(linear.parts, up, strict=True):
                share = delta.scale / scale if scale else 1.0
                B[start:stop, column : column + part.shape[1]] = part * share
                column += part.shape[1]
            A = torch.cat(down)
            shapes = pair_shapes(A, B, linear.kernel)
            layers[linear.path] = {
                'lora_A.weight': A.reshape(shapes[0]),
                'lora_B.weight': B.reshape(shapes[1]),
            }
            ranks[linear.path] = rank
            alphas[linear.path] = number(scale * (rank**0.5 if root else rank))
        r, rank_pattern = in_pattern(ranks)
        alpha, alpha_pattern = in_pattern(alphas)
        entries = {
            'r': r,
            'lora_alpha': alpha,
            'lora_dropout': method.drop_rate,
            'use_rslora': root,
            'rank_pattern': rank_pattern,
            'alpha_pattern': alpha_pattern,
        }
        return PeftAdapter(entries, layers)


def alpha_in(config: Mapping[str, Any], layer: PeftLayer) -> float:
    """``alpha`` of a layer in a config of peft, which has 8 by default."""
    return patterned(config, 'alpha_pattern', layer.name, config.get('lora_alpha', 8))


def changed_base(config: Mapping[str, Any]) -> str:
    """Why a start of peft's that is taken off the base weight has no equal here."""
    start = config.get('init_lora_weights', True)
    if isinstance(start, bool) or start in ('gaussian', 'eva', 'orthogonal'):
        return ''
    return (
        f'init_lora_weights={start!r} changes the base weights, which the file does '
        'not hold; save it with path_initial_model_for_weight_conversion'
    )


@METHODS.register_module()
class LoRA(Method):
    """Low-rank adaptation.

    Args:
        rank: Rank of the update, 1 <= rank < width. The benchmark uses 8 on VTAB-1k,
            16 on FGVC and 64 on dense tasks. By layer: ``{'*.attn.qkv': 16, '*': 4}``,
            where the first pattern that fits counts.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``. By
            layer as rank.
        drop_rate: Dropout on the input of the low-rank path.
        targets: Projections that get an update of their own. ``attn.qkv`` is one
            update of the fused projection, with A shared by q, k and v. A trunk without
            attention has no queries and values; there the default stands for both
            projections of its feed-forward networks. In a model that no file describes
            every Linear and convolution has one.
        scaling: ``'sqrt'`` scales by ``alpha / sqrt(rank)``, as rsLoRA.
        lr_ratio: Factor of the learning rate of B, as LoRA+ (16 there, with a smaller
            rate); :class:`~mmpetl.engine.OwnerOptimWrapperConstructor` applies it.
        start: What A and B start from. ``'zero'``: A drawn, B zero. ``'pissa'`` and
            ``'minor'`` (SoMA): the largest and smallest singular directions of the base
            weight; ``'qr'`` (OLoRA): its QR decomposition. ``'eva'``: A from the
            principal directions of the inputs over the training data
            (:meth:`calibrate`, which ``mmpetl.CalibrationHook`` runs), B zero.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank', 'alpha')
    peft = LoRAInPeft()
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        drop_rate: float = 0.0,
        targets: Sequence[str] = ATTENTION,
        scaling: Literal['rank', 'sqrt'] = 'rank',
        lr_ratio: float = 1.0,
        start: Literal['zero', 'pissa', 'minor', 'qr', 'eva'] = 'zero',
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        check_range(self, 'lr_ratio', lr_ratio, 0)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        for name, value, known in (
            ('scaling', scaling, ('rank', 'sqrt')),
            ('start', start, STARTS),
        ):
            if value not in known:
                raise PETLError(
                    f'LoRA needs {name} {" or ".join(known)}, got {value!r}.'
                    f'{suggest(str(value), known)}'
                )
        if start in ('pissa', 'minor') and alpha == 0:
            raise PETLError(
                f'LoRA with start={start!r} divides by its scale, so it needs alpha '
                'above 0, got 0'
            )
        self.rank = rank
        self.alpha = alpha
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)
        self.scaling = scaling
        self.lr_ratio = lr_ratio
        self.start = start

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    @property
    def scale(self) -> float:
        """``alpha / rank``, or ``alpha / sqrt(rank)``."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank if self.scaling == 'rank' else self.rank**0.5)

    def mixed(self, others: Sequence[LoRA]) -> LoRA:
        """One of the sum of the ranks, without dropout."""
        ranks = [one._ranks() for one in (self, *others)]
        if any(list(r) != list(ranks[0]) for r in ranks):
            raise PETLError(
                'LoRA has ranks by layer under different patterns in these slots; a '
                'sum has one rank for each layer'
            )
        rank = {pattern: sum(r[pattern] for r in ranks) for pattern in ranks[0]}
        by_layer = isinstance(self.rank, Mapping)
        return LoRA(rank=rank if by_layer else rank['*'], targets=self.targets)

    def _ranks(self) -> dict[str, int]:
        """Rank of the whole update, with what is subtracted, by pattern."""
        times = 2 if self.start in FROM_BASE else 1
        ranks = self.rank if isinstance(self.rank, Mapping) else {'*': self.rank}
        return {pattern: times * rank for pattern, rank in ranks.items()}

    def mix(self, into: LoRADelta, parts: Sequence[tuple[float, LoRADelta]]) -> None:
        down, up = zip(*(delta.factors() for _, delta in parts), strict=True)
        into.A.copy_(torch.cat(down))
        scaled = [
            factor.double() * (weight * delta.scale / into.scale)
            for factor, (weight, delta) in zip(up, parts, strict=True)
        ]
        into.B.copy_(torch.cat(scaled, dim=1))

    @property
    def calibrates(self) -> bool:
        """Only the directions of the inputs need data."""
        return self.start == 'eva'

    def share(self, sites: list[Site]) -> Calibrated | None:
        return Calibrated() if self.calibrates else None

    def build(self, site: Site) -> LoRADelta:
        return LoRADelta(
            site, self.rank, self.scale, self.drop_rate, self.start, self.lr_ratio
        )

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[..., Affine]
    ) -> None:
        if self.start not in FROM_BASE:
            return
        for site, delta in deltas.items():
            affine = weights(site.host, site.kind, site.index)
            affine.check_readable()
            if not affine.weight.is_meta:
                rank, scale = len(delta.A), delta.scale
                delta.begin(*factors_of(affine.weight, rank, scale, self.start))

    @torch.no_grad()
    def calibrate(self, backbone: nn.Module, batches: Iterable[Any]) -> None:
        """Start every A from the principal directions of what enters its projection.

        The frozen model runs in eval mode without the method. Every token counts,
        centred by the mean over all; a convolution counts its patches.

        Raises:
            PETLError: There are no data.
        """
        place = Place(backbone, self)
        module, training = place.module, backbone.training
        moments = {site: Moments() for site in place.sites}

        def look(site: Site) -> Callable[[Tensor, Tensor, Context], None]:
            def add(x: Tensor, y: Tensor, ctx: Context) -> None:
                moments[site].add(x if site.kernel is None else places_of(x, site))

            return add

        backbone.eval()
        try:
            with (
                disabled(module, place.slot),
                watching(module, {site: look(site) for site in place.sites}),
            ):
                for (batch,) in one_epoch(batches):
                    module(inputs_and_labels(backbone, module, batch)[0])
        finally:
            backbone.train(training)
        for site, seen in moments.items():
            if not seen.count:
                raise PETLError(
                    f"LoRA with start='eva' reads directions off data, and none pass "
                    f'{site}'
                )
            A = place.delta(site).A
            A.copy_(seen.directions(len(A)))
        place.shared.done.fill_(True)

    def fold(self, site: Site, delta: LoRADelta, affine: Affine) -> None:
        down, up = (factor.double() for factor in delta.factors())
        affine.add_(up @ down * delta.scale)
