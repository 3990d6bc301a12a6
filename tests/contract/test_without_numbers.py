"""A device without numbers tells shapes and operations of any method."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import Pair, base, images, outputs

from mmpetl.core import inject

META = torch.device('meta')
slow = pytest.mark.slow


def _cases() -> list:
    """Every method on the plain trunk; the others are slow."""
    plain = tiny.HOSTS['plain']
    return [
        pytest.param(pair, id=pair.id, marks=() if pair.stem == plain else slow)
        for pair in tiny.pairs()
    ]


@pytest.mark.parametrize('met', _cases())
def test_a_step_without_numbers_has_the_shapes_of_one_with(met: Pair) -> None:
    stem = met.stem
    x = images(stem)
    with torch.no_grad():
        expected = [(y.shape, y.dtype) for y in outputs(met.injected(), x)]
    model = inject(base(stem).to(META), met.method.build())
    model.train()
    ys = outputs(model, x.to(META))
    assert [(y.shape, y.dtype) for y in ys] == expected
    assert all(y.is_meta for y in ys)
    loss = sum(y.sum() for y in ys)
    if loss.requires_grad:  # not where nothing trains, or beside the outputs
        loss.backward()
        assert any(p.grad is not None for p in model.parameters())
