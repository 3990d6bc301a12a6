"""Tiny mmpretrain ViTSAM."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """A block of windows of 3 x 3 on 4 x 4 patches, one of global attention."""
    from mmpretrain.models import ViTSAM

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
        'global_attn_indexes': [1],
    }
    plain = {
        'arch': arch,
        'img_size': 32,
        'patch_size': 8,
        'window_size': 3,
        'out_channels': 16,
        'out_indices': [0, 1],
    }
    return ViTSAM(**plain | args)


TINY = {
    'mmpretrain_sam': Tiny(
        'mmpretrain_sam',
        build,
        (3, 32, 32),
        (3, 37, 50),
        exact=False,
        frozen_stages=lambda: build(frozen_stages=1),
        meets=covering,
    ),
}
