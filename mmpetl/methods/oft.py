"""OFT: the input of a frozen projection is rotated.

Paper: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
NeurIPS 2023, https://arxiv.org/abs/2306.07280.
Read beside the papers: the ``oft`` tuner of PEFT, which rotates inputs too. Differs
from it: the Cayley transform is exact by default, and not a series that is only nearly
orthogonal; the bound of constrained OFT acts on the rotation in use, and leaves the
parameters alone.
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
    PETLError,
    Site,
    check_kinds,
    check_range,
)
from mmpetl.registry import METHODS

PROJECTIONS = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')


def skew(upper: Tensor, size: int) -> Tensor:
    """``Q = U - U^T``, (..., size, size), from the upper triangle row by row."""
    row, column = torch.triu_indices(size, size, 1, device=upper.device)
    full = upper.new_zeros(*upper.shape[:-1], size, size)
    full[..., row, column] = upper
    return full - full.mT


def cayley(Q: Tensor) -> Tensor:
    """``R - I`` of ``R = (I - Q) (I + Q)^-1``, orthogonal for a skew-symmetric Q."""
    one = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(one + Q, -2 * Q)


def neumann(Q: Tensor) -> Tensor:
    """``R - I`` of ``R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4``, near the transform of -Q."""
    square = Q @ Q
    return 2 * (Q + square + square @ Q) + square @ square


class Rotations(nn.Module):
    """Orthogonal blocks ``R_j`` that start at I.

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

    def turns(self, dtype: torch.dtype) -> Tensor:
        """``R_j - I``, (blocks, size, size), computed and given in a dtype."""
        Q = skew(self.upper.to(dtype), self.size)
        if self.max_norm is not None:
            norm = torch.linalg.vector_norm(Q, dim=(-2, -1), keepdim=True)
            Q = Q * (self.max_norm / norm.clamp(min=self.max_norm))
        return neumann(Q) if self.series else cayley(Q)

    def forward(self, x: Tensor) -> Tensor:
        """``x blockdiag(R_1, ..., R_k)``.  x: (..., C)."""
        with torch.autocast(self.upper.device.type, enabled=False):
            # No half kernel solves.
            turns = self.turns(torch.promote_types(self.upper.dtype, torch.float32))
        if self.training and self.drop_rate:
            drawn = torch.rand(len(turns), 1, 1, device=turns.device)
            turns = turns * (drawn >= self.drop_rate)
        # Small rotations would round to none in half precision beside the one.
        return x + by_blocks(x, turns.to(x.dtype))


def by_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """``x blockdiag(M_1, ..., M_k)``; a single block meets all groups of channels.

    x: (..., C), blocks: (k, size, size) or (1, size, size).
    """
    groups = x.unflatten(-1, (-1, blocks.shape[-1]))
    if len(blocks) == 1:
        return (groups @ blocks[0]).flatten(-2)
    return torch.einsum('...ki,kij->...kj', groups, blocks).flatten(-2)


class OFTDelta(Delta):
    """``x R`` with ``R = blockdiag(R_1, ..., R_k)``.  x: (B, N, in_dims)."""

    def __init__(self, R: Rotations) -> None:
        super().__init__()
        self.R = R

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return self.R(x)


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
        targets: Projections whose input is rotated. Where a backbone has no attention
            the default stands for both projections of its feed-forward networks.
    """

    sized = ('block_size',)
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
        self.substitutes = {'attn.proj': ('ffn.fc1', 'ffn.fc2')}

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            check_blocks(self, site, self.block_size)

    def build(self, site: Site) -> OFTDelta:
        blocks = 1 if self.share_blocks else site.in_dims // self.block_size
        R = Rotations(
            blocks, self.block_size, self.series, self.max_norm, self.drop_rate
        )
        return OFTDelta(R)

    def fold(self, site: Site, delta: OFTDelta, affine: Affine) -> None:
        affine.add_(by_blocks(affine.weight.double(), delta.R.turns(torch.float64).mT))


def check_blocks(method: Method, site: Site, size: int) -> None:
    """Raise PETLError unless blocks of ``size`` channels fill what enters a site."""
    width = site.in_dims
    if width % size:
        fitting = [n for n in range(2, width + 1) if width % n == 0]
        raise PETLError(
            f'{type(method).__name__} needs block_size that divides the width; {site} '
            f'has {width}, got {size}. It can be: {", ".join(map(str, fitting))}'
        )
