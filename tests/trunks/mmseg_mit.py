"""Tiny mmseg MixVisionTransformer."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, with keys of 2 x 2 tokens and of one."""
    from mmseg.models.backbones import MixVisionTransformer

    plain = {
        'embed_dims': 32,
        'num_stages': 2,
        'num_layers': (2, 2),
        'num_heads': (1, 2),
        'patch_sizes': (7, 3),
        'strides': (4, 2),
        'sr_ratios': (2, 1),
        'out_indices': (0, 1),
        'mlp_ratio': 2,
    }
    return MixVisionTransformer(**plain | args)


TINY = {
    'mmseg_mit': Tiny('mmseg_mit', build, (3, 32, 32), (3, 38, 53), exact=False),
}
