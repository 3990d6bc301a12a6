"""A model whose kernels lie with their channels last is folded and calibrated too."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mmpetl
from mmpetl.core import PETLError

DOUBLE = torch.float64
LAST = torch.channels_last

TRUNKS = ['timm_vit', 'timm_swin', 'timm_convnext', 'mmpretrain_convnext', 'mmseg_mit']


def layouts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: p.stride() for n, p in model.named_parameters() if 'petl' not in n}


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, groups=2)
    )


def labelled(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.arange(len(x)) % 2)]


@torch.no_grad()
@pytest.mark.parametrize('trunk', TRUNKS)
def test_what_convolutions_have_learnt_is_folded(trunk: str) -> None:
    x = tiny.images(trunk, dtype=DOUBLE)
    model = tiny.base(trunk, DOUBLE).to(memory_format=LAST)
    mmpetl.inject(model, 'SSF').eval()
    tiny.shake_(model)
    want, kept = tiny.outputs(model, x), layouts(model)
    mmpetl.fold(model)
    assert layouts(model) == kept
    for got, y in zip(tiny.outputs(model, x), want, strict=True):
        torch.testing.assert_close(got, y)


@torch.no_grad()
@pytest.mark.parametrize('method', ['LoRA', 'DoRA', 'GPS', 'SSF'])
def test_layers_of_any_model_are_folded(method: str) -> None:
    more = {'GPS': {'criterion': 'task'}, 'SSF': {}}.get(method, {'rank': 2})
    model = convolutions().double().to(memory_format=LAST)
    mmpetl.inject(model, {'type': method, **more}).eval()
    tiny.shake_(model)
    x = torch.randn(2, 3, 9, 9, dtype=DOUBLE)
    want = model(x)
    plain = convolutions().double()
    plain.load_state_dict(mmpetl.fold(model).state_dict())
    assert model[0].weight.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(model(x), want)
    torch.testing.assert_close(plain(x), want)


@pytest.mark.parametrize(
    'method', [{'type': 'GPS', 'criterion': 'task', 'num_weights': 2}, 'SPT'], ids=str
)
def test_a_data_pass_finds_what_it_finds_in_rows(method: dict | str) -> None:
    found = []
    for form in (torch.contiguous_format, LAST):
        model = tiny.base('timm_vit', DOUBLE).to(memory_format=form)
        mmpetl.inject(model, method)
        built = mmpetl.core.injections(model)[0][2].slots['0'].method
        torch.manual_seed(0)
        batches = labelled(tiny.images('timm_vit', batch=4, dtype=DOUBLE))
        if method == 'SPT':
            seen = built.sensitivities(model, batches)
            parts = seen.weights, seen.biases, seen.vectors
        else:
            parts = (built.gradients(model, batches),)
        grads = [g for part in parts for g in part.values()]
        found.append(grads)
    assert all(g.any() for g in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_weight_that_is_computed_is_not_written_to() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU())
    mmpetl.inject(model, {'type': 'LoRA', 'rank': 2})
    tiny.shake_(model)
    parametrizations.weight_norm(model[0])
    x = torch.randn(2, 6)
    want = model(x)
    with pytest.raises(PETLError, match='computed from other tensors'):
        mmpetl.fold(model)
    torch.testing.assert_close(model(x), want)
