"""Tiny mmpretrain ConvNeXt."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks with maps as outputs."""
    from mmpretrain.models import ConvNeXt

    plain = {
        'arch': {'depths': [2, 2], 'channels': [16, 32]},
        'stem_patch_size': 4,
        'out_indices': [0, 1],
        'gap_before_final_norm': False,
        'layer_scale_init_value': 0.5,
    }
    return ConvNeXt(**plain | args)


TINY = {
    'mmpretrain_convnext': Tiny(
        'mmpretrain_convnext',
        build,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        frozen_stages=lambda: build(frozen_stages=1),
        meets=covering,
    ),
    'mmpretrain_convnext_v2': Tiny(
        'mmpretrain_convnext',
        partial(
            build,
            use_grn=True,
            layer_scale_init_value=0.0,
            gap_before_final_norm=True,
            out_indices=[1],
            linear_pw_conv=False,
        ),
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        meets=at_the_ends,
    ),
}
