"""Features and effects on every trunk there is."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from tiny import shake_
from torch import Tensor, nn

from mmpetl.analysis import extract_features, method_effects
from mmpetl.core import PETLError, inject, injection_of


class Called(nn.Module):
    """A backbone that is called as its tests call it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return tiny.call(self.inner, x)


@torch.no_grad()
def test_features_and_effects(any_stem: str) -> None:
    """A block that a method leaves alone makes of its input what the base makes."""
    model = inject(tiny.base(any_stem), {'type': 'LoRA', 'rank': 2})
    base = inject(tiny.base(any_stem), 'LinearProbe')
    model.eval()
    base.eval()
    tuned, x = Called(model), tiny.images(any_stem)
    module, record = injection_of(model)
    blocks = len(list(record.site_map.blocks(module)))
    if isinstance(getattr(module, 'head', None), nn.Linear):
        with pytest.raises(PETLError, match='ends in a classifier of its own'):
            extract_features(tuned, [x])
    else:
        features = extract_features(tuned, [x])
        assert len(features.blocks) == blocks
        assert all(np.isfinite(block).all() for block in features.blocks)
    still = method_effects(tuned, [x], base)
    row = still.rows.index('whole block')
    assert np.nanmax(still.values[row]) < 1e-5
    shake_(model)
    assert (method_effects(tuned, [x], base).values[row, 1:] > 1e-5).any()
