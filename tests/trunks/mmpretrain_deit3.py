"""Tiny mmpretrain DeiT3."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks, the vector of the class token."""
    from mmpretrain.models import DeiT3

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    plain = {'arch': arch, 'img_size': 32, 'patch_size': 8}
    return DeiT3(**plain | args)


TINY = {
    'mmpretrain_deit3': Tiny(
        'mmpretrain_deit3',
        build,
        (3, 32, 32),
        (3, 37, 50),
        exact=True,
        meets=covering,
        tied=('norm1', 'norm2'),
    ),
}
