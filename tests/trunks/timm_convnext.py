"""Tiny timm ConvNeXt."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_methods import at_the_ends, covering
from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Four stages of two blocks."""
    import timm

    plain = {
        'depths': (2, 2, 2, 2),
        'dims': (16, 16, 32, 32),
        'num_classes': 5,
        'ls_init_value': 0.5,
    }
    return timm.create_model('convnext_atto', **plain | args)


TINY = {
    'timm_convnext': Tiny(
        'timm_convnext', build, (3, 64, 64), (3, 70, 85), exact=False, meets=covering
    ),
    'timm_convnext_bare': Tiny(
        'timm_convnext',
        partial(build, num_classes=0, use_grn=True, ls_init_value=None),
        (3, 64, 64),
        (3, 70, 85),
        exact=False,
        meets=at_the_ends,
    ),
}
