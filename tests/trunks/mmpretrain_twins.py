"""Tiny mmpretrain Twins."""

from __future__ import annotations

from typing import Any

from tiny_trunk import Tiny
from torch import nn

ARCH = {
    'embed_dims': [32, 64],
    'depths': [2, 2],
    'num_heads': [1, 2],
    'patch_sizes': [4, 2],
    'strides': [4, 2],
    'mlp_ratios': [2, 2],
    'sr_ratios': [2, 1],
}


def build(**args: Any) -> nn.Module:
    """SVT: in each of two stages a block with windows of 3, and one with fewer keys."""
    from mmpretrain.models import SVT

    plain = {
        'arch': ARCH | {'window_sizes': [3, 3]},
        'out_indices': (1,),
        'norm_after_stage': [False, True],
        'qkv_bias': True,
    }
    return SVT(**plain | args)


def build_pcpvt(**args: Any) -> nn.Module:
    """PCPVT: two stages of two blocks with fewer keys."""
    from mmpretrain.models import PCPVT

    return PCPVT(**{'arch': ARCH, 'out_indices': (0, 1), 'qkv_bias': True} | args)


TINY = {
    'mmpretrain_svt': Tiny(
        'mmpretrain_twins', build, (3, 32, 32), (3, 38, 53), exact=False
    ),
}
