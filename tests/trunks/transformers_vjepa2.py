"""Tiny VJEPA2Model of transformers; none where the package is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_methods import at_the_ends
from tiny_trunk import Tiny
from torch import Tensor, nn


def frames_first(model: nn.Module, x: Tensor) -> Tensor:
    """The sequence of a video (B, 3, T, H, W)."""
    return model(x.transpose(1, 2), skip_predictor=True).last_hidden_state


def build(**args: Any) -> nn.Module:
    """Two layers over 2 x 4 x 4 tokens."""
    from transformers import VJEPA2Config, VJEPA2Model

    plain = {
        'hidden_size': 32,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'mlp_ratio': 2,
        'crop_size': 32,
        'patch_size': 8,
        'frames_per_clip': 4,
        'pred_hidden_size': 32,
        'pred_num_hidden_layers': 1,
        'pred_num_attention_heads': 4,
    }
    return VJEPA2Model(VJEPA2Config(**plain | args))


FOUND = {
    'transformers_vjepa2': Tiny(
        'transformers_vjepa2',
        build,
        (3, 4, 32, 32),
        (3, 5, 40, 53),
        exact=False,
        meets=at_the_ends,
        forward=frames_first,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
