"""Tiny mmaction MViT."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn

ARCH = {
    'embed_dims': 32,
    'num_layers': 3,
    'num_heads': 1,
    'downscale_indices': [1],
}


def build(**args: Any) -> nn.Module:
    """Two stages, the second opened by a block that pools and widens."""
    from mmaction.models import MViT

    plain = {
        'arch': ARCH,
        'spatial_size': 32,
        'temporal_size': 4,
        'out_scales': [1],
        'adaptive_kv_stride': (1, 2, 2),
        'mlp_ratio': 2.0,
    }
    return MViT(**plain | args)


WIDEN = ('bapat', 'fact_tk', 'fact_tt', 'patt', 'patt:qkv')
"""Made of projections of one width, where blocks that open a stage have two."""

TINY = {
    'mmaction_mvit': Tiny(
        'mmaction_mvit',
        build,
        (3, 4, 32, 32),
        (3, 6, 38, 53),
        exact=False,
        refuses=WIDEN,
    ),
}
