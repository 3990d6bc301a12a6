"""Tiny timm VisionTransformerDistilled."""

from __future__ import annotations

from typing import Any

from tiny_methods import at_the_ends
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks, two heads."""
    from timm.models.deit import VisionTransformerDistilled

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dim': 32,
        'depth': 2,
        'num_heads': 4,
        'mlp_ratio': 2.0,
        'num_classes': 5,
    }
    return VisionTransformerDistilled(**plain | args)


TINY = {
    'timm_deit': Tiny(
        'timm_deit',
        build,
        (3, 32, 32),
        (3, 32, 32),
        exact=True,
        meets=at_the_ends,
    ),
}
