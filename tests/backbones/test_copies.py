"""Copies, pickles and exports of injected backbones are whole."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tiny import Costly, Nothing, base, folding, images, outputs, record, shake_
from torch import nn
from torch.export import Dim, export

import mmpetl
from mmpetl.core import eject, inject

COPIES = {
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize('how', COPIES)
@torch.no_grad()
def test_a_copy_acts_trains_and_ejects(stem: str, how: str) -> None:
    plain, x = base(stem), images(stem)
    model = inject(base(stem), folding(stem).build(), slot='a')
    inject(model, 'BitFit', slot='b')
    inject(model, 'LNTune', slot='c')
    shake_(model)
    mmpetl.disable(model, 'c')
    other = COPIES[how](model)
    for a, b in zip(outputs(other, x), outputs(model, x), strict=True):
        assert torch.equal(a, b)
    other.train()
    other.eval()
    mmpetl.enable(other, 'c')
    assert any((a - b).abs().max() > 0 for a, b in _pairs(other, model, x))
    for slot in ('b', 'a', 'c'):
        eject(other, slot)
    assert [type(m) for m in other.modules()] == [type(m) for m in plain.modules()]
    assert list(other.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in _pairs(other, plain, x))
    assert set(record(model).slots) == {'a', 'b', 'c'}


def _pairs(a: nn.Module, b: nn.Module, x: torch.Tensor):
    return zip(outputs(a, x), outputs(b, x), strict=True)


@pytest.mark.parametrize('tuned', [False, True], ids=['Nothing', 'method'])
@torch.no_grad()
def test_an_export_takes_any_batch(costly_stem: Costly, tuned: bool) -> None:
    stem = costly_stem.stem
    odd = not tuned  # resized positions and padding without deltas
    model = inject(base(stem), folding(stem).build() if tuned else Nothing())
    shake_(model)
    x = images(stem, 3, odd=odd)
    batch = Dim('batch', min=2, max=64)
    program = export(model, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    ran = torch.export.load(file).module()
    for count in (2, 5):
        x = images(stem, count, odd=odd)
        for a, b in zip(outputs(ran, x), outputs(model, x), strict=True):
            assert a.shape[0] == count
            torch.testing.assert_close(a, b)
