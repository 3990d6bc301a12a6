"""Tiny SwinModel; none where transformers is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_methods import at_the_ends
from tiny_trunk import Tiny
from torch import Tensor, nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, windows of 4."""
    from transformers import SwinConfig, SwinModel

    plain = {
        'image_size': 32,
        'embed_dim': 16,
        'depths': [2, 2],
        'num_heads': [2, 4],
        'window_size': 4,
        'drop_path_rate': 0.0,
    }
    return SwinModel(SwinConfig(**plain | args))


def tokens(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence; what is pooled is its mean.

    Upstream forgets the shift of a layer for good when a map is as small as a window.
    """
    for stage in model.encoder.layers:
        for j, layer in enumerate(stage.blocks):
            layer.shift_size = j % 2 * 2
    return model(x).last_hidden_state


FOUND = {
    'transformers_swin': Tiny(
        'transformers_swin',
        build,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        meets=at_the_ends,
        forward=tokens,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
