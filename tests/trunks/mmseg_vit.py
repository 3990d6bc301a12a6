"""Tiny mmseg VisionTransformer."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks, maps behind both."""
    from mmseg.models.backbones import VisionTransformer

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'mlp_ratio': 2,
        'out_indices': (0, 1),
        'final_norm': True,
        'patch_bias': True,
    }
    return VisionTransformer(**plain | args)


TINY = {
    'mmseg_vit': Tiny(
        'mmseg_vit', build, (3, 32, 32), (3, 37, 50), exact=False, meets=covering
    ),
}
