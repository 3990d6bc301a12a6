"""Tiny ViTModel of transformers; none where the package is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_methods import covering
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
    """Two layers, 4 x 4 patches."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(**SIZE | {'intermediate_size': 64} | args)
    return ViTModel(config, add_pooling_layer=False)


FOUND = {
    'transformers_vit': Tiny(
        'transformers_vit',
        build,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=covering,
        forward=fitted,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
