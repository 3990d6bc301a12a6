"""LoRand: adapters whose two projections are sums of low-rank products.

Paper: Yin et al., "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense
Predictions", CVPR 2023.
No code was released with the paper; order and place are those of the first author's
later code. Differs from that code: the kernels K are shared between both projections,
as in the paper (``shared_kernels=False`` gives each its own). Plain transformers and
video are our extension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    kaiming_uniform_,
)
from mmpetl.registry import METHODS


class Factors(nn.Module):
    """``P_i`` (a, in, b) and ``Q_i`` (a, b, out) of ``W^T = sum_i P_i K_i Q_i``."""

    def __init__(self, in_dims: int, out_dims: int, branches: int, rank: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.empty(branches, in_dims, rank))
        self.Q = nn.Parameter(torch.empty(branches, rank, out_dims))
        self.bias = nn.Parameter(torch.empty(out_dims))
        for matrix in (*self.P.data, *self.Q.data):
            kaiming_uniform_(matrix)
        bound = in_dims**-0.5
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        """``W x + bias``; the rank of W is that of all products together.

        Args:
            x: (..., in).
            kernels: K, (a, b, b).
        """
        left = self.P.transpose(0, 1).flatten(1)
        right = torch.bmm(kernels, self.Q).flatten(0, 1)
        return F.linear(F.linear(x, left.T), right.T, self.bias)

    def weight(self, kernels: Tensor) -> Tensor:
        """The matrix W all factors make, (out, in)."""
        return torch.einsum('aib,abc,aco->oi', self.P, kernels, self.Q)


class LoRandDelta(Delta):
    """``y + W_U gelu(W_D y + b_D) + b_U``.  y: (B, N, C), what a residual adds."""

    def __init__(
        self,
        dims: int,
        branches: int,
        rank: int,
        shared_kernels: bool,
        inside_drop_path: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        self.inside = inside_drop_path
        self.down = Factors(dims, dims // 2, branches, rank)
        self.up = Factors(dims // 2, dims, branches, rank)
        sets = 1 if shared_kernels else 2
        self.K = nn.Parameter(torch.empty(sets, branches, rank, rank))
        for kernel in self.K.data.flatten(0, 1):
            kaiming_uniform_(kernel)
        if zero_init:
            nn.init.zeros_(self.up.Q)
            nn.init.zeros_(self.up.bias)

    def adapted(self, y: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), the skip included."""
        h = F.gelu(self.down(y, self.K[0]))
        return y + self.up(h, self.K[-1])

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return self.adapted(x) if self.inside else x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y if self.inside else self.adapted(y)


@METHODS.register_module()
class LoRand(Method):
    """Two serial adapters per block, of hidden width C / 2.

    Args:
        branches: Low-rank products per projection, alpha in the paper: 2, and 4 in
            LoRand+ and LoRand++.
        rank: Rank of each, beta in the paper: 8, and 16 in LoRand++.
        shared_kernels: Whether both projections use the same kernels K, as in the
            paper; the author's later code has separate ones.
        inside_drop_path: Whether adapters act in front of the block's own scale and
            stochastic depth rather than behind.
        zero_init: Whether the second projection starts at zero, so that the model
            starts as the frozen one.
    """

    targets = ('attn.branch', 'ffn.branch')
    family = 'adapter'
    placed = ''

    def __init__(
        self,
        branches: int = 2,
        rank: int = 8,
        shared_kernels: bool = True,
        inside_drop_path: bool = False,
        zero_init: bool = False,
    ) -> None:
        check_range(self, 'branches', branches, 1)
        check_range(self, 'rank', rank, 1)
        self.branches = branches
        self.rank = rank
        self.shared_kernels = shared_kernels
        self.inside_drop_path = inside_drop_path
        self.zero_init = zero_init
        self.starts_as_identity = zero_init

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if site.out_dims % 2:
                raise PETLError(
                    f'LoRand halves the width, and {site} has {site.out_dims} channels'
                )
        narrow = min(site.out_dims for site in sites) // 2
        if self.branches * self.rank > narrow:
            raise PETLError(
                f'LoRand needs branches x rank of at most half the width ({narrow}), '
                f'got {self.branches} x {self.rank}'
            )

    def build(self, site: Site) -> LoRandDelta:
        return LoRandDelta(
            site.out_dims,
            self.branches,
            self.rank,
            self.shared_kernels,
            self.inside_drop_path,
            self.zero_init,
        )
