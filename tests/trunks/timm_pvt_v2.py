"""Tiny timm PyramidVisionTransformerV2."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks and a head."""
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    plain = {
        'depths': (2, 2),
        'embed_dims': (32, 64),
        'num_heads': (1, 2),
        'sr_ratios': (2, 1),
        'mlp_ratios': (2, 2),
        'num_classes': 5,
    }
    return PyramidVisionTransformerV2(**plain | args)


TINY = {
    'timm_pvt_v2': Tiny('timm_pvt_v2', build, (3, 32, 32), (3, 38, 53), exact=False),
}
