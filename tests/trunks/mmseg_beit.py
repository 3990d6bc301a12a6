"""Tiny mmseg BEiT and MAE, whose inputs have one size but for uncovered edges."""

from __future__ import annotations

from typing import Any

from tiny_methods import covering, first_of_a_family
from tiny_trunk import Tiny
from torch import nn


def build(name: str = 'BEiT', **args: Any) -> nn.Module:
    """Two blocks of 4 x 5 patches, maps behind both."""
    from mmseg.models import backbones

    plain = {
        'img_size': (32, 40),
        'patch_size': 8,
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'mlp_ratio': 2,
        'out_indices': (0, 1),
        'final_norm': True,
    }
    return getattr(backbones, name)(**plain | args)


def build_mae(**args: Any) -> nn.Module:
    """The same with an absolute position table."""
    return build('MAE', **args)


TINY = {
    'mmseg_beit': Tiny(
        'mmseg_beit', build, (3, 32, 40), (3, 37, 46), exact=False, meets=covering
    ),
    'mmseg_mae': Tiny(
        'mmseg_beit',
        build_mae,
        (3, 32, 40),
        (3, 37, 46),
        exact=False,
        meets=first_of_a_family,
    ),
}
