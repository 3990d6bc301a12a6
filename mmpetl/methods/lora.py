"""LoRA: a low-rank sum beside a frozen projection.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, eq. (3).
Differs from the authors' code: none in the algebra. Folding is explicit here, not tied
to ``train()`` and ``eval()``.
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
    kaiming_uniform_,
)
from mmpetl.core.lean import add_product, product
from mmpetl.registry import METHODS

PROJECTIONS = (
    'attn.qkv',
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'ffn.fc1',
    'ffn.fc2',
)
ATTENTION = ('attn.q', 'attn.v')


class LoRADelta(Delta):
    """``y + scale * drop(x) A^T B^T``.  x: (B, N, in_dims), y: (B, N, out_dims)."""

    def __init__(
        self, in_dims: int, out_dims: int, rank: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dims))
        self.B = nn.Parameter(torch.zeros(out_dims, rank))
        self.scale = scale
        self.drop = nn.Dropout(drop_rate)
        kaiming_uniform_(self.A)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        low = product(self.drop(x), self.A, ctx)
        return add_product(y, low, self.B, self.scale)


class LoRAConvDelta(LoRADelta):
    """The same beside a convolution: A is one with ``rank`` channels, B sees a place.

    x: (B, C, *extents), y: (B, *out_extents, out_dims).
    """

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__(site.in_dims, site.out_dims, rank, scale, drop_rate)
        self.site = site

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        low = convolve(self.drop(x), self.A, self.site)
        return add_product(y, low, self.B, self.scale)


@METHODS.register_module()
class LoRA(Method):
    """Low-rank adaptation.

    Args:
        rank: Rank of the update, 1 <= rank < width. The benchmark uses 8 on VTAB-1k,
            16 on FGVC and 64 on dense tasks. By layer: ``{'*.attn.qkv': 16, '*': 4}``,
            where the first pattern that fits counts.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``.
        drop_rate: Dropout on the input of the low-rank path.
        targets: Projections that get an update of their own. ``attn.qkv`` is one
            update of the fused projection, with A shared by q, k and v. A trunk without
            attention has no queries and values; there the default stands for both
            projections of its feed-forward networks. In a model that no file describes
            every Linear and convolution has one.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    family = 'reparameterisation'

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        drop_rate: float = 0.0,
        targets: Sequence[str] = ATTENTION,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        self.rank = rank
        self.alpha = alpha
        self.drop_rate = drop_rate
        self.targets = check_kinds(self, targets, PROJECTIONS)
        if self.targets == ATTENTION:
            self.substitutes = dict.fromkeys(ATTENTION, ('ffn.fc1', 'ffn.fc2'))

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def build(self, site: Site) -> LoRADelta:
        if site.kernel is not None:
            return LoRAConvDelta(site, self.rank, self.scale, self.drop_rate)
        return LoRADelta(
            site.in_dims, site.out_dims, self.rank, self.scale, self.drop_rate
        )

    def fold(self, site: Site, delta: LoRADelta, affine: Affine) -> None:
        affine.add_(delta.B.double() @ delta.A.double() * delta.scale)
