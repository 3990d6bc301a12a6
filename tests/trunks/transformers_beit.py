"""Tiny BeitModel of transformers; none where the package is not installed."""

from __future__ import annotations

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


def fitted(model: nn.Module, x: Tensor) -> Any:
    """The call for images of any size."""
    return model(x, interpolate_pos_encoding=True)


def build(**args: Any) -> nn.Module:
    """Two layers, a table for each, and the mean behind a norm."""
    from transformers import BeitConfig, BeitModel

    plain = {
        'intermediate_size': 64,
        'use_relative_position_bias': True,
        'layer_scale_init_value': 0.5,
        'drop_path_rate': 0.0,
    }
    return BeitModel(BeitConfig(**SIZE | plain | args))


def build_shared(**args: Any) -> nn.Module:
    """One table for all layers, a final norm, absolute positions."""
    plain = {
        'use_relative_position_bias': False,
        'use_shared_relative_position_bias': True,
        'use_absolute_position_embeddings': True,
        'use_mean_pooling': False,
    }
    return build(**plain | args)


FOUND = {
    'transformers_beit': Tiny(
        'transformers_beit',
        build,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=fitted,
    ),
    'transformers_beit_shared': Tiny(
        'transformers_beit',
        build_shared,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=fitted,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
