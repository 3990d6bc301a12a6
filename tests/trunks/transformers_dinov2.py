"""Tiny Dinov2Models and Dinov2Backbones; none where transformers is not installed."""

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
PLAIN = {'mlp_ratio': 2, 'layerscale_value': 0.5}


def build(**args: Any) -> nn.Module:
    """Two layers and a class token."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**SIZE | PLAIN | args))


def build_registers(**args: Any) -> nn.Module:
    """Two layers and three registers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    plain = PLAIN | {'num_register_tokens': 3}
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZE | plain | args))


def tokens(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence; the class token alone is one of its rows."""
    return model(x).last_hidden_state


def build_backbone(**args: Any) -> nn.Module:
    """A map behind the last layer, through the norm."""
    from transformers import Dinov2Backbone, Dinov2Config

    plain = PLAIN | {'out_indices': [2]}
    return unhooked(Dinov2Backbone(Dinov2Config(**SIZE | plain | args)))


def build_registers_backbone(**args: Any) -> nn.Module:
    """Tokens behind both layers, as they are."""
    from transformers import Dinov2WithRegistersBackbone, Dinov2WithRegistersConfig

    plain = PLAIN | {'num_register_tokens': 3, 'out_indices': [1, 2]}
    plain |= {'apply_layernorm': False, 'reshape_hidden_states': False}
    config = Dinov2WithRegistersConfig(**SIZE | plain | args)
    return unhooked(Dinov2WithRegistersBackbone(config))


def unhooked(model: nn.Module) -> nn.Module:
    """Without upstream's hooks that record states, which cannot be pickled."""
    for module in model.modules():
        hooks = module._forward_hooks
        for key in [k for k, h in hooks.items() if 'output_capturing' in h.__name__]:
            del hooks[key]
        vars(module).pop('_output_capturing_hooks_installed', None)
    return model


def maps(model: nn.Module, x: Tensor) -> Any:
    """What leaves; upstream hangs its hooks up for a pass.

    It knows what to record of a class where a model of it has been built.
    """
    from transformers.utils import output_capturing

    for module in model.modules():
        if hasattr(module, '_can_record_outputs'):
            outputs = module._can_record_outputs
            output_capturing._CAN_RECORD_REGISTRY[module] = outputs
    try:
        return model(x).feature_maps
    finally:
        unhooked(model)


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
    'transformers_dinov2_backbone': Tiny(
        'transformers_dinov2',
        build_backbone,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=maps,
    ),
    'transformers_dinov2_registers_backbone': Tiny(
        'transformers_dinov2',
        build_registers_backbone,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=maps,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
