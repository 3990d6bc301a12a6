"""FacT-TK: one Tucker tensor for the increments of all projections.

Paper: Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision
Transformer", AAAI 2023, https://arxiv.org/abs/2212.03145, the Tucker form.
Differs from the authors' code: there the cores of the feed-forward network are cut out
of a reshaped tensor in which channels and blocks are interleaved, so that they are not
the Tucker form, and most cores act transposed. ``layout='tucker'`` is the form of the
paper, ``layout='official'`` is what that code computes; counts are the same. Where
widths differ between stages each stage has a tensor of its own, our extension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import Affine, Method, PETLError, Site, check_range
from mmpetl.core.factors import (
    PROJECTIONS,
    FactorDelta,
    Factors,
    check_factors,
    square_blocks,
    stage_key,
)
from mmpetl.registry import METHODS

LAYOUTS = ('tucker', 'official')


class TuckerFactors(Factors):
    """Shared factors with the core tensor and the weights of every block.

    ``core``: (rank, rank, rank); ``weights``: (rank, blocks of the stage), one column
    for each D x D block in the order q, k, v, proj, fc1, fc2. Both Xavier-uniform.
    """

    def __init__(self, dims: int, rank: int, num_columns: int) -> None:
        super().__init__(dims, rank)
        self.core = nn.Parameter(torch.empty(rank, rank, rank))
        self.weights = nn.Parameter(torch.empty(rank, num_columns))
        nn.init.xavier_uniform_(self.core)
        nn.init.xavier_uniform_(self.weights)


class FacTTKDelta(FactorDelta):
    """A :class:`FactorDelta` with generated cores, ``S_i = sum_k C[:, :, k] p_ki``.

    Args:
        site: A projection.
        first: Column of its first D x D block in the shared weights.
        layout: See :class:`FacTTK`.
        scale: Factor of the increments.
        drop_rate: Dropout behind the cores.
    """

    def __init__(
        self, site: Site, first: int, layout: str, scale: float, drop_rate: float
    ) -> None:
        super().__init__(site, scale, drop_rate)
        self.first = first
        self.layout = layout

    def cores(self) -> Tensor:
        shared = self.factors()
        count = self.rows * self.columns
        columns = shared.weights[:, self.first : self.first + count]
        cores = shared.core @ columns  # (rank, rank, count)
        rank = len(cores)
        if self.layout == 'tucker':
            if self.rows > 1:
                return cores.permute(2, 0, 1).reshape(count * rank, rank)
            return cores.permute(0, 2, 1).reshape(rank, count * rank)
        flat = cores.reshape(rank, rank * count)
        return flat if self.columns > 1 else flat.t()


@METHODS.register_module()
class FacTTK(Method):
    """Factor-tuning in Tucker form.

    Every increment of a D x D block is ``scale * v S_i u`` with cores ``S_i`` that are
    combinations of the slices of one shared tensor.

    Args:
        rank: Size of the core tensor. The paper uses 16 or 32 per task.
        scale: Factor of the increments, 0.01 to 100 per task in the paper.
        drop_rate: Dropout between core and ``v``, 0.1 in the authors' code.
        layout: ``'tucker'`` is the form of the paper, ``'official'`` that of the
            authors' code, needed to compare with it or to load from it.
    """

    family = 'reparameterisation'
    targets = PROJECTIONS

    def __init__(
        self,
        rank: int = 32,
        scale: float = 1.0,
        drop_rate: float = 0.1,
        layout: Literal['tucker', 'official'] = 'tucker',
    ) -> None:
        if layout not in LAYOUTS:
            raise PETLError(
                f'FacTTK needs layout {" or ".join(LAYOUTS)}, got {layout!r}'
            )
        check_range(self, 'rank', rank, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.rank = rank
        self.scale = scale
        self.drop_rate = drop_rate
        self.layout = layout

    def check(self, sites: list[Site]) -> None:
        check_factors(self, sites)

    def share(self, sites: list[Site]) -> nn.ModuleDict:
        self._first: dict[Site, int] = {}
        widths: dict[str, int] = {}
        counts: dict[str, int] = {}
        for site in sites:  # in the order of a forward pass
            key = stage_key(site)
            widths[key], rows, columns = square_blocks(site)
            self._first[site] = counts.get(key, 0)
            counts[key] = self._first[site] + rows * columns
        return nn.ModuleDict(
            {k: TuckerFactors(widths[k], self.rank, n) for k, n in counts.items()}
        )

    def build(self, site: Site) -> FacTTKDelta:
        return FacTTKDelta(
            site, self._first[site], self.layout, self.scale, self.drop_rate
        )

    def fold(self, site: Site, delta: FacTTKDelta, affine: Affine) -> None:
        affine.add_(delta.increment())
