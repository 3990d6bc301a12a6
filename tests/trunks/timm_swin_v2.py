"""Tiny timm SwinTransformerV2."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, windows of 4, inputs of any size."""
    import timm

    plain = {
        'img_size': 32,
        'dynamic_img_size': True,
        'embed_dim': 16,
        'depths': (2, 2),
        'num_heads': (2, 4),
        'window_size': 4,
        'drop_path_rate': 0.0,
        'num_classes': 5,
    }
    return timm.create_model('swinv2_tiny_window8_256', **plain | args)


TINY = {
    'timm_swin_v2': Tiny(
        'timm_swin_v2',
        build,
        (3, 32, 32),
        (3, 44, 60),
        exact=False,
        meets=covering,
        bare_keys=True,
    ),
    'timm_swin_v2_bare': Tiny(
        'timm_swin_v2',
        partial(build, num_classes=0, dynamic_img_size=False, img_size=(44, 60)),
        (3, 44, 60),
        (3, 44, 60),
        exact=False,
        meets=at_the_ends,
        bare_keys=True,
    ),
}
