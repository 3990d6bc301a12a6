"""(IA)3: keys, values and the hidden features of the network, scaled by channel.

Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", NeurIPS 2022, https://arxiv.org/abs/2205.05638, section 3.3.
Differs from the code in PEFT: nothing in the algebra. Where queries, keys and values
are one projection, that code scales the queries too; here they stay as they are, as in
the paper, unless ``targets`` names them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmpetl.core import PROJECTIONS, Affine, Context, Delta, Method, Site, check_kinds
from mmpetl.core.lean import scale_shift
from mmpetl.registry import METHODS


class OutputScale(Delta):
    """``scale * y``.  y: (B, N, out_dims), what leaves a projection, bias included."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(site.out_dims))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return scale_shift(y, self.scale, output_kept=ctx.output_kept)


class InputScale(Delta):
    """``scale * x``.  x: (B, N, in_dims), what enters a projection."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(site.in_dims))

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return scale_shift(x, self.scale, made=ctx.made)


@METHODS.register_module()
class IA3(Method):
    """Learnt scales.

    Args:
        targets: Projections whose output is scaled; of ``ffn.fc2`` the input is, which
            are the hidden features. It acts at those that a trunk has. In a model that
            no file describes the output of every Linear and convolution is scaled.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    family = 'reparameterisation'
    targets_any = True

    def __init__(
        self, targets: Sequence[str] = ('attn.k', 'attn.v', 'ffn.fc2')
    ) -> None:
        self.targets = check_kinds(self, targets, PROJECTIONS)

    def build(self, site: Site) -> Delta:
        return InputScale(site) if site.kind == 'ffn.fc2' else OutputScale(site)

    def fold(self, site: Site, delta: Delta, affine: Affine) -> None:
        if isinstance(delta, OutputScale):
            affine.scale_(delta.scale)
        else:
            affine.add_(affine.weight.double() * (delta.scale.double() - 1))
