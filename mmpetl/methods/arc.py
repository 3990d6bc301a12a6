"""ARC: linear adapters whose projections are one matrix, shared by all blocks.

Paper: Dong et al., "Efficient Adaptation of Large Vision Transformer via Adapter
Re-Composing", NeurIPS 2023, https://arxiv.org/abs/2310.06234.
Differs from the authors' code: the adapters stand at the projections that read what
they adapt. In windowed attention that is the padded windows, where theirs acts in front
of the padding; there it could not be folded exactly. Without padding there is no
difference.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Affine, Context, Delta, Method, PETLError, Site, check_range
from mmpetl.core.dropout import Dropout
from mmpetl.registry import METHODS

STYLES = {'block': ('attn.qkv', 'ffn.fc1'), 'attn': ('attn.qkv',)}


def factor_key(site: Site) -> str:
    """Name of the matrix that the sites of a kind share within a stage."""
    return f'{site.kind.replace(".", "_")}_stage{site.stage}_{site.in_dims}'


class ARCDelta(Delta):
    """``x + D drop(c * (D^T x)) + t``.  x: (B, N, C).

    D: (C, rank), shared; c: (rank,) and t: (C,), of this block.
    """

    def __init__(self, site: Site, rank: int, drop_rate: float) -> None:
        super().__init__()
        self.key = factor_key(site)
        self.c = nn.Parameter(torch.zeros(rank))
        self.t = nn.Parameter(torch.zeros(site.in_dims))
        self.drop = Dropout(drop_rate)

    def factor(self) -> Tensor:
        """D, (C, rank)."""
        return self.shared[self.key]

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        d = self.factor()
        return x + F.linear(self.drop(F.linear(x, d.T) * self.c), d, self.t)


@METHODS.register_module()
class ARC(Method):
    """Adapters re-composed from a shared matrix.

    Args:
        style: ``'block'`` in front of the fused projection of attention and the first
            of the feed-forward network, ``'attn'`` (ARC-att) in front of the former
            only.
        rank: Columns of the shared matrices, 50 in the paper.
        drop_rate: Dropout between the two projections, 0.1 in the authors' code.
        exact_identity: Whether the adapters of the feed-forward networks start at zero
            as those of attention do. The authors' code draws them, so that a fresh
            model is near the base but not equal to it.
    """

    family = 'reparameterisation'

    def __init__(
        self,
        style: Literal['block', 'attn'] = 'block',
        rank: int = 50,
        drop_rate: float = 0.1,
        exact_identity: bool = False,
    ) -> None:
        if style not in STYLES:
            raise PETLError(f'ARC needs style {" or ".join(STYLES)}, got {style!r}')
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.style = style
        self.rank = rank
        self.drop_rate = drop_rate
        self.exact_identity = exact_identity
        self.targets = STYLES[style]
        self.starts_as_identity = exact_identity or style == 'attn'

    def share(self, sites: list[Site]) -> nn.ParameterDict:
        widths = {factor_key(site): site.in_dims for site in sites}
        factors = {k: torch.empty(dims, self.rank) for k, dims in widths.items()}
        for factor in factors.values():
            nn.init.xavier_uniform_(factor)
        return nn.ParameterDict(factors)

    def build(self, site: Site) -> ARCDelta:
        delta = ARCDelta(site, self.rank, self.drop_rate)
        if site.kind == 'ffn.fc1' and not self.exact_identity:
            nn.init.xavier_uniform_(delta.c.data[None])
        return delta

    def fold(self, site: Site, delta: ARCDelta, affine: Affine) -> None:
        weight, d = affine.weight.double(), delta.factor().double()
        affine.shift_(weight @ delta.t.double())
        affine.add_(weight @ (d * delta.c.double()) @ d.T)
