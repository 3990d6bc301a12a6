"""Tiny mmaction TimeSformers, one for each kind of attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_methods import at_the_ends, first_of_a_family
from tiny_trunk import Tiny
from torch import nn

CLIP = (3, 3, 16, 16)  # positions are made for one size


def build(**args: Any) -> nn.Module:
    """Two layers over 3 x 2 x 2 tokens; without arguments space and time divided."""
    from mmaction.models import TimeSformer
    from mmengine.registry import DefaultScope

    plain = {
        'num_frames': 3,
        'img_size': 16,
        'patch_size': 8,
        'embed_dims': 32,
        'num_heads': 4,
        'num_transformer_layers': 2,
    }
    with DefaultScope.overwrite_default_scope('mmaction'):  # its layers are configs
        return TimeSformer(**plain | args)


TINY = {
    'mmaction_timesformer': Tiny(
        'mmaction_timesformer',
        build,
        CLIP,
        CLIP,
        exact=False,
        refuses=('lst',),  # side blocks start from the one attention of a block
    ),
    'mmaction_timesformer_joint': Tiny(
        'mmaction_timesformer',
        partial(build, attention_type='joint_space_time'),
        CLIP,
        CLIP,
        exact=False,
        meets=first_of_a_family,
    ),
    'mmaction_timesformer_space': Tiny(
        'mmaction_timesformer',
        partial(build, attention_type='space_only'),
        CLIP,
        CLIP,
        exact=False,
        meets=at_the_ends,
    ),
}
