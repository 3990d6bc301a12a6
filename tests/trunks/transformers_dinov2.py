"""Tiny Dinov2Models; none where transformers is not installed."""

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


def build(**args: Any) -> nn.Module:
    """Two layers and a class token."""
    from transformers import Dinov2Config, Dinov2Model

    plain = {'mlp_ratio': 2, 'layerscale_value': 0.5}
    return Dinov2Model(Dinov2Config(**SIZE | plain | args))


def build_registers(**args: Any) -> nn.Module:
    """Two layers and three registers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    plain = {'mlp_ratio': 2, 'layerscale_value': 0.5, 'num_register_tokens': 3}
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZE | plain | args))


def tokens(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence; the class token alone is one of its rows."""
    return model(x).last_hidden_state


FOUND = {
    'transformers_dinov2': Tiny(
        'transformers_dinov2',
        build,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=tokens,
    ),
    'transformers_dinov2_registers': Tiny(
        'transformers_dinov2',
        build_registers,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=tokens,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
