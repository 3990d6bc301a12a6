"""OFT and BOFT: the input of a frozen projection is rotated.

Papers: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
NeurIPS 2023, https://arxiv.org/abs/2306.07280; Liu et al., "Parameter-Efficient
Orthogonal Finetuning via Butterfly Factorization", ICLR 2024,
https://arxiv.org/abs/2311.06243.
Read beside the papers: the tuners ``oft`` and ``boft`` of PEFT, which rotate inputs
too. Differs from them: the Cayley transform is exact by default, and not a series that
is only nearly orthogonal; the bound of constrained OFT acts on the rotation in use, and
leaves the parameters alone; BOFT stores the free numbers of its blocks alone, and has
all its factors on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    autocasts,
    check_kinds,
    check_range,
    uncast,
)
from mmpetl.core.input_change import (
    INSTEAD,
    FrontDelta,
    InputChange,
    RowsDelta,
    changed_input,
    fold_change,
    only_after,
)
from mmpetl.core.lean import FULL, scale_shift
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    alone,
    by_layer,
    triangle,
)
from mmpetl.registry import METHODS

WIDE = 64
"""So many channels a product of butterfly factors may mix to be written as one."""


def is_exact(x: Tensor) -> bool:
    """Whether a product keeps all digits of x; a GPU may multiply with fewer (TF32)."""
    return x.is_cpu and x.dtype in FULL and not autocasts(x)


def unit(size: int, like: Tensor) -> Tensor:
    """The identity, (size, size), in dtype and on device of another tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def skew(upper: Tensor, size: int) -> Tensor:
    """``Q = U - U^T``, (..., size, size), from the upper triangle row by row."""
    row, column = torch.triu_indices(size, size, 1, device=upper.device)
    full = upper.new_zeros(*upper.shape[:-1], size, size)
    full[..., row, column] = upper
    return full - full.mT


def cayley(Q: Tensor, whole: bool = False) -> Tensor:
    """``R - I`` of ``R = (I - Q) (I + Q)^-1``, orthogonal for a skew-symmetric Q.

    Args:
        Q: (..., size, size).
        whole: Give R itself.
    """
    one = unit(Q.shape[-1], Q)
    solve = eliminated if torch.onnx.is_in_onnx_export() else torch.linalg.solve
    return solve(one + Q, one - Q if whole else -2 * Q)


def eliminated(A: Tensor, B: Tensor) -> Tensor:
    """``A^-1 B`` by elimination, in sums and products, which ONNX has.

    A: (..., n, n) with a symmetric part that is the identity, as ``I + Q`` has. So has
    what is left of it behind each step, or more, and no pivot is small.
    """
    n = A.shape[-1]
    M, one = torch.cat((A, B), dim=-1), unit(n, A)
    for k in range(n):
        row = M[..., k : k + 1, :] / M[..., k : k + 1, k : k + 1]
        # The row itself becomes `row`, and all others lose their part of it.
        M = M - (M[..., k : k + 1] - one[:, k : k + 1]) * row
    return M[..., n:]


def neumann(Q: Tensor) -> Tensor:
    """``R - I`` of ``R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4``, near the transform of -Q."""
    square = Q @ Q
    return 2 * (Q + square + square @ Q) + square @ square


class Rotations(InputChange):
    """Orthogonal blocks ``R_j`` that start at I: ``C = blockdiag(R_1, ..., R_k) - I``.

    ``upper``: (blocks, size (size - 1) / 2), the free numbers of each ``Q_j``.
    """

    def __init__(
        self,
        blocks: int,
        size: int,
        series: bool = False,
        max_norm: float | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.upper = nn.Parameter(torch.zeros(blocks, size * (size - 1) // 2))
        self.size = size
        self.series = series
        self.max_norm = max_norm
        self.drop_rate = drop_rate

    def turns(self, dtype: torch.dtype, whole: bool = False) -> Tensor:
        """``R_j - I``, (blocks, size, size), or R_j; computed and given in a dtype."""
        Q = skew(self.upper.to(dtype), self.size)
        if self.max_norm is not None:
            norm = torch.linalg.vector_norm(Q, dim=(-2, -1), keepdim=True)
            Q = Q * (self.max_norm / norm.clamp(min=self.max_norm))
        if self.series:
            return neumann(Q) + unit(self.size, Q) if whole else neumann(Q)
        return cayley(Q, whole)

    def drawn(self, dtype: torch.dtype, whole: bool = False) -> Tensor:
        """The same for a forward pass in a dtype: some blocks stay in training."""
        with uncast(self.upper):
            # No half kernel solves.
            full = torch.promote_types(self.upper.dtype, torch.float32)
            turns = self.turns(full, whole)
        if self.training and self.drop_rate:
            chance = torch.rand(len(turns), 1, 1, device=turns.device)
            rest = unit(self.size, turns) if whole else torch.zeros_like(turns)
            turns = torch.where(chance >= self.drop_rate, turns, rest)
        return turns.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return by_blocks(x, self.drawn(x.dtype))

    def added(self, x: Tensor) -> Tensor:
        if not is_exact(x):
            return super().added(x)
        return by_blocks(x, self.drawn(x.dtype, whole=True))

    def of_weight(self, weight: Tensor) -> Tensor:
        return by_blocks(weight, self.turns(weight.dtype).mT)


class Butterfly(Rotations):
    """``C = B_m ... B_1 - I`` with ``B_i = P_i blockdiag(R_i1, ..., R_ik) P_i^T``.

    ``P_i`` sorts, inside of each group of ``2^(i - 1)`` blocks, the halves of blocks:
    even ones first. So the i-th factor mixes halves that are that far apart, as in a
    fast Fourier transform.
    """

    def __init__(
        self, blocks: int, size: int, factors: int, drop_rate: float = 0.0
    ) -> None:
        super().__init__(factors * blocks, size, drop_rate=drop_rate)
        self.factors = factors

    @property
    def width(self) -> int:
        """So many channels, one behind the other, all factors together stay within."""
        return self.size * 2 ** (self.factors - 1)

    def forward(self, x: Tensor) -> Tensor:
        turns = self.drawn(x.dtype)
        if self.width > WIDE:
            return self.one_by_one(x, turns)
        return by_blocks(x, self.product(x, turns))

    def added(self, x: Tensor) -> Tensor:
        if not is_exact(x) or self.width > WIDE:
            return x + self(x)
        blocks = self.product(x, self.drawn(x.dtype))
        return by_blocks(x, blocks + unit(self.width, x))

    def product(self, x: Tensor, turns: Tensor) -> Tensor:
        """C as blocks of its own, (k, width, width): one pass over the features."""
        one = unit(self.width, x).repeat(1, x.shape[-1] // self.width)
        rows = self.one_by_one(one, turns)
        return rows.unflatten(-1, (-1, self.width)).transpose(0, 1)

    def one_by_one(self, x: Tensor, turns: Tensor) -> Tensor:
        """``x C``, factor by factor."""
        own, added = turns.chunk(self.factors), torch.zeros_like(x)
        for i in reversed(range(self.factors)):
            added = added + self.factor(x + added, own[i], i)
        return added

    def of_weight(self, weight: Tensor) -> Tensor:
        turns, added = self.turns(weight.dtype).chunk(self.factors), 0
        for i in range(self.factors):
            added = added + self.factor(weight + added, turns[i].mT, i)
        return added

    def factor(self, x: Tensor, blocks: Tensor, i: int) -> Tensor:
        """``x P blockdiag(M_1, ..., M_k) P^T`` for the permutation of factor i + 1."""
        half = self.size // 2
        if i == 0:
            return by_blocks(x, blocks)
        # Halves 0 1 2 3 ... of a group are even and odd in turn where they lie, and
        # apart where blocks see them.
        apart = x.unflatten(-1, (-1, 2, 2**i, half)).transpose(-3, -2).flatten(-4)
        y = by_blocks(apart, blocks)
        return y.unflatten(-1, (-1, 2**i, 2, half)).transpose(-3, -2).flatten(-4)


def by_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """``x blockdiag(M_1, ..., M_k)``; a single block meets all groups of channels.

    x: (..., C), blocks: (k, size, size) or (1, size, size).
    """
    groups = x.unflatten(-1, (-1, blocks.shape[-1]))
    if len(blocks) == 1:
        return (groups @ blocks[0]).flatten(-2)
    return torch.einsum('...ki,kij->...kj', groups, blocks).flatten(-2)


class BOFTDelta(FrontDelta):
    """``s * (W R^T x) + b``, the rotation in front and s, (out_dims,), behind.

    x: (B, N, in_dims), y: (B, N, out_dims).
    """

    reads_base = True

    def __init__(self, change: InputChange, site: Site) -> None:
        super().__init__(change)
        self.kind = site.kind
        self.s = nn.Parameter(torch.ones(site.out_dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        bias = self.own(ctx.affine(self.kind).full_bias())
        return scaling(y, self.s, bias, ctx)


class BOFTRowsDelta(RowsDelta):
    """The same where others read the projection's input too.

    x: (..., in_dims), y: (..., out_dims).
    """

    def __init__(self, change: InputChange, site: Site) -> None:
        super().__init__(change, site.kind)
        self.s = nn.Parameter(torch.ones(site.out_dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        base = ctx.affine(self.kind)
        turned = F.linear(self.changed(x), self.own(base.weight))
        return scaling(y + turned, self.s, self.own(base.full_bias()), ctx)


def scaling(y: Tensor, s: Tensor, bias: Tensor, ctx: Context) -> Tensor:
    """``s * (y - b) + b``, which is y bit for bit where s is one."""
    # No `1 - s`: ONNX's exporter trips over a parameter and a number.
    return scale_shift(y, s, (torch.ones_like(s) - s) * bias, ctx.output_kept)


class OFTInPeft(PeftFormat):
    """``oft_R.weight`` has the free numbers of each block in our order."""

    kind = 'OFT'
    names = ('oft_R.weight',)
    reads = (
        'r',
        'oft_block_size',
        'block_share',
        'use_cayley_neumann',
        'num_cayley_neumann_terms',
        'module_dropout',
        'coft',
    )
    idle = ('init_weights', 'eps')

    def why_not(self, config: Mapping[str, Any]) -> str:
        if config.get('coft'):
            return 'coft=True writes its bound into the parameters in each pass'
        terms = config.get('num_cayley_neumann_terms', 5)
        if config.get('use_cayley_neumann', True) and terms != 5:
            return f'num_cayley_neumann_terms={terms} is another series than of 5 terms'
        return ''

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        sizes = {x.path: triangle(x.need(self.names[0]).shape[-1]) for x in layers}
        return {
            'block_size': by_layer(sizes),
            'share_blocks': bool(config.get('block_share')),
            'series': bool(config.get('use_cayley_neumann', True)),
            'drop_rate': config.get('module_dropout') or 0.0,
        }

    def load(
        self, delta: Delta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        layer.take('oft_R.weight', delta.change.upper)

    def write(self, method: OFT, linears: Sequence[TunedLinear]) -> PeftAdapter:
        if method.max_norm is not None:
            raise PETLError(
                'OFT bounds the rotation by max_norm, and peft its parameters; '
                'nothing there is the same'
            )
        changes = {x.path: x.whole('OFT').change for x in linears}
        sizes = {path: c.size for path, c in changes.items()}
        numbers = {x.path: x.in_dims // sizes[x.path] for x in linears}
        if len(set(sizes.values())) > 1 and len(set(numbers.values())) == 1:
            size = {'r': next(iter(numbers.values())), 'oft_block_size': 0}
        else:
            size = {'r': 0, 'oft_block_size': alone('OFT', 'block_size', sizes)}
        entries = {
            **size,
            'block_share': method.share_blocks,
            'use_cayley_neumann': method.series,
            'num_cayley_neumann_terms': 5,
            'module_dropout': method.drop_rate,
        }
        layers = {path: {'oft_R.weight': c.upper} for path, c in changes.items()}
        return PeftAdapter(entries, layers)


class BOFTInPeft(PeftFormat):
    """``boft_R`` has whole blocks D with ``Q = (D - D^T) / 2``, and ``boft_s`` is s."""

    kind = 'BOFT'
    names = ('boft_R', 'boft_s')
    reads = (
        'boft_block_size',
        'boft_block_num',
        'boft_n_butterfly_factor',
        'boft_dropout',
    )

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        blocks = {x.path: x.need('boft_R') for x in layers}
        for x in layers:
            if blocks[x.path].ndim != 4:
                raise PETLError(f'{x.name}.boft_R is no stack of factors of blocks')
        factors = {len(D) for D in blocks.values()}
        if len(factors) > 1:
            raise PETLError('the adapter has different numbers of butterfly factors')
        return {
            'block_size': by_layer({path: D.shape[-1] for path, D in blocks.items()}),
            'factors': factors.pop(),
            'drop_rate': config.get('boft_dropout') or 0.0,
        }

    def load(
        self, delta: Delta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        change, D = delta.change, layer.need('boft_R')
        row, column = torch.triu_indices(change.size, change.size, 1)
        upper = ((D - D.mT) / 2)[..., row, column].flatten(0, 1)
        part = PeftLayer(layer.name, layer.path, {**layer.tensors, 'boft_R': upper})
        part.take('boft_R', change.upper)
        layer.take('boft_s', delta.s[:, None])

    def write(self, method: BOFT, linears: Sequence[TunedLinear]) -> PeftAdapter:
        layers, sizes = {}, {}
        for linear in linears:
            delta = linear.whole('BOFT')
            blocks = skew(delta.change.upper, delta.change.size)
            layers[linear.path] = {
                'boft_R': blocks.unflatten(0, (method.factors, -1)),
                'boft_s': delta.s[:, None],
            }
            sizes[linear.path] = delta.change.size
        entries = {
            'boft_block_size': alone('BOFT', 'block_size', sizes),
            'boft_block_num': 0,
            'boft_n_butterfly_factor': method.factors,
            'boft_dropout': method.drop_rate,
        }
        return PeftAdapter(entries, layers)


@METHODS.register_module()
class OFT(Method):
    """Orthogonal fine-tuning: blocks of channels are rotated before a projection.

    Args:
        block_size: Channels of each block, of which ``block_size (block_size - 1) / 2``
            numbers are learnt; it divides the width. By layer:
            ``{'*.attn.qkv': 16, '*': 32}``.
        share_blocks: Whether one block turns all groups of channels of a projection.
        series: Whether the Cayley transform is taken by the first terms of its Neumann
            series, which is what PEFT does by default; cheaper, and not orthogonal.
        max_norm: What the Frobenius norm of each skew-symmetric matrix is bounded by
            (constrained OFT); None for no bound.
        drop_rate: Probability with which a block stays unturned in a training step.
        targets: Projections whose input is rotated. ``attn.q``, ``attn.k`` and
            ``attn.v`` are rotated apart; they stand for ``attn.qkv`` where these have
            no projection of one input. Where a backbone has no attention, both
            projections of its feed-forward networks stand for ``attn.proj``. In a model
            that no file describes every Linear is rotated.
    """

    leaf_kinds = ('layer.linear',)
    sized = ('block_size',)
    peft = OFTInPeft()
    family = 'reparameterisation'
    targets_any = True

    def __init__(
        self,
        block_size: int = 32,
        share_blocks: bool = False,
        series: bool = False,
        max_norm: float | None = None,
        drop_rate: float = 0.0,
        targets: Sequence[str] = ('attn.qkv', 'attn.proj'),
    ) -> None:
        check_range(self, 'block_size', block_size, 2)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if max_norm is not None and max_norm <= 0:
            raise PETLError(f'OFT needs max_norm above 0, got {max_norm!r}')
        self.block_size = block_size
        self.share_blocks = share_blocks
        self.series = series
        self.max_norm = max_norm
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = INSTEAD

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            check_blocks(self, site, self.block_size)

    def has_room(self, site: Site) -> bool:
        return site.in_dims % self.block_size == 0

    def build(self, site: Site) -> Delta:
        blocks = 1 if self.share_blocks else site.in_dims // self.block_size
        R = Rotations(
            blocks, self.block_size, self.series, self.max_norm, self.drop_rate
        )
        return changed_input(site, R)

    def fold(self, site: Site, delta: Delta, affine: Affine) -> None:
        fold_change(delta.change, affine, only_after(site))


@METHODS.register_module()
class BOFT(Method):
    """Orthogonal butterflies: rotations that reach all channels, and a scale behind.

    Args:
        block_size: Channels of each block; it divides the width, and is even where
            there are several factors. By layer: ``{'*.attn.qkv': 16, '*': 8}``.
        factors: Butterfly factors, m; the blocks of a width fall into groups of
            ``2^(m - 1)``. One is OFT with a scale.
        drop_rate: Probability with which a block stays unturned in a training step.
        targets: As in :class:`OFT`.
    """

    leaf_kinds = ('layer.linear',)
    sized = ('block_size',)
    peft = BOFTInPeft()
    family = 'reparameterisation'
    targets_any = True

    def __init__(
        self,
        block_size: int = 8,
        factors: int = 2,
        drop_rate: float = 0.0,
        targets: Sequence[str] = ('attn.qkv', 'attn.proj'),
    ) -> None:
        check_range(self, 'block_size', block_size, 2)
        check_range(self, 'factors', factors, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.block_size = block_size
        self.factors = factors
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = INSTEAD

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if self.factors > 1 and self.block_size % 2:
                raise PETLError(
                    f'BOFT needs an even block_size for {self.factors} factors, got '
                    f'{self.block_size}'
                )
            check_blocks(self, site, self.block_size)
            blocks = site.in_dims // self.block_size
            if blocks % self._group:
                raise PETLError(
                    f'BOFT needs blocks in groups of {self._group} for {self.factors} '
                    f'factors; {site} has {blocks}: set fewer factors or a smaller '
                    'block_size'
                )

    @property
    def _group(self) -> int:
        """Blocks that the last factor mixes."""
        return 2 ** (self.factors - 1)

    def has_room(self, site: Site) -> bool:
        even = self.factors == 1 or self.block_size % 2 == 0
        return even and site.in_dims % (self.block_size * self._group) == 0

    def build(self, site: Site) -> Delta:
        blocks = site.in_dims // self.block_size
        R = Butterfly(blocks, self.block_size, self.factors, self.drop_rate)
        return (BOFTRowsDelta if only_after(site) else BOFTDelta)(R, site)

    def fold(self, site: Site, delta: Delta, affine: Affine) -> None:
        s, bias = delta.s.double(), affine.base.full_bias().double()
        if only_after(site):
            fold_change(delta.change, affine, rows=True)
        affine.scale_(s)
        affine.shift_((1 - s) * bias)

    def fold_before(self, site: Site, delta: BOFTDelta, affine: Affine) -> None:
        fold_change(delta.change, affine, rows=False)


def check_blocks(method: Method, site: Site, size: int) -> None:
    """Raise PETLError unless blocks of ``size`` channels fill what enters a site."""
    width = site.in_dims
    if width % size:
        fitting = [n for n in range(2, width + 1) if width % n == 0]
        raise PETLError(
            f'{type(method).__name__} needs block_size that divides the width; {site} '
            f'has {width}, got {size}. It can be: {", ".join(map(str, fitting))}'
        )
