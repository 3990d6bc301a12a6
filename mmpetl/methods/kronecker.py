"""LoKr, LoHa, KAdaptation and Compacter: weights made of products of small matrices.

Papers: Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning
to Model Evaluation", ICLR 2024, https://arxiv.org/abs/2309.14859 (LoKr, LoHa); LoHa is
Hyeon-Woo et al., "FedPara", ICLR 2022, https://arxiv.org/abs/2108.06098; He et al.,
"Parameter-efficient Model Adaptation for Vision Transformers", AAAI 2023,
https://arxiv.org/abs/2203.16329 (KAdaptation); Karimi Mahabadi et al., "Compacter:
Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021,
https://arxiv.org/abs/2106.04647.
Differs from the code in PEFT (LoKr, LoHa): nothing in the algebra; no increment is
built in training. Differs from the authors' code of KAdaptation: there both factors of
every block start at zero, so that nothing but a bias ever trains, values have the
factors of queries, the scale is 160, and dropout acts on the increment. Here the first
factors are drawn, values have their own, the scale is an argument, and there is no
dropout. Compacter has no code for vision with a published figure: place and start are
ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    ATTENTION,
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    in_networks,
    is_wider,
    kaiming_uniform_,
)
from mmpetl.core.bottleneck import ACTIVATIONS
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
    patterned,
)
from mmpetl.registry import METHODS

LOKR_INITS = ('peft', 'lycoris')


def split_dims(dims: int, factor: int) -> tuple[int, int]:
    """``dims = a * b`` with ``a <= b``.

    Args:
        dims: What is split.
        factor: One of the two if it divides ``dims``, else the most that a may be; -1
            for the split nearest to a square.
    """
    if factor > 0 and dims % factor == 0:
        return min(factor, dims // factor), max(factor, dims // factor)
    most = min(int(dims**0.5), factor if factor > 0 else dims)
    a = max(n for n in range(1, most + 1) if dims % n == 0)
    return a, dims // a


class Factor(nn.Module):
    """One side of a Kronecker product, whole (``whole``) or of low rank (``A B``).

    Args:
        rows: Of the matrix.
        columns: Likewise.
        rank: Of the product ``A B``; None for a whole matrix.
        zero: ``'A'`` or ``'B'``: the matrix starts at zero, and it is that one of two;
            None: it does not. Other tensors are Kaiming-uniform.
    """

    def __init__(
        self, rows: int, columns: int, rank: int | None, zero: str | None
    ) -> None:
        super().__init__()
        self.rank = rank
        shapes = {'whole': (rows, columns)}
        if rank is not None:
            shapes = {'A': (rows, rank), 'B': (rank, columns)}
        for name, shape in shapes.items():
            tensor = nn.Parameter(torch.zeros(shape))
            if zero is None or name not in ('whole', zero):
                kaiming_uniform_(tensor)
            self.register_parameter(name, tensor)

    def across(self, x: Tensor) -> Tensor:
        """The matrix times the axis in front of the last: (..., columns, k)."""
        if self.rank is None:
            return self.whole @ x
        return self.A @ (self.B @ x)

    def narrow(self, x: Tensor, site: Site | None = None) -> Tensor:
        """The first product, or the only one; a convolution where a site is given."""
        matrix = self.whole if self.rank is None else self.B
        return F.linear(x, matrix) if site is None else convolve(x, matrix, site)

    def widen(self, y: Tensor) -> Tensor:
        """What is left to do behind :meth:`narrow`."""
        return y if self.rank is None else F.linear(y, self.A)

    def matrix(self) -> Tensor:
        """(rows, columns), float64."""
        if self.rank is None:
            return self.whole.double()
        return self.A.double() @ self.B.double()

    def extra_repr(self) -> str:
        """Whether it is whole, which its size decides."""
        if self.rank is None:
            return f'{tuple(self.whole.shape)}, whole'
        return f'{(len(self.A), self.B.shape[1])}, of rank {self.rank}'


class LoKrDelta(Delta):
    """``y + scale * (W1 (x) W2) x``, with W1 (l, m) and W2 (k, n).

    x: (B, N, m n), y: (B, N, l k). Beside a convolution x is a map of m times some
    channels, and W2 is a convolution of these.
    """

    def __init__(self, site: Site, method: LoKr) -> None:
        super().__init__()
        self.site = site
        self.rank = method.rank
        self.scale = method.scale
        places = math.prod(site.kernel or ())
        out_small, out_large = split_dims(site.out_dims, method.factor)
        in_small, in_large = split_dims(site.in_dims // places, method.factor)
        small = low_enough(method.rank, out_small, in_small)
        large = low_enough(method.rank, out_large, in_large)
        in_peft = method.init == 'peft'
        self.W1 = Factor(
            out_small,
            in_small,
            small if method.decompose_both else None,
            'A' if in_peft else None,
        )
        self.W2 = Factor(out_large, in_large * places, large, None if in_peft else 'B')
        self.in_small = in_small

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if self.site.kernel is None:
            h = self.W2.narrow(x.unflatten(-1, (self.in_small, -1)))
        else:
            channels = -1 - len(self.site.kernel)
            maps = x.unflatten(channels, (self.in_small, -1))
            lead = maps.shape[:channels]  # maybe images, and the parts of their maps
            h = self.W2.narrow(maps.flatten(0, len(lead) - 1), self.site)
            h = h.unflatten(0, lead).movedim(len(lead) - 1, -2)
        # W1 acts along another axis, so it may act where W2 is at its narrowest.
        h = self.W1.across(h)
        return torch.add(y, self.W2.widen(h).flatten(-2), alpha=self.scale)

    def increment(self) -> Tensor:
        """What it adds to the weight, (out_dims, in_dims), float64."""
        return torch.kron(self.W1.matrix(), self.W2.matrix()) * self.scale


def low_enough(rank: int, rows: int, columns: int) -> int | None:
    """The rank of a side; None where it is half of the longer edge or more."""
    return rank if rank < max(rows, columns) / 2 else None


class ProductDelta(Delta):
    """``y + scale * B A x`` with A and B that are made of smaller tensors.

    x: (B, N, in_dims), or a map in front of a convolution; y: (B, N, out_dims).
    """

    site: Site
    scale: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (rank, in_dims) and B (out_dims, rank)."""
        raise NotImplementedError

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        a, b = self.factors()
        if self.site.kernel is None:
            low = product(x, a, ctx)
        else:
            low = convolve(x, a, self.site)
        return add_product(y, low, b, self.scale)

    def increment(self) -> Tensor:
        """What it adds to the weight, (out_dims, in_dims), float64."""
        a, b = self.factors()
        return b.double() @ a.double() * self.scale


class LoHaDelta(ProductDelta):
    """``y + scale * ((B1 A1) * (B2 A2)) x``, the product entry by entry.

    It has rank at most rank ** 2: the rows of A are all products of a row of A1 and one
    of A2, the columns of B likewise.
    """

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.site, self.scale = site, scale
        self.A1 = nn.Parameter(torch.empty(rank, site.in_dims))
        self.B1 = nn.Parameter(torch.empty(site.out_dims, rank))
        self.A2 = nn.Parameter(torch.zeros(rank, site.in_dims))
        self.B2 = nn.Parameter(torch.empty(site.out_dims, rank))
        for tensor in (self.A1, self.B1, self.B2):
            kaiming_uniform_(tensor)

    def factors(self) -> tuple[Tensor, Tensor]:
        a = self.A1[:, None] * self.A2
        b = self.B1[:, :, None] * self.B2[:, None]
        return a.flatten(0, 1), b.flatten(1)


class RankOneRules(nn.Module):
    """``S_i = a_i b_i``, n matrices of (n, n) and rank one, uniform near zero.

    ``a`` and ``b``: (n, n), a row for each.
    """

    def __init__(self, num_factors: int) -> None:
        super().__init__()
        shape = num_factors, num_factors
        self.a = nn.Parameter(torch.empty(shape).uniform_(-0.01, 0.01))
        self.b = nn.Parameter(torch.empty(shape).uniform_(-0.01, 0.01))


def home_of(site: Site) -> str:
    """Name of the shift that projections of one module share."""
    return f'{site.host.replace(".", "_")}_{site.out_dims}'


class KAdaptationDelta(ProductDelta):
    """``y + scale * x H + beta`` with ``H = sum_i S_i (x) (u_i v_i)``.

    S_i: (n, n), shared by all blocks; u_i: (in_dims / n, rank) and v_i: (rank, out_dims
    / n), of this block. beta: (out_dims,), shared by the projections of a block. As S_i
    is ``a_i b_i``, H is the product of ``a_i (x) u_i`` and ``b_i (x) v_i``.
    """

    def __init__(self, site: Site, num_factors: int, rank: int, scale: float) -> None:
        super().__init__()
        self.site, self.scale = site, scale
        rows, columns = site.in_dims // num_factors, site.out_dims // num_factors
        self.u = nn.Parameter(torch.empty(num_factors, rows, rank).normal_(std=0.02))
        self.v = nn.Parameter(torch.zeros(num_factors, rank, columns))

    def factors(self) -> tuple[Tensor, Tensor]:
        rules = self.shared.rules[self.site.key]
        a = torch.einsum('ia,ibr->irab', rules.a, self.u)
        b = torch.einsum('ic,ird->cdir', rules.b, self.v)
        return a.flatten(2).flatten(0, 1), b.flatten(2).flatten(0, 1)

    def beta(self) -> Tensor:
        """(out_dims,)."""
        return self.shared.beta[home_of(self.site)]

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return super().after(x, y, ctx) + self.beta()


class SharedRules(nn.Module):
    """Rules for each kind of projection, and a shift for each module that has some."""

    def __init__(self, sites: list[Site], num_factors: int) -> None:
        super().__init__()
        kinds = dict.fromkeys(site.key for site in sites)
        self.rules = nn.ModuleDict({kind: RankOneRules(num_factors) for kind in kinds})
        homes = {home_of(site): torch.zeros(site.out_dims) for site in sites}
        self.beta = nn.ParameterDict(homes)


class Rules(nn.Module):
    """``S_i``, n whole matrices of (n, n), normal with deviation n ** -0.5."""

    def __init__(self, num_factors: int) -> None:
        super().__init__()
        shape = (num_factors,) * 3
        self.S = nn.Parameter(torch.empty(shape).normal_(std=num_factors**-0.5))


class HypercomplexLinear(nn.Module):
    """``x H + bias`` with ``H = sum_i S_i (x) (u_i v_i)``, (in_dims, out_dims).

    u_i: (in_dims / n, rank), v_i: (rank, out_dims / n). With ``zero`` v starts there,
    else H starts with the deviation in_dims ** -0.5 of its entries.
    """

    def __init__(
        self, in_dims: int, out_dims: int, num_factors: int, rank: int, zero: bool
    ) -> None:
        super().__init__()
        n, std = num_factors, (in_dims * rank) ** -0.25
        self.u = nn.Parameter(torch.empty(n, in_dims // n, rank).normal_(std=std))
        self.v = nn.Parameter(torch.zeros(n, rank, out_dims // n))
        self.bias = nn.Parameter(torch.zeros(out_dims))
        if not zero:
            nn.init.normal_(self.v, std=std)

    def forward(self, x: Tensor, rules: Tensor) -> Tensor:
        """(..., in_dims) -> (..., out_dims), with the rules S, (n, n, n)."""
        h = torch.einsum('iac,ibd->cdab', rules, self.u @ self.v)
        return F.linear(x, h.flatten(2).flatten(0, 1), self.bias)


class CompacterDelta(Delta):
    """``y + Wu drop(act(Wd y + bd)) + bu``, both products of shared and own factors.

    y: (B, N, C), what leaves a sub-layer.
    """

    def __init__(self, site: Site, method: Compacter) -> None:
        super().__init__()
        dims, hidden = site.out_dims, method.hidden_dims
        n, rank = method.num_factors, method.rank
        self.down = HypercomplexLinear(dims, hidden, n, rank, zero=False)
        self.act = ACTIVATIONS[method.activation]()
        self.drop = Dropout(method.drop_rate)
        self.up = HypercomplexLinear(hidden, dims, n, rank, zero=True)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        rules = self.shared.S
        return y + self.up(self.drop(self.act(self.down(y, rules))), rules)


class LycorisInPeft(PeftFormat):
    """What LoHa and LoKr share."""

    reads = ('r', 'alpha', 'rank_pattern', 'alpha_pattern')
    idle = ('init_weights', 'use_effective_conv2d', 'rank_dropout_scale')
    training = ('rank_dropout', 'module_dropout')

    def alphas(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, float]:
        """Alpha of each layer, where peft has 8 by default."""
        alpha = config.get('alpha', 8)
        return {
            x.path: patterned(config, 'alpha_pattern', x.name, alpha) for x in layers
        }


class LoHaInPeft(LycorisInPeft):
    """``hada_w1_a`` is B1, ``hada_w1_b`` A1, and likewise of the second product."""

    kind = 'LOHA'
    names = ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b')

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        ranks = {x.path: len(x.need('hada_w1_b')) for x in layers}
        return {
            'rank': by_layer(ranks),
            'alpha': by_layer(self.alphas(config, layers)),
        }

    def load(
        self, delta: LoHaDelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        for name, tensor in zip(self.names, self.of(delta), strict=True):
            layer.take(name, tensor)

    def write(self, method: LoHa, linears: Sequence[TunedLinear]) -> PeftAdapter:
        deltas = {x.path: x.whole('LoHa') for x in linears}
        ranks = {path: len(d.A1) for path, d in deltas.items()}
        alphas = {k: number(d.scale * ranks[k]) for k, d in deltas.items()}
        r, rank_pattern = in_pattern(ranks)
        alpha, alpha_pattern = in_pattern(alphas)
        layers = {
            path: dict(zip(self.names, self.of(d), strict=True))
            for path, d in deltas.items()
        }
        entries = {
            'r': r,
            'alpha': alpha,
            'rank_pattern': rank_pattern,
            'alpha_pattern': alpha_pattern,
        }
        return PeftAdapter(entries, layers)

    @staticmethod
    def of(delta: LoHaDelta) -> tuple[Tensor, ...]:
        """Its tensors in the order of the names."""
        return delta.B1, delta.A1, delta.B2, delta.A2


class LoKrInPeft(LycorisInPeft):
    """``lokr_w1`` and ``lokr_w2``, or ``_a`` and ``_b`` where a side has low rank."""

    kind = 'LOKR'
    names = (
        'lokr_w1',
        'lokr_w1_a',
        'lokr_w1_b',
        'lokr_w2',
        'lokr_w2_a',
        'lokr_w2_b',
    )
    reads = (*LycorisInPeft.reads, 'decompose_both', 'decompose_factor')

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        r = config.get('r', 8)
        ranks = {x.path: patterned(config, 'rank_pattern', x.name, r) for x in layers}
        return {
            'rank': by_layer(ranks),
            'alpha': by_layer(self.alphas(config, layers)),
            'factor': config.get('decompose_factor', -1),
            'decompose_both': bool(config.get('decompose_both')),
        }

    def load(
        self, delta: LoKrDelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        for name, tensor in self.of(delta).items():
            layer.take(name, tensor)

    def write(self, method: LoKr, linears: Sequence[TunedLinear]) -> PeftAdapter:
        deltas = {x.path: x.whole('LoKr') for x in linears}
        ranks = {path: d.rank for path, d in deltas.items()}
        alphas = {k: number(d.scale * ranks[k]) for k, d in deltas.items()}
        r, rank_pattern = in_pattern(ranks)
        alpha, alpha_pattern = in_pattern(alphas)
        entries = {
            'r': r,
            'alpha': alpha,
            'rank_pattern': rank_pattern,
            'alpha_pattern': alpha_pattern,
            'decompose_both': method.decompose_both,
            'decompose_factor': method.factor,
        }
        return PeftAdapter(entries, {path: self.of(d) for path, d in deltas.items()})

    @staticmethod
    def of(delta: LoKrDelta) -> dict[str, Tensor]:
        """Its tensors by peft's names."""
        found = {}
        for side, factor in (('lokr_w1', delta.W1), ('lokr_w2', delta.W2)):
            if factor.rank is None:
                found[side] = factor.whole
            else:
                found |= {f'{side}_a': factor.A, f'{side}_b': factor.B}
        return found


@METHODS.register_module()
class LoKr(Method):
    """Increments that are Kronecker products.

    Args:
        rank: Rank of the larger side, at least 1. A side whose longer edge is at most
            twice the rank is whole; the scale stays. By layer: ``{'*.attn.q': 16,
            '*': 4}``, where the first pattern that fits counts.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``. By
            layer as rank.
        factor: How widths are split: one of the two parts where it divides the width,
            else the most that the smaller part may be; -1 as near to a square as the
            width allows.
        decompose_both: Whether the smaller side has low rank too.
        init: ``'peft'``: the smaller side starts at zero, ``'lycoris'``: the larger.
        targets: Projections with an increment of their own. A trunk without attention
            has no queries and values; there the default stands for both projections of
            its feed-forward networks. In a model that no file describes every Linear
            and convolution has one.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank', 'alpha')
    peft = LoKrInPeft()
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        factor: int = -1,
        decompose_both: bool = False,
        init: Literal['peft', 'lycoris'] = 'peft',
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        check_range(self, 'factor', factor, -1)
        if factor == 0:
            raise PETLError('LoKr needs factor of at least 1, or -1, got 0')
        if init not in LOKR_INITS:
            raise PETLError(f'LoKr needs init {" or ".join(LOKR_INITS)}, got {init!r}')
        self.rank = rank
        self.alpha = alpha
        self.factor = factor
        self.decompose_both = decompose_both
        self.init = init
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def build(self, site: Site) -> LoKrDelta:
        return LoKrDelta(site, self)

    def fold(self, site: Site, delta: LoKrDelta, affine: Affine) -> None:
        affine.add_(delta.increment())


@METHODS.register_module()
class LoHa(Method):
    """Increments that are products of two low-rank matrices, entry by entry.

    Args:
        rank: Rank of each of the two, 1 <= rank < width; their product may have its
            square. By layer as in :class:`LoKr`.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``.
        targets: As in :class:`LoKr`.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank', 'alpha')
    peft = LoHaInPeft()
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        self.rank = rank
        self.alpha = alpha
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    def build(self, site: Site) -> LoHaDelta:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return LoHaDelta(site, self.rank, scale)

    def fold(self, site: Site, delta: LoHaDelta, affine: Affine) -> None:
        affine.add_(delta.increment())


def check_divides(method: Method, num_factors: int, widths: dict[str, int]) -> None:
    """PETLError names the first width that num_factors does not divide.

    Args:
        method: Who asks.
        num_factors: Number n of factors.
        widths: Widths by what they are of.
    """
    for what, dims in widths.items():
        if dims % num_factors:
            raise PETLError(
                f'{type(method).__name__} needs num_factors that divides the width '
                f'({dims} of {what}), got {num_factors}'
            )


@METHODS.register_module()
class KAdaptation(Method):
    """Increments that are sums of Kronecker products with factors of all blocks.

    Args:
        num_factors: Number n of products; it divides the widths. 32 in the authors'
            code.
        rank: Rank of the factors of a block, 1 in the authors' code. By layer as in
            :class:`LoKr`.
        scale: Factor of the increments.
        targets: Projections with an increment, each kind with rules of its own. A
            trunk without attention has no queries and values; there the default stands
            for both projections of its feed-forward networks. In a model that no file
            describes every Linear has one.
    """

    leaf_kinds = ('layer.linear',)
    sized = ('rank',)
    family = 'reparameterisation'

    def __init__(
        self,
        num_factors: int = 32,
        rank: int = 1,
        scale: float = 1.0,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'num_factors', num_factors, 1)
        check_range(self, 'rank', rank, 1)
        check_range(self, 'scale', scale, 0)
        self.num_factors = num_factors
        self.rank = rank
        self.scale = scale
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            widths = {f'what enters {site}': site.in_dims}
            widths[f'what leaves {site}'] = site.out_dims
            check_divides(self, self.num_factors, widths)

    def share(self, sites: list[Site]) -> SharedRules:
        return SharedRules(sites, self.num_factors)

    def build(self, site: Site) -> KAdaptationDelta:
        return KAdaptationDelta(site, self.num_factors, self.rank, self.scale)

    def fold(self, site: Site, delta: KAdaptationDelta, affine: Affine) -> None:
        affine.add_(delta.increment())
        affine.shift_(delta.beta())


@METHODS.register_module()
class Compacter(Method):
    """Adapters whose projections are sums of Kronecker products.

    They stand behind attention and behind the feed-forward network, as Houlsby's do.

    Args:
        hidden_dims: Width of the bottleneck, 48 in the paper.
        num_factors: Number n of products; it divides both widths. 4 in the paper.
        rank: Rank of the factors of an adapter, 1 in the paper.
        activation: ``'gelu'`` or ``'relu'``.
        drop_rate: Dropout in the bottleneck.
    """

    targets = ('attn', 'ffn')
    family = 'adapter'
    across = True
    placed = ''
    sized = ('hidden_dims',)

    def __init__(
        self,
        hidden_dims: int = 48,
        num_factors: int = 4,
        rank: int = 1,
        activation: Literal['gelu', 'relu'] = 'gelu',
        drop_rate: float = 0.0,
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'num_factors', num_factors, 1)
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if activation not in ACTIVATIONS:
            raise PETLError(
                f'Compacter needs activation {" or ".join(ACTIVATIONS)}, '
                f'got {activation!r}'
            )
        self.hidden_dims = hidden_dims
        self.num_factors = num_factors
        self.rank = rank
        self.activation = activation
        self.drop_rate = drop_rate

    def check(self, sites: list[Site]) -> None:
        widths = {f'what leaves {site}': site.out_dims for site in sites}
        widths['the bottleneck'] = self.hidden_dims
        check_divides(self, self.num_factors, widths)

    def share(self, sites: list[Site]) -> Rules:
        return Rules(self.num_factors)

    def build(self, site: Site) -> CompacterDelta:
        return CompacterDelta(site, self)
