"""Tiny mmpretrain BEiTViT. Its inputs have one size, up to padding."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks of 4 x 5 patches, the mean of the patches."""
    from mmpretrain.models import BEiTViT

    arch = {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    plain = {'arch': arch, 'img_size': (32, 40), 'patch_size': 8}
    return BEiTViT(**plain | args)


SHARED = {'use_rel_pos_bias': False, 'use_shared_rel_pos_bias': True}

TINY = {
    'mmpretrain_beit': Tiny(
        'mmpretrain_beit',
        build,
        (3, 32, 40),
        (3, 31, 38),
        exact=False,
        frozen_stages=lambda: build(frozen_stages=1),
        meets=covering,
    ),
    'mmpretrain_beit_cls': Tiny(
        'mmpretrain_beit',
        partial(build, out_type='cls_token', final_norm=True, **SHARED),
        (3, 32, 40),
        (3, 31, 38),
        exact=False,
        meets=at_the_ends,
    ),
}
