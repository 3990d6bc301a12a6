"""Tiny mmseg MSCAN."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks."""
    from mmseg.models.backbones import MSCAN

    plain = {
        'embed_dims': [32, 64],
        'mlp_ratios': [2, 2],
        'depths': [2, 2],
        'num_stages': 2,
        'norm_cfg': {'type': 'BN'},
    }
    return MSCAN(**plain | args)


TINY = {
    'mmseg_mscan': Tiny('mmseg_mscan', build, (3, 32, 32), (3, 38, 53), exact=False),
}
