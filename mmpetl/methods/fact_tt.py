"""FacT-TT: one tensor train for the increments of all projections.

Paper: Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision
Transformer", AAAI 2023, https://arxiv.org/abs/2212.03145, the tensor-train form.
Differs from the authors' code: none on plain transformers. Where widths differ between
stages each stage has factors of its own, which is our extension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpetl.core import Affine, Method, Site, check_range, kaiming_uniform_
from mmpetl.core.factors import (
    PROJECTIONS,
    FactorDelta,
    Factors,
    check_factors,
    square_blocks,
    stage_key,
)
from mmpetl.registry import METHODS


class FacTTTDelta(FactorDelta):
    """A :class:`FactorDelta` that owns its cores."""

    def __init__(self, site: Site, rank: int, scale: float, drop_rate: float) -> None:
        super().__init__(site, scale, drop_rate)
        self.core = nn.Parameter(torch.empty(self.rows * rank, self.columns * rank))
        kaiming_uniform_(self.core)

    def cores(self) -> Tensor:
        return self.core


@METHODS.register_module()
class FacTTT(Method):
    """Factor-tuning in tensor-train form.

    Every increment of a D x D block is ``scale * v S_i u``: a core of its own between
    two factors that all blocks share. The projections of the feed-forward network are
    stacks of such blocks.

    Args:
        rank: Size of the cores. The paper uses 4, 8 or 16 per task.
        scale: Factor of the increments, 0.01 to 100 per task in the paper.
        drop_rate: Dropout between core and ``v``, 0.1 in the authors' code.
    """

    family = 'reparameterisation'
    targets = PROJECTIONS

    def __init__(
        self, rank: int = 16, scale: float = 1.0, drop_rate: float = 0.1
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.rank = rank
        self.scale = scale
        self.drop_rate = drop_rate

    def check(self, sites: list[Site]) -> None:
        check_factors(self, sites)

    def share(self, sites: list[Site]) -> nn.ModuleDict:
        widths = {stage_key(site): square_blocks(site)[0] for site in sites}
        return nn.ModuleDict({k: Factors(d, self.rank) for k, d in widths.items()})

    def build(self, site: Site) -> FacTTTDelta:
        return FacTTTDelta(site, self.rank, self.scale, self.drop_rate)

    def fold(self, site: Site, delta: FacTTTDelta, affine: Affine) -> None:
        affine.add_(delta.increment())
