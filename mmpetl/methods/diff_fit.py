"""DiffFit: biases and norms train, and a scale per channel on every residual branch.

Paper: Xie et al., "DiffFit: Unlocking Transferability of Large Diffusion Models via
Simple Parameter-Efficient Fine-Tuning", ICCV 2023, https://arxiv.org/abs/2304.06648,
section 3.2.
Differs from the paper: it is for diffusion transformers and places scales in the first
half of their blocks; in a backbone for recognition every block has them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Role,
    Site,
    check_range,
)
from mmpetl.registry import METHODS


class BranchScale(Delta):
    """``gamma * y``.  y: (B, N, C), what leaves a branch's last projection.

    Layer scale and stochastic depth behind it multiply too, so that the order does not
    matter. Where a norm follows (Swin V2), its own scale trains and is that of the
    branch; MSCAN's inner shortcut, and what TimeSformer's time attention projects once
    more, stand behind it. ``gamma``: (C,), one at the start.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        # Scales near one would round to one in half precision, so they multiply in
        # their own and only the result is cast.
        return (y * self.gamma).to(y.dtype)


@METHODS.register_module()
class DiffFit(Method):
    """Train biases, norms and a scale on each residual branch.

    Args:
        first_blocks: Scales stand in this many blocks from the start; None means all.
            The paper has them in 14 of 28.
        include_rel_pos_bias: Whether the relative position tables of windowed attention
            train too.

    A model that no file describes has no known residual branches, so it gets no scales:
    there its biases and norms train.
    """

    leaf_kinds = ()
    targets = ('attn.proj', 'ffn.fc2')
    targets_any = True
    family = 'specification'

    def __init__(
        self, first_blocks: int | None = None, include_rel_pos_bias: bool = False
    ) -> None:
        if first_blocks is not None:
            check_range(self, 'first_blocks', first_blocks, 1)
        self.first_blocks = first_blocks
        self.include_rel_pos_bias = include_rel_pos_bias

    def choose(self, sites: list[Site]) -> list[Site]:
        depth = max((site.num_blocks for site in sites), default=0)
        first = depth if self.first_blocks is None else self.first_blocks
        if first > depth:
            raise PETLError(
                f'DiffFit needs first_blocks of at most {depth}, the blocks of this '
                f'backbone, got {first}'
            )
        return [site for site in sites if self.wants(site) and site.block < first]

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        if self.first_blocks is not None:
            raise PETLError(
                'first_blocks of DiffFit counts blocks with scales, and a model that '
                'no file describes gets none; leave it out'
            )
        warnings.warn(
            'DiffFit trains biases and norms here, and adds no scales: their places '
            'need a described backbone',
            stacklevel=4,
        )
        return []

    def build(self, site: Site) -> BranchScale:
        return BranchScale(site.out_dims)

    def selects(self, role: Role) -> bool:
        if role.kind == 'position_bias':
            return self.include_rel_pos_bias
        return role.is_norm or role.part == 'bias'

    def fold(self, site: Site, delta: BranchScale, affine: Affine) -> None:
        affine.scale_(delta.gamma)
