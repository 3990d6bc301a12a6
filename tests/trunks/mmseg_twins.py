"""Tiny mmseg Twins."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn

PLAIN = {
    'embed_dims': [32, 64],
    'patch_sizes': [4, 2],
    'strides': [4, 2],
    'num_heads': [1, 2],
    'mlp_ratios': [2, 2],
    'out_indices': (0, 1),
    'depths': [2, 2],
    'sr_ratios': [2, 1],
    'qkv_bias': True,
    'drop_path_rate': 0.0,
}


def build(**args: Any) -> nn.Module:
    """SVT: in each of two stages a block with windows of 3, and one with fewer keys."""
    from mmseg.models.backbones import SVT

    return SVT(**PLAIN | {'windiow_sizes': [3, 3]} | args)


def build_pcpvt(**args: Any) -> nn.Module:
    """PCPVT: two stages of two blocks with fewer keys, and no norms behind them."""
    from mmseg.models.backbones import PCPVT

    return PCPVT(**PLAIN | args)


TINY = {
    'mmseg_svt': Tiny('mmseg_twins', build, (3, 32, 32), (3, 38, 53), exact=False),
}
