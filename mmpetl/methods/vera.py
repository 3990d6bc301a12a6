"""VeRA: two vectors per projection around one frozen random pair of matrices.

Papers: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024,
https://arxiv.org/abs/2310.11454, eq. (2); Fillioux et al., "PVeRA: Probabilistic
Vector-Based Random Matrix Adaptation", 2025 (``probabilistic=True``).
Differs from the code in PEFT: each shape of projection has a pair of its own. There one
pair has the size of the widest projection and the others use its upper left corner, so
that what a narrow one gets depends on which others are adapted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
    convolve,
    in_networks,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_scaled_product, product
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
    alone,
    by_layer,
)
from mmpetl.registry import METHODS


class RandomPair(nn.Module):
    """``A`` (rows, in_dims) and ``B`` (out_dims, rank), drawn once and never trained.

    Buffers, so that a delta holds the numbers themselves: a seed would not give them
    back under another release of PyTorch.
    """

    def __init__(self, in_dims: int, out_dims: int, rank: int, rows: int) -> None:
        super().__init__()
        self.register_buffer('A', torch.empty(rows, in_dims))
        self.register_buffer('B', torch.empty(out_dims, rank))
        for matrix in (self.A, self.B):
            nn.init.kaiming_uniform_(matrix)


def shape_key(site: Site) -> str:
    """Name of the pair that all sites of one shape share."""
    return f'{site.in_dims}_to_{site.out_dims}'


class VeRADelta(Delta):
    """``y + lambda_b * B (lambda_d * A drop(x))``.

    x: (B, N, in_dims), or a map in front of a convolution; y: (B, N, out_dims).
    lambda_d: (rank,), lambda_b: (out_dims,). A layer with a smaller rank than others
    of its shape uses the first rows of A and columns of B.
    """

    parts = 1

    def __init__(
        self, site: Site, rank: int, d_initial: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.site = site
        self.rank = rank
        self.lambda_d = nn.Parameter(torch.full((self.parts * rank,), d_initial))
        self.lambda_b = nn.Parameter(torch.zeros(site.out_dims))
        self.drop = Dropout(drop_rate)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """``A`` (parts * rank, in_dims) and ``B`` (out_dims, rank) of this layer."""
        pair = self.shared[shape_key(self.site)]
        if self.parts * self.rank == len(pair.A):
            return pair.A, pair.B  # themselves, of which others share products
        a = pair.A.unflatten(0, (self.parts, -1))[:, : self.rank]
        return a.flatten(0, 1), pair.B[:, : self.rank]

    def code(self, low: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of ``A x``, (..., parts * rank), what B sees, (..., rank).

        And what else scales the columns of B, (rank,).
        """
        return low, self.lambda_d

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        a, b = self.matrices()
        if self.site.kernel is None:
            low = product(x, a, ctx, self.drop)
        else:
            low = convolve(self.drop(x), a, self.site)
        # The vectors scale B, which is smaller than the features of all tokens, and
        # what is kept of these is as narrow as the rank.
        low, columns = self.code(low)
        return add_scaled_product(y, low, b, columns, self.lambda_b)

    def increment(self) -> Tensor:
        """What it adds to the weight in evaluation, (out_dims, in_dims), float64."""
        a, b = (matrix.double() for matrix in self.matrices())
        scaled = b * self.lambda_d[: self.rank].double()
        return self.lambda_b.double()[:, None] * (scaled @ a[: self.rank])


class PVeRADelta(VeRADelta):
    """``y + lambda_b * B h`` with h normal around m, and m itself in evaluation.

    ``[m; l] = lambda_d * A drop(x)`` with 2 rank rows, ``h = m + e exp(l / 2)`` with a
    draw e for every token. lambda_d: (2 rank,).
    """

    parts = 2

    def code(self, low: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_variance = (low * self.lambda_d).chunk(2, dim=-1)
        if not self.training:
            return mean, None
        return mean + torch.randn_like(mean) * torch.exp(log_variance / 2), None


class VeRAInPeft(PeftFormat):
    """One pair of matrices, whose upper left corners the layers use.

    A shape of projections has a corner for its own pair, so pairs of several shapes can
    be written where each is a corner of one pair, as they are when they came from peft.
    """

    kind = 'VERA'
    names = ('vera_lambda_b', 'vera_lambda_d')
    shared = ('base_model.vera_A', 'base_model.vera_B')
    reads = ('r', 'd_initial', 'vera_dropout', 'save_projection')
    idle = ('init_weights', 'projection_prng_key')

    def why_not(self, config: Mapping[str, Any]) -> str:
        if config.get('save_projection', True):
            return ''
        return (
            'save_projection=False leaves its matrices out, which a seed does not give '
            'back under another release of PyTorch'
        )

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        return {
            'rank': by_layer({x.path: len(x.need('vera_lambda_d')) for x in layers}),
            'd_initial': config.get('d_initial', 0.1),
            'drop_rate': config.get('vera_dropout') or 0.0,
        }

    def load(
        self, delta: VeRADelta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        layer.take('vera_lambda_b', delta.lambda_b)
        layer.take('vera_lambda_d', delta.lambda_d)
        pair = delta.shared[shape_key(delta.site)]
        corners = {
            'vera_A': shared[self.shared[0]][:, : pair.A.shape[1]],
            'vera_B': shared[self.shared[1]][: len(pair.B)],
        }
        part = PeftLayer(layer.name, layer.path, corners)
        part.take('vera_A', pair.A)
        part.take('vera_B', pair.B)

    def write(self, method: VeRA, linears: Sequence[TunedLinear]) -> PeftAdapter:
        if method.probabilistic:
            raise PETLError('PVeRA has a format of its own in peft, which is not read')
        deltas = {x.path: x.whole('VeRA') for x in linears}
        rank = alone('VeRA', 'rank', {k: d.rank for k, d in deltas.items()})
        pairs = [d.matrices() for d in deltas.values()]
        A = max((a for a, _ in pairs), key=lambda a: a.shape[1])
        B = max((b for _, b in pairs), key=len)
        for a, b in pairs:
            same = torch.equal(a, A[:, : a.shape[1]]) and torch.equal(b, B[: len(b)])
            if not same:
                raise PETLError(
                    'VeRA has a pair of matrices for each shape of projection, and '
                    'peft one for all; tune projections of one shape (targets=...)'
                )
        layers = {
            path: {'vera_lambda_b': d.lambda_b, 'vera_lambda_d': d.lambda_d}
            for path, d in deltas.items()
        }
        entries = {
            'r': rank,
            'd_initial': method.d_initial,
            'vera_dropout': method.drop_rate,
            'save_projection': True,
        }
        return PeftAdapter(entries, layers, dict(zip(self.shared, (A, B), strict=True)))


@METHODS.register_module()
class VeRA(Method):
    """Vectors around frozen random matrices.

    Args:
        rank: Rows of A, at least 1; it may exceed the width. The paper uses 256 on
            ViT-B/16. By layer: ``{'*.attn.qkv': 256, '*': 64}``, where the first
            pattern that fits counts.
        d_initial: Start of lambda_d, above 0; 0.1 in the paper.
        drop_rate: Dropout on the input of the path.
        probabilistic: PVeRA: the code between A and B is drawn in training.
        targets: Projections with vectors of their own. A trunk without attention has
            no queries and values; there the default stands for both projections of
            its feed-forward networks. In a model that no file describes every Linear
            and convolution has them.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    peft = VeRAInPeft()
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 256,
        d_initial: float = 0.1,
        drop_rate: float = 0.0,
        probabilistic: bool = False,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'd_initial', d_initial, 0)
        if d_initial == 0:
            raise PETLError(
                'VeRA needs d_initial above 0: lambda_b starts at zero, and with both '
                'at zero neither would ever get a gradient'
            )
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.rank = rank
        self.d_initial = d_initial
        self.drop_rate = drop_rate
        self.probabilistic = probabilistic
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    @property
    def delta_class(self) -> type[VeRADelta]:
        """The class of its deltas."""
        return PVeRADelta if self.probabilistic else VeRADelta

    def share(self, sites: list[Site]) -> nn.ModuleDict:
        rank = self.rank
        if isinstance(rank, Mapping):
            rank = max(rank.values())
        rows = self.delta_class.parts * rank
        shapes = {shape_key(s): (s.in_dims, s.out_dims) for s in sites}
        return nn.ModuleDict(
            {key: RandomPair(*shape, rank, rows) for key, shape in shapes.items()}
        )

    def build(self, site: Site) -> VeRADelta:
        return self.delta_class(site, self.rank, self.d_initial, self.drop_rate)

    def fold(self, site: Site, delta: VeRADelta, affine: Affine) -> None:
        affine.add_(delta.increment())
