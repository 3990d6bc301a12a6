"""RLRR: a frozen weight plus itself, its rows and columns rescaled.

Paper: Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design
Approach", CVPR 2024, https://arxiv.org/abs/2403.19067.
Differs from the authors' code: none in the algebra. Both store the pairs of scales and
shifts behind the patch projection and the norms, which the paper's count holds. What
the code calls drop-path is dropout of single elements, and is called so here. Scales
have one axis, so that by default none of them decays. The authors' Swin rescales the
reductions of patch mergings as well, has no pair behind the patch projection, and drops
whole samples; ours is as the transformers are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Affine, Context, Delta, Method, ScaleShift, Site, check_range
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import merged
from mmpetl.registry import METHODS

LINEAR = (
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'ffn.fc1',
    'ffn.fc2',
    'layer.linear',
)
BRANCH_ENDS = ('attn.proj', 'ffn.fc2')


class RescaledDelta(Delta):
    """``drop(y + s_out * (x * s_in) W^T + t)``, W being the frozen weight.

    x: (B, N, in_dims), y: (B, N, out_dims); s_in: (in_dims,), s_out, t: (out_dims,).
    """

    reads_base = True

    def __init__(self, site: Site, drop_rate: float, exact_identity: bool) -> None:
        super().__init__()
        self.kind = site.kind
        self.s_in = nn.Parameter(torch.empty(site.in_dims))
        self.s_out = nn.Parameter(torch.zeros(site.out_dims))
        self.t = nn.Parameter(torch.zeros(site.out_dims))
        self.drop = Dropout(drop_rate)
        bound = (6 / site.in_dims) ** 0.5
        nn.init.uniform_(self.s_in, -bound, bound)
        if not exact_identity:
            nn.init.uniform_(self.s_out, -(6**0.5), 6**0.5)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        weight = self.own(ctx.affine(self.kind).weight)
        more = F.linear(x * self.s_in, weight) * self.s_out + self.t
        return self.drop(y + more)

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        # Two products forward and two backward, beside one, one and that of the
        # gradient of the weight, of which both scales have theirs.
        factors = self.s_out, self.s_in
        y = merged(module, x, ctx, rescaled, factors, self.t, to_scales)
        return None if y is None else self.drop(y)


def rescaled(weight: Tensor, s_out: Tensor, s_in: Tensor) -> Tensor:
    """``W + diag(s_out) W diag(s_in)``, (out_dims, in_dims)."""
    return torch.addcmul(weight, weight * s_in, s_out[:, None])


def to_scales(
    grad: Tensor, x: Tensor, weight: Tensor, s_out: Tensor, s_in: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the scales; grad: (M, out_dims), x: (M, in_dims)."""
    each = grad.t() @ x * weight
    return each @ s_in, s_out @ each


@METHODS.register_module()
class RLRR(Method):
    """Residual rescaling of the rows and columns of every projection.

    Args:
        drop_rate: Dropout on what the last projection of each sub-layer gives, in
            training: the rate in the last block, rising linearly from zero in the
            first; 0 to 0.5 by task in the authors' code.
        exact_identity: Whether the tuned model starts at the base: ``s_out`` and
            ``beta`` at zero, ``gamma`` at one. As released, ``s_in`` and ``s_out`` are
            both drawn, and the start is far from the base.

    In a model that no file describes every Linear is rescaled, and convolutions and
    norms have a scale and a shift.
    """

    leaf_kinds = ('layer.linear', 'layer.conv', 'layer.norm')
    family = 'reparameterisation'
    targets = (
        'embed.proj',
        'norm1',
        'attn.q',
        'attn.k',
        'attn.v',
        'attn.proj',
        'norm2',
        'ffn.fc1',
        'ffn.fc2',
    )
    optional = ('out.norm',)
    targets_any = True

    def __init__(self, drop_rate: float = 0.0, exact_identity: bool = False) -> None:
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.drop_rate = drop_rate
        self.exact_identity = exact_identity
        self.starts_as_identity = exact_identity

    def build(self, site: Site) -> RescaledDelta | ScaleShift:
        if site.kind in LINEAR:
            rate = 0.0
            if site.kind in BRANCH_ENDS:
                rate = self.drop_rate * site.block / max(1, site.num_blocks - 1)
            return RescaledDelta(site, rate, self.exact_identity)
        return ScaleShift(site.out_dims, self.exact_identity)

    def fold(
        self, site: Site, delta: RescaledDelta | ScaleShift, affine: Affine
    ) -> None:
        if isinstance(delta, ScaleShift):
            delta.fold_into(affine)
            return
        weight = affine.base.weight.double()
        affine.add_(delta.s_out.double()[:, None] * weight * delta.s_in.double())
        affine.shift_(delta.t)
