"""Tiny mmseg BEiT and MAE."""

from __future__ import annotations

from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn


def build(kind: str = 'BEiT', **args: Any) -> nn.Module:
    """Two layers with maps as outputs."""
    from mmseg.models import backbones

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'mlp_ratio': 2,
        'out_indices': (0, 1),
        'final_norm': True,
    }
    return getattr(backbones, kind)(**plain | args)


def build_mae(**args: Any) -> nn.Module:
    """Likewise, of the other class."""
    return build('MAE', **args)


TINY = {
    'mmseg_beit': Tiny(
        'mmseg_beit', build, (3, 32, 32), (3, 32, 32), exact=False, meets=covering
    ),
    'mmseg_mae': Tiny(
        'mmseg_beit',
        build_mae,
        (3, 32, 32),
        (3, 32, 32),
        exact=False,
        meets=at_the_ends,
    ),
}
