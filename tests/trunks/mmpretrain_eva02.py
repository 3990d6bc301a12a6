"""Tiny mmpretrain ViTEVA02.

Its odd input has the grid of the square one: upstream writes the tables of another
grid over its buffers, as ``tests/backbones/test_plain_mm.py`` says.
"""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks of 4 x 4 patches, gated networks with a norm inside."""
    from mmpretrain.models import ViTEVA02

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 40,
    }
    plain = {
        'arch': arch,
        'img_size': 32,
        'patch_size': 8,
        'sub_ln': True,
        'out_type': 'avg_featmap',
        'final_norm': False,
    }
    return ViTEVA02(**plain | args)


TINY = {
    'mmpretrain_eva02': Tiny(
        'mmpretrain_eva02',
        build,
        (3, 32, 32),
        (3, 30, 31),
        exact=False,
        meets=covering,
        refuses=('fact_tk', 'fact_tt', 'lst'),
    ),
}
