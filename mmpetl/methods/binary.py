"""Bi-LoRA and Bi-AdaptFormer: adapters whose matrices have a few bits per entry.

Paper: Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the
Perspective of Precision Redundancy", ICCV 2023, https://arxiv.org/abs/2307.16867.
Differs from the paper: its text has the entries of the code book by clustering; the
authors' code, and ours, by 500 rounds towards the book whose entries halve the
probability of their cells (1 bit: +-0.6745, not +-0.798). Differs from the code: an
entry on the border of two cells takes one of their codes, and not their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpetl.core import (
    ATTENTION,
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    in_networks,
    is_wider,
    kaiming_uniform_,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.few_bits import FewBits
from mmpetl.core.lean import add_product, product
from mmpetl.core.packing import check_bits
from mmpetl.registry import METHODS


def pair(
    in_dims: int, hidden_dims: int, out_dims: int, bits: int
) -> tuple[FewBits, FewBits]:
    """Down and up projection; entries that are all equal would have no deviation."""
    down, up = torch.empty(hidden_dims, in_dims), torch.empty(out_dims, hidden_dims)
    kaiming_uniform_(down)
    nn.init.trunc_normal_(up, std=0.001, a=-0.002, b=0.002)
    return FewBits(down, bits), FewBits(up, bits)


class BiLoRADelta(Delta):
    """``y + scale * up(drop(down(x)))``.  x: (B, N, in_dims), y: (B, N, out_dims)."""

    def __init__(
        self, site: Site, rank: int, bits: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.down, self.up = pair(site.in_dims, rank, site.out_dims, bits)
        self.drop = Dropout(drop_rate)
        self.scale = scale

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        low = product(x, self.down.used().to(x.dtype), ctx)
        return self.added(y, low)

    def added(self, y: Tensor, low: Tensor) -> Tensor:
        """What leaves, of y and of what ``down`` gives."""
        low = self.drop(low)
        return add_product(y, low, self.up.used().to(low.dtype), self.scale)


class BiLoRAConvDelta(BiLoRADelta):
    """The same beside a convolution: ``down`` is one, ``up`` sees a place.

    x: (B, C, *extents), y: (B, *out_extents, out_dims).
    """

    def __init__(
        self, site: Site, rank: int, bits: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__(site, rank, bits, scale, drop_rate)
        self.site = site

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        low = convolve(x, self.down.used().to(x.dtype), self.site)
        return self.added(y, low)


class BiAdaptFormerDelta(Delta):
    """``y + scale * up(drop(relu(down(x))))``.

    x, y: (B, N, C), the stream in front of the feed-forward network and behind it.
    """

    def __init__(
        self, dims: int, hidden_dims: int, bits: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.down, self.up = pair(dims, hidden_dims, dims, bits)
        self.drop = Dropout(drop_rate)
        self.scale = scale

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.up(self.drop(torch.relu(self.down(x)))) * self.scale


@METHODS.register_module()
class BiLoRA(Method):
    """Low-rank adaptation by matrices of few bits.

    Args:
        rank: Rank of the update, 1 <= rank < width; 32 in the paper. By layer:
            ``{'*.attn.qkv': 16, '*': 4}``.
        bits: Bits of each entry: 1, 2, 4 or 8.
        scale: Factor of the update, 0.01 to 10 per task in the paper.
        drop_rate: Dropout between the two matrices, 0.1 in the authors' code.
        targets: Projections that get an update of their own. A trunk without attention
            has no queries and values; there the default stands for both projections of
            its feed-forward networks. In a model that no file describes every Linear
            and convolution has one.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    family = 'reparameterisation'
    starts_as_identity = False

    def __init__(
        self,
        rank: int = 32,
        bits: int = 1,
        scale: float = 1.0,
        drop_rate: float = 0.1,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_bits(self, bits)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.rank = rank
        self.bits = bits
        self.scale = scale
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.substitutes = in_networks(self.targets)

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    def build(self, site: Site) -> BiLoRADelta:
        cls = BiLoRADelta if site.kernel is None else BiLoRAConvDelta
        return cls(site, self.rank, self.bits, self.scale, self.drop_rate)

    def fold(self, site: Site, delta: BiLoRADelta, affine: Affine) -> None:
        up, down = delta.up.used().double(), delta.down.used().double()
        affine.add_(up @ down * delta.scale)


@METHODS.register_module()
class BiAdaptFormer(Method):
    """AdaptFormer without biases, by matrices of few bits.

    Args:
        hidden_dims: Width of the bottleneck, 32 in the paper.
        bits: Bits of each entry: 1, 2, 4 or 8.
        scale: Factor of the branch, 0.01 to 10 per task in the paper.
        drop_rate: Dropout in the bottleneck, 0.1 in the authors' code.
    """

    targets = ('ffn.sum',)
    family = 'adapter'
    placed = ''
    sized = ('hidden_dims',)
    starts_as_identity = False

    def __init__(
        self,
        hidden_dims: int = 32,
        bits: int = 1,
        scale: float = 1.0,
        drop_rate: float = 0.1,
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_bits(self, bits)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.hidden_dims = hidden_dims
        self.bits = bits
        self.scale = scale
        self.drop_rate = drop_rate

    def build(self, site: Site) -> BiAdaptFormerDelta:
        return BiAdaptFormerDelta(
            site.out_dims, self.hidden_dims, self.bits, self.scale, self.drop_rate
        )
