"""SSF: a scale and a shift per channel behind every operation.

Paper: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient
Model Tuning", NeurIPS 2022, https://arxiv.org/abs/2210.08823, section 3.
Differs from the authors' code: none in the algebra. The norms of patch mergings are
declared there and never reached; here they are an argument, off by default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmpetl.core import Affine, Context, Delta, Method, Site
from mmpetl.core.lean import scale_shift, scaled, scaled_norm
from mmpetl.registry import METHODS


class SSFDelta(Delta):
    """``gamma * y + beta``.  y: (B, N, C); gamma, beta: (C,)."""

    def __init__(self, dims: int, exact_identity: bool, kind: str = '') -> None:
        super().__init__()
        self.kind = kind
        self.gamma = nn.Parameter(torch.ones(dims))
        self.beta = nn.Parameter(torch.zeros(dims))
        if not exact_identity:
            nn.init.normal_(self.gamma, mean=1.0, std=0.02)
            nn.init.normal_(self.beta, std=0.02)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = scale_shift(y, self.gamma, self.beta, ctx.output_kept)
        if not ctx.output_kept:
            ctx.tell(z, (y, self.gamma, self.beta), scaled)
        return z

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        # In front of the second norm stands a sum of what the first norm keeps and
        # what the scale behind the projection of attention has kept.
        seen = ctx if self.kind == 'norm2' else None
        return scaled_norm(module, x, self.gamma, self.beta, seen)


@METHODS.register_module()
class SSF(Method):
    """Scales and shifts behind norms, projections and the patch embedding.

    Args:
        exact_identity: Whether scales start at one and shifts at zero. The paper draws
            them around these, with a deviation of 0.02, so that a fresh model is near
            the base but not equal to it.
        on_merge_norm: Whether the norms of patch mergings get a pair too.

    In a model that no file describes every Linear, convolution and norm has a pair.
    """

    leaf_kinds = ('layer.linear', 'layer.conv', 'layer.dwconv', 'layer.norm')

    family = 'reparameterisation'
    targets = (
        'embed.proj',
        'norm1',
        'attn.qkv',
        'attn.proj',
        'norm2',
        'ffn.fc1',
        'ffn.fc2',
    )
    substitutes = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v')}
    targets_any = True

    def __init__(
        self, exact_identity: bool = False, on_merge_norm: bool = False
    ) -> None:
        self.exact_identity = exact_identity
        self.on_merge_norm = on_merge_norm
        self.starts_as_identity = exact_identity
        self.optional = ('embed.norm', 'out.norm')
        if on_merge_norm:
            self.optional += ('downsample.norm',)

    def build(self, site: Site) -> SSFDelta:
        return SSFDelta(site.out_dims, self.exact_identity, site.kind)

    def fold(self, site: Site, delta: SSFDelta, affine: Affine) -> None:
        affine.scale_(delta.gamma)
        affine.shift_(delta.beta)
