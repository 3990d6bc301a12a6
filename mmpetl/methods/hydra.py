"""Hydra: a low-rank branch beside a projection and another one behind it.

Paper: Kim et al., "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient
Fine-tuning", 2023, https://arxiv.org/abs/2309.06922, section 3.
Differs from the authors' code: none in the algebra. Its merge reads the weight of the
feed-forward network where it merges attention and fails on the shapes; the one here
follows from the formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    is_wider,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product
from mmpetl.registry import METHODS

PROJECTIONS = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')


class LowRank(nn.Module):
    """``drop(z D^T + d) U^T + u``.  D: (rank, in_dims), U: (out_dims, rank)."""

    def __init__(
        self, in_dims: int, out_dims: int, rank: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_dims, rank)
        self.drop = Dropout(drop_rate)
        self.up = nn.Linear(rank, out_dims)
        nn.init.xavier_uniform_(self.down.weight)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def low(self, z: Tensor, ctx: Context) -> Tensor:
        """``drop(z D^T + d)``."""
        return self.drop(product(z, self.down.weight, ctx) + self.down.bias)

    def product(self) -> Tensor:
        """``U D`` in float64, (out_dims, in_dims)."""
        return self.up.weight.double() @ self.down.weight.double()

    def constant(self) -> Tensor:
        """What it gives for zeros, in float64, (out_dims,)."""
        return self.up.weight.double() @ self.down.bias.double() + self.up.bias.double()


class HydraDelta(Delta):
    """``y + scale * (parallel(x) + sequential(y))``.

    x: (B, N, in_dims) and y: (B, N, out_dims), what enters and leaves the projection.
    """

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__()
        self.parallel = LowRank(site.in_dims, site.out_dims, rank, drop_rate)
        self.sequential = LowRank(site.out_dims, site.out_dims, rank, drop_rate)
        self.scale = scale

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.joined(self.parallel.low(x, ctx), y, ctx)

    def joined(self, beside: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """Both up projections in one, of what the branches have in between."""
        h = torch.cat((beside, self.sequential.low(y, ctx)), dim=-1)
        ups = self.parallel.up, self.sequential.up
        weight = torch.cat([up.weight for up in ups], dim=1)
        return add_product(y, h, weight, self.scale, ups[0].bias + ups[1].bias)


class HydraConvDelta(HydraDelta):
    """The same beside a convolution: the parallel branch sees its patches.

    x: (B, C, *extents), y: (B, *out_extents, out_dims).
    """

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__(site, rank, scale, drop_rate)
        self.site = site

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        down = self.parallel.down
        low = convolve(x, down.weight, self.site, down.bias)
        return self.joined(self.parallel.drop(low), y, ctx)


@METHODS.register_module()
class Hydra(Method):
    """Parallel and sequential low-rank branches.

    Args:
        rank: Rank of each branch, 1 <= rank < width; 2 on VTAB-1k in the authors' code.
            By layer: ``{'*.attn.proj': 4, '*': 2}``, the first pattern that fits.
        scale: Factor of both branches, 0.1 to 4.5 per task in the authors' code.
        drop_rate: Dropout between down and up, 0 to 0.2 per task there.
        targets: Projections with branches; the output projections of both sub-layers
            in the paper. In a model that no file describes every Linear and
            convolution has them.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 2,
        scale: float = 1.0,
        drop_rate: float = 0.1,
        targets: Sequence[str] = ('attn.proj', 'ffn.fc2'),
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.rank = rank
        self.scale = scale
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    def build(self, site: Site) -> HydraDelta:
        cls = HydraDelta if site.kernel is None else HydraConvDelta
        return cls(site, self.rank, self.scale, self.drop_rate)

    def fold(self, site: Site, delta: HydraDelta, affine: Affine) -> None:
        # y + s S y with S = U D of the sequential branch: the base is read before it
        # is written.
        behind = delta.sequential.product() * delta.scale
        weight = behind @ affine.weight.double()
        constant = delta.parallel.constant() + delta.sequential.constant()
        shift = behind @ affine.full_bias().double() + constant * delta.scale
        affine.add_(weight + delta.parallel.product() * delta.scale)
        affine.shift_(shift)
