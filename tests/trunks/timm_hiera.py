"""Tiny timm Hiera."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages: units, units that pool, the whole sequence."""
    from timm.models.hiera import Hiera

    plain = {
        'img_size': (32, 48),
        'embed_dim': 32,
        'num_heads': 2,
        'stages': (1, 2, 1),
        'q_pool': 2,
        'mask_unit_size': (4, 4),
        'mask_unit_attn': (True, True, False),
        'num_classes': 5,
        'init_values': 0.5,
    }
    return Hiera(**plain | args)


WIDEN = ('bapat', 'fact_tk', 'fact_tt', 'patt', 'patt:qkv')
"""Made of projections of one width, where blocks that open a stage have two."""

TINY = {
    'timm_hiera': Tiny(
        'timm_hiera', build, (3, 32, 48), (3, 32, 48), exact=False, refuses=WIDEN
    ),
}
