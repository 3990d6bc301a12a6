"""Tiny DINOv3ViTModel and -Backbone of transformers; none where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import Tensor, nn

from trunks.transformers_dinov2 import maps, unhooked

SIZE = {
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'image_size': 32,
    'patch_size': 8,
}
# Biases of keys too, so that a shift of them folds: rotations stand behind it.
PLAIN = {
    'intermediate_size': 64,
    'num_register_tokens': 2,
    'layerscale_value': 0.5,
    'key_bias': True,
}


def build(**args: Any) -> nn.Module:
    """Two layers, two registers, rotary positions."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(**SIZE | PLAIN | args))


def build_backbone(**args: Any) -> nn.Module:
    """Maps behind both layers, the last one through the norm."""
    from transformers import DINOv3ViTBackbone, DINOv3ViTConfig

    plain = PLAIN | {'out_indices': [1, 2], 'apply_layernorm': False}
    return unhooked(DINOv3ViTBackbone(DINOv3ViTConfig(**SIZE | plain | args)))


def tokens(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence; the class token alone is one of its rows."""
    return model(x).last_hidden_state


FOUND = {
    'transformers_dinov3': Tiny(
        'transformers_dinov3',
        build,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=covering,
        forward=tokens,
    ),
    'transformers_dinov3_backbone': Tiny(
        'transformers_dinov3',
        build_backbone,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=maps,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
