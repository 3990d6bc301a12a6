"""RepAdapter: a linear adapter in front of a projection, which can absorb it.

Paper: Luo et al., "Towards Efficient Visual Adaption via Structural
Re-parameterization", 2023, https://arxiv.org/abs/2302.08106.
Differs from the authors' code: none in the algebra. The adapter of attention acts on
what the projection sees. In windowed attention that is the padded windows; in front of
the padding it could not be folded exactly. Without padding there is no difference.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    GroupedLinear,
    Method,
    PETLError,
    Site,
    check_range,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product
from mmpetl.registry import METHODS

STYLES = {'block': ('attn.qkv', 'ffn.fc1'), 'attn': ('attn.qkv',)}


class RepAdapterDelta(Delta):
    """``x + scale * (W_B drop(W_A x + a) + c)``.  x: (B, N, C)."""

    def __init__(
        self, dims: int, hidden_dims: int, groups: int, scale: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.drop = Dropout(drop_rate)
        self.up = GroupedLinear(hidden_dims, dims, groups)
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        h = self.drop(self.down(x))
        return add_product(x, h, self.up.dense(), self.scale, self.up.bias)


@METHODS.register_module()
class RepAdapter(Method):
    """Linear adapters in front of projections.

    Args:
        style: ``'block'`` in front of the fused projection of attention and the first
            of the feed-forward network, ``'attn'`` in front of the former only.
        hidden_dims: Width of the bottleneck. The paper uses 8 on images, 2 on video.
        groups: Groups of the up projection, 2 in the paper.
        scale: Factor of the update, 0.1 to 10 per task in the paper.
        drop_rate: Dropout between the two projections, 0.1 in the authors' code.
    """

    family = 'reparameterisation'

    def __init__(
        self,
        style: Literal['block', 'attn'] = 'block',
        hidden_dims: int = 8,
        groups: int = 2,
        scale: float = 1.0,
        drop_rate: float = 0.1,
    ) -> None:
        if style not in STYLES:
            raise PETLError(
                f'RepAdapter needs style {" or ".join(STYLES)}, got {style!r}'
            )
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'groups', groups, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if hidden_dims % groups:
            raise PETLError(
                f'RepAdapter needs hidden_dims that groups divides, got {hidden_dims} '
                f'and {groups}'
            )
        self.style = style
        self.hidden_dims = hidden_dims
        self.groups = groups
        self.scale = scale
        self.drop_rate = drop_rate
        self.targets = STYLES[style]

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if site.in_dims % self.groups:
                raise PETLError(
                    f'RepAdapter needs widths that groups divides; {site} has '
                    f'{site.in_dims}, groups is {self.groups}'
                )

    def build(self, site: Site) -> RepAdapterDelta:
        return RepAdapterDelta(
            site.in_dims, self.hidden_dims, self.groups, self.scale, self.drop_rate
        )

    def fold(self, site: Site, delta: RepAdapterDelta, affine: Affine) -> None:
        up = delta.up.dense().double() * delta.scale
        constant = up @ delta.down.bias.double() + delta.up.bias.double() * delta.scale
        weight = affine.weight.double()
        affine.shift_(weight @ constant)
        affine.add_(weight @ up @ delta.down.weight.double())
