"""Tiny timm VisionTransformerSAM."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """A block in padded windows, a block on the whole grid, a neck and a head."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dim': 32,
        'depth': 2,
        'num_heads': 4,
        'mlp_ratio': 2.0,
        'num_classes': 5,
        'use_rel_pos': True,
        'window_size': 3,
        'global_attn_indexes': (1,),
        'neck_chans': 16,
    }
    return VisionTransformerSAM(**plain | args)


TINY = {
    'timm_sam': Tiny(
        'timm_sam',
        build,
        (3, 32, 32),
        (3, 40, 24),
        exact=False,
    ),
}
