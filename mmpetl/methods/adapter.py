"""Adapter: a bottleneck with its own skip behind a sub-layer.

Papers: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019,
https://arxiv.org/abs/1902.00751 (``style='houlsby'``); Pfeiffer et al.,
"AdapterFusion: Non-Destructive Task Composition for Transfer Learning", EACL 2021,
https://arxiv.org/abs/2005.00247 (``style='pfeiffer'``).
Differs from the papers: norms stay frozen, and the block is pre-norm. The down
projection starts Kaiming-uniform and the up projection at zero (Houlsby: both near
zero; two public vision codes: all at exactly zero, which leaves only one bias alive).
The adapter stands before stochastic depth, not behind it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmpetl.core import Context, Method, PETLError, Site, check_range
from mmpetl.core.bottleneck import Bottleneck, check_activation
from mmpetl.registry import METHODS

STYLES = {'pfeiffer': ('ffn',), 'houlsby': ('attn', 'ffn')}


class AdapterDelta(Bottleneck):
    """``y + scale * update(y)``.  y: (B, N, C), the output of a sub-layer."""

    scale: float

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.update(y) * self.scale


@METHODS.register_module()
class Adapter(Method):
    """Sequential adapters inside of the residual branches.

    Args:
        style: ``'pfeiffer'`` behind the feed-forward network, ``'houlsby'`` behind
            attention as well.
        hidden_dims: Width of the bottleneck. The benchmark uses 8 on VTAB-1k, 12 on
            FGVC and 64 on dense tasks.
        scale: Factor of the update.
        activation: ``'gelu'`` or ``'relu'``.
        drop_rate: Dropout in the bottleneck; dense recipes use 0.1.
    """

    family = 'adapter'
    across = True
    placed = ''
    sized = ('hidden_dims',)

    def __init__(
        self,
        style: Literal['pfeiffer', 'houlsby'] = 'pfeiffer',
        hidden_dims: int = 8,
        scale: float = 1.0,
        activation: Literal['gelu', 'relu'] = 'gelu',
        drop_rate: float = 0.0,
    ) -> None:
        if style not in STYLES:
            raise PETLError(f'Adapter needs style {" or ".join(STYLES)}, got {style!r}')
        check_activation(self, activation)
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.style = style
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.activation = activation
        self.drop_rate = drop_rate
        self.targets = STYLES[style]

    def build(self, site: Site) -> AdapterDelta:
        delta = AdapterDelta(
            site.out_dims, self.hidden_dims, self.activation, self.drop_rate
        )
        delta.scale = self.scale
        return delta
