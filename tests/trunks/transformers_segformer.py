"""Tiny SegformerModel; none where transformers is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tiny_trunk import Tiny
from torch import Tensor, nn


def build(**args: Any) -> nn.Module:
    """Two stages of two blocks, with keys of 2 x 2 tokens and of one."""
    from transformers import SegformerConfig, SegformerModel

    plain = {
        'num_encoder_blocks': 2,
        'depths': [2, 2],
        'hidden_sizes': [32, 64],
        'num_attention_heads': [1, 2],
        'patch_sizes': [7, 3],
        'strides': [4, 2],
        'sr_ratios': [2, 1],
        'mlp_ratios': [2, 2],
        'drop_path_rate': 0.0,
    }
    return SegformerModel(SegformerConfig(**plain | args))


def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each stage leaves.

    Upstream's own hooks for it, by ``output_hidden_states``, stay for good and cannot
    be pickled.
    """
    found: list[Tensor] = []
    handles = [
        stage.register_forward_hook(lambda module, args, y: found.append(y))
        for stage in model.stages
    ]
    try:
        last = model(x).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    assert last is found[-1]
    return found


FOUND = {
    'transformers_segformer': Tiny(
        'transformers_segformer',
        build,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        forward=maps,
    ),
}
TINY = FOUND if find_spec('transformers') else {}
