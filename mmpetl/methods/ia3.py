"""(IA)3: keys, values and the hidden features of the network, scaled by channel.

Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", NeurIPS 2022, https://arxiv.org/abs/2205.05638, section 3.3.
Differs from the code in PEFT: nothing in the algebra. Where queries, keys and values
are one projection, that code scales the queries too; here they stay as they are, as in
the paper, unless ``targets`` names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpetl.core import (
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_kinds,
)
from mmpetl.core.lean import scale_shift
from mmpetl.core.peft_format import (
    PeftAdapter,
    PeftFormat,
    PeftLayer,
    TunedLinear,
)
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
        return scale_shift(x, self.scale, made=ctx.made_of(x))


class IA3InPeft(PeftFormat):
    """``ia3_l``: (out, 1) behind a Linear, (1, in) in front of a feed-forward one."""

    kind = 'IA3'
    names = ('ia3_l',)
    reads = ('feedforward_modules',)
    idle = ('init_ia3_weights',)

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        return {}

    def load(
        self, delta: Delta, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        in_front, rows = isinstance(delta, InputScale), len(layer.need('ia3_l'))
        if in_front != (rows == 1):
            has, acts = ('in front of', 'behind')[:: 1 if rows == 1 else -1]
            raise PETLError(
                f'the adapter scales {has} {layer.name}, and IA3 {acts} it: it scales '
                'what enters the second projection of a feed-forward network alone'
            )
        layer.take('ia3_l', delta.scale[None] if in_front else delta.scale[:, None])

    def write(self, method: IA3, linears: Sequence[TunedLinear]) -> PeftAdapter:
        layers, in_front = {}, []
        for linear in linears:
            (*_, delta), *_ = linear.parts
            if isinstance(delta, InputScale):
                in_front.append(linear.path)
                scale = delta.scale[None]
            else:
                scale = delta.scale.new_ones(linear.out_dims, 1)
                for start, stop, part in linear.parts:
                    scale[start:stop, 0] *= part.scale  # rows of attn.qkv and attn.k
            layers[linear.path] = {'ia3_l': scale}
        return PeftAdapter({'feedforward_modules': in_front}, layers)


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
    neutral: ClassVar[Mapping[str, float]] = {'scale': 1.0}
    peft = IA3InPeft()
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
