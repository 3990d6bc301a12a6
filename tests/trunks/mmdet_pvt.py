"""Tiny mmdet PyramidVisionTransformer, both versions."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn

PLAIN = {
    'embed_dims': 32,
    'num_stages': 2,
    'num_layers': (2, 2),
    'num_heads': (1, 2),
    'strides': (4, 2),
    'sr_ratios': (2, 1),
    'out_indices': (0, 1),
    'mlp_ratios': (2, 2),
    'drop_path_rate': 0.0,
}


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks with position tables, and no norm behind them."""
    from mmdet.models.backbones import PyramidVisionTransformer

    plain = {'pretrain_img_size': 32, 'patch_sizes': (4, 2), 'paddings': (0, 0)}
    return PyramidVisionTransformer(**PLAIN | plain | args)


def build_v2(**args: Any) -> nn.Module:
    """Overlapping patches of 7 and 3, convolutions in between, norms behind stages."""
    from mmdet.models.backbones import PyramidVisionTransformerV2

    # Its constructor fixes patches for four stages.
    plain = {
        'num_stages': 4,
        'embed_dims': 16,
        'num_layers': (2, 2, 2, 2),
        'num_heads': (1, 1, 2, 2),
        'strides': (4, 2, 2, 2),
        'sr_ratios': (2, 1, 1, 1),
        'out_indices': (0, 3),
        'mlp_ratios': (2, 2, 2, 2),
    }
    return PyramidVisionTransformerV2(**PLAIN | plain | args)


TINY = {
    'mmdet_pvt': Tiny('mmdet_pvt', build, (3, 32, 32), (3, 38, 53), exact=False),
}
