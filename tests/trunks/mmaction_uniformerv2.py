"""Tiny mmaction UniFormerV2s: image blocks and a decoder, and local convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tiny_methods import first_of_a_family
from tiny_trunk import Tiny
from torch import nn


def build(bias: bool = False, **args: Any) -> nn.Module:
    """Two blocks over 2 x 2 tokens of each of three frames.

    Args:
        bias: Whether patches have a bias, which SSF needs to fold a shift into; those
            of upstream have none.
        args: Of the class.
    """
    from mmaction.models import UniFormerV2

    plain = {
        'input_resolution': 16,
        'patch_size': 8,
        'width': 32,
        'layers': 2,
        'heads': 4,
        't_size': 3,
        'return_list': [0, 1],
        'n_layers': 2,
        'n_dim': 32,
        'n_head': 4,
        'mlp_factor': 2.0,
        'mlp_dropout': [0.0, 0.0],
        'clip_pretrained': False,
    }
    model = UniFormerV2(**plain | args)
    if bias:
        model.conv1.bias = nn.Parameter(torch.zeros(32))
    return model


TINY = {
    'mmaction_uniformerv2': Tiny(
        'mmaction_uniformerv2',
        partial(build, bias=True),
        (3, 3, 16, 16),
        (3, 3, 16, 16),
        exact=False,
    ),
    'mmaction_uniformerv2_local': Tiny(
        'mmaction_uniformerv2',
        partial(
            build,
            no_lmhra=False,
            double_lmhra=True,
            temporal_downsample=True,
            t_size=4,
            backbone_drop_path_rate=0.3,
        ),
        (3, 4, 16, 16),
        (3, 4, 16, 16),
        exact=False,
        meets=first_of_a_family,
    ),
}
