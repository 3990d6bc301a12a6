"""Tiny mmseg SwinTransformer."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, windows of 4."""
    from mmseg.models.backbones import SwinTransformer

    plain = {
        'pretrain_img_size': 32,
        'embed_dims': 16,
        'window_size': 4,
        'depths': (2, 2),
        'num_heads': (2, 4),
        'strides': (4, 2),
        'out_indices': (0, 1),
        'drop_path_rate': 0.0,
    }
    return SwinTransformer(**plain | args)


TINY = {
    'mmseg_swin': Tiny(
        'mmseg_swin',
        build,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        frozen_stages=lambda: build(frozen_stages=1),
        meets=covering,
    ),
}
