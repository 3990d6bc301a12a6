"""Tiny VideoMAEModel of transformers; none where the package is not installed."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from tiny_methods import at_the_ends
from tiny_trunk import Tiny
from torch import Tensor, nn

SIZE = {
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'image_size': 32,
    'patch_size': 8,
}


def frames_first(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence of a video (B, 3, T, H, W)."""
    return model(x.transpose(1, 2)).last_hidden_state


def build(**args: Any) -> nn.Module:
    """Two layers over 2 x 4 x 4 tokens; images have one size."""
    from transformers import VideoMAEConfig, VideoMAEModel

    plain = {'intermediate_size': 64, 'num_frames': 4, 'use_mean_pooling': False}
    return VideoMAEModel(VideoMAEConfig(**SIZE | plain | args))


FOUND = {
    'transformers_videomae': Tiny(
        'transformers_videomae',
        build,
        (3, 4, 32, 32),
        (3, 4, 32, 32),
        exact=False,
        meets=at_the_ends,
        forward=frames_first,
    ),
    'transformers_videomae_mean': Tiny(
        'transformers_videomae',
        partial(build, use_mean_pooling=True),
        (3, 4, 32, 32),
        (3, 4, 32, 32),
        exact=False,
        meets=at_the_ends,
        forward=frames_first,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
