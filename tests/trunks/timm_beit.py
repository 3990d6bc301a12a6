"""Tiny timm Beit."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks with a table of position biases each."""
    from timm.models.beit import Beit

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dim': 32,
        'depth': 2,
        'num_heads': 4,
        'mlp_ratio': 2.0,
        'num_classes': 5,
        'init_values': 0.1,
        'use_abs_pos_emb': False,
        'use_rel_pos_bias': True,
    }
    return Beit(**plain | args)


TINY = {
    'timm_beit': Tiny(
        'timm_beit',
        build,
        (3, 32, 32),
        (3, 32, 32),
        exact=True,
    ),
}
