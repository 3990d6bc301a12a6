"""Tiny mmpretrain SwinTransformerV2."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, windows of 4, a third norm in every second block."""
    from mmpretrain.models import SwinTransformerV2

    plain = {
        'arch': {
            'embed_dims': 16,
            'depths': [2, 2],
            'num_heads': [2, 4],
            'extra_norm_every_n_blocks': 2,
        },
        'img_size': 32,
        'window_size': 4,
        'pretrained_window_sizes': [0, 0],
        'out_indices': (0, 1),
        'pad_small_map': True,
        'drop_path_rate': 0.0,
    }
    return SwinTransformerV2(**plain | args)


TINY = {
    'mmpretrain_swin_v2': Tiny(
        'mmpretrain_swin_v2',
        build,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        frozen_stages=lambda: build(frozen_stages=0),
        meets=covering,
        bare_keys=True,
    ),
}
