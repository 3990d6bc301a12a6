"""Tiny ConvNextModels and ConvNextBackbones; none where transformers is missing."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn

from trunks.transformers_dinov2 import maps, unhooked

SIZE = {'num_stages': 2, 'depths': [2, 2], 'hidden_sizes': [16, 32]}


def build(version: str = '', **args: Any) -> nn.Module:
    """Two stages of two layers; the last map and the norm of its mean."""
    import transformers

    plain = {'layer_scale_init_value': 0.5} if not version else {}
    config = getattr(transformers, f'ConvNext{version}Config')
    model = getattr(transformers, f'ConvNext{version}Model')
    return model(config(**SIZE | plain | args))


def build_backbone(version: str = '', **args: Any) -> nn.Module:
    """Maps behind the stem and both stages, each through its norm."""
    import transformers

    plain = {'layer_scale_init_value': 0.5} if not version else {}
    plain |= {'out_indices': [0, 1, 2]}
    config = getattr(transformers, f'ConvNext{version}Config')
    model = getattr(transformers, f'ConvNext{version}Backbone')
    return unhooked(model(config(**SIZE | plain | args)))


def both(model: nn.Module, x: Any) -> Any:
    """The map and the vector."""
    y = model(x)
    return y.last_hidden_state, y.pooler_output


def entry(build: Any, forward: Any, meets: Any) -> Tiny:
    """One of the two classes, in one of the two versions."""
    odd = (3, 38, 53)
    return Tiny(
        'transformers_convnext',
        build,
        (3, 32, 32),
        odd,
        exact=False,
        meets=meets,
        forward=forward,
    )


FOUND = {
    'transformers_convnext': entry(build, both, covering),
    'transformers_convnext_v2': entry(partial(build, 'V2'), both, at_the_ends),
    'transformers_convnext_backbone': entry(build_backbone, maps, covering),
    'transformers_convnext_v2_backbone': entry(
        partial(build_backbone, 'V2'), maps, at_the_ends
    ),
}
TINY = FOUND if find_spec('transformers') else {}
