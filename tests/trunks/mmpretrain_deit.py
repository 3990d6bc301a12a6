"""Tiny mmpretrain DistilledVisionTransformer."""

from __future__ import annotations

from typing import Any

from tiny_methods import at_the_ends
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks, the vectors of two tokens."""
    from mmpretrain.models import DistilledVisionTransformer

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    plain = {'arch': arch, 'img_size': 32, 'patch_size': 8}
    return DistilledVisionTransformer(**plain | args)


TINY = {
    'mmpretrain_deit': Tiny(
        'mmpretrain_deit',
        build,
        (3, 32, 32),
        (3, 37, 50),
        exact=True,
        frozen_stages=lambda: build(frozen_stages=1),
        meets=at_the_ends,
    ),
}
