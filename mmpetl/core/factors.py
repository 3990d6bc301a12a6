"""Factors that all projections of a stage share: the brick of factor tuning.

Paper: Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision
Transformer", AAAI 2023, https://arxiv.org/abs/2212.03145.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.context import Context
from mmpetl.core.delta import Delta
from mmpetl.core.dropout import Dropout
from mmpetl.core.errors import PETLError
from mmpetl.core.lean import add_product, product
from mmpetl.core.method import Method, kaiming_uniform_
from mmpetl.core.site import Site

PROJECTIONS = ('attn.q', 'attn.k', 'attn.v', 'attn.proj', 'ffn.fc1', 'ffn.fc2')


def square_blocks(site: Site) -> tuple[int, int, int]:
    """Width D, and how many D x D blocks the projection has along output and input."""
    dims = min(site.in_dims, site.out_dims)
    return dims, site.out_dims // dims, site.in_dims // dims


def check_factors(method: Method, sites: list[Site]) -> None:
    """Raise PETLError where a projection is not made of squares, or is too narrow.

    All squares of a stage have one width, as they share their factors.
    """
    widths: dict[int | None, int] = {}
    for site in sites:
        if site.gated:
            raise PETLError(
                f'{type(method).__name__} is made of squares of the width, and {site} '
                'leaves a gate beside its values; choose targets without ffn.fc1'
            )
        dims, rows, columns = square_blocks(site)
        if (rows * dims, columns * dims) != (site.out_dims, site.in_dims):
            raise PETLError(
                f'{type(method).__name__} needs projections whose width is a multiple '
                f'of the other; {site} maps {site.in_dims} to {site.out_dims}'
            )
        if widths.setdefault(site.stage, dims) != dims:
            raise PETLError(
                f'{type(method).__name__} shares factors of one width within a stage, '
                f'and {site} has squares of {dims} where others have '
                f'{widths[site.stage]}: this block widens the stream inside'
            )
        if method.rank > dims:
            raise PETLError(
                f'{type(method).__name__} needs rank of at most the width ({dims} at '
                f'{site}), got {method.rank}'
            )


class Factors(nn.Module):
    """The two factors that every projection of one stage shares.

    ``u``: (rank, dims), Kaiming-uniform; ``v``: (dims, rank), zero at the start.
    """

    def __init__(self, dims: int, rank: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, dims))
        self.v = nn.Parameter(torch.zeros(dims, rank))
        kaiming_uniform_(self.u)


def stage_key(site: Site) -> str:
    """Name of the factors of a site's stage."""
    return f'stage{site.stage}'


class FactorDelta(Delta):
    """``y + scale * V drop(S U x)``, block-wise over the D x D blocks of a projection.

    ``U`` and ``V`` apply the shared factors to each chunk of D channels. ``S`` is
    (rows * rank, columns * rank): the small cores of all blocks, laid out as the blocks
    are. x: (B, N, columns * D), y: (B, N, rows * D).
    """

    def __init__(self, site: Site, scale: float, drop_rate: float) -> None:
        super().__init__()
        self.stage = stage_key(site)
        self.dims, self.rows, self.columns = square_blocks(site)
        self.scale = scale
        self.drop = Dropout(drop_rate)

    def factors(self) -> Factors:
        """What this delta shares with its stage."""
        return self.shared[self.stage]

    def cores(self) -> Tensor:
        """(rows * rank, columns * rank)."""
        raise NotImplementedError

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        factors = self.factors()
        h = self.drop(F.linear(product(x, factors.u, ctx), self.cores()))
        return add_product(y, h, factors.v, self.scale)

    def increment(self) -> Tensor:
        """``scale * v S_i u`` for every block: (rows * D, columns * D), float64."""
        factors = self.factors()
        u, v = factors.u.double(), factors.v.double()
        wide = torch.block_diag(*[u] * self.columns)
        tall = torch.block_diag(*[v] * self.rows)
        return tall @ self.cores().double() @ wide * self.scale
