"""SSF: a scale and a shift per channel behind every operation.

Paper: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient
Model Tuning", NeurIPS 2022, https://arxiv.org/abs/2210.08823, section 3.
Differs from the authors' code: none in the algebra. The norms of patch mergings are
declared there and never reached; here they are an argument, off by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mmpetl.core import Affine, Method, ScaleShift, Site
from mmpetl.registry import METHODS


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
    neutral: ClassVar[Mapping[str, float]] = {'gamma': 1.0, 'beta': 0.0}
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

    def build(self, site: Site) -> ScaleShift:
        return ScaleShift(site.out_dims, self.exact_identity, site.kind)

    def fold(self, site: Site, delta: ScaleShift, affine: Affine) -> None:
        delta.fold_into(affine)
