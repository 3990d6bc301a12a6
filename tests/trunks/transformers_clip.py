"""Tiny image towers (CLIP, SigLIP); none where transformers is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_methods import MethodCase, at_the_ends
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


def folding(case: MethodCase) -> bool:
    """Without SSF, which has no bias of CLIP's patches to fold a shift into."""
    return at_the_ends(case) and case.name != 'SSF'


def build(**args: Any) -> nn.Module:
    """CLIP's, two layers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**SIZE | {'intermediate_size': 64} | args)
    return CLIPVisionModel(config)


def build_siglip(**args: Any) -> nn.Module:
    """SigLIP's, two layers and attention pooling."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**SIZE | {'intermediate_size': 64} | args)
    return SiglipVisionModel(config)


FOUND = {
    'transformers_clip': Tiny(
        'transformers_clip',
        build,
        (3, 32, 32),
        (3, 40, 40),
        exact=False,
        meets=folding,
        forward=fitted,
    ),
    'transformers_siglip': Tiny(
        'transformers_clip',
        build_siglip,
        (3, 32, 32),
        (3, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=fitted,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
