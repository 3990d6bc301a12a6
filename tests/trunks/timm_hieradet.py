"""Tiny timm HieraDet."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages: windows, windows that pool, the whole grid."""
    from timm.models.hieradet_sam2 import HieraDet

    plain = {
        'embed_dim': 32,
        'num_heads': 2,
        'stages': (1, 2),
        'q_pool': 1,
        'window_spec': (4, 2),
        'global_att_blocks': (2,),
        'global_pos_size': (3, 3),
        'num_classes': 5,
        'init_values': 0.5,
    }
    return HieraDet(**plain | args)


WIDEN = ('bapat', 'fact_tk', 'fact_tt', 'patt', 'patt:qkv')
"""Made of projections of one width, where blocks that open a stage have two."""

TINY = {
    'timm_hieradet': Tiny(
        'timm_hieradet',
        build,
        (3, 32, 32),
        (3, 48, 32),
        exact=False,
        refuses=WIDEN,
    ),
}
