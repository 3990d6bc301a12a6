"""Res-Tuning-Bypass: a stream of tuners beside the frozen blocks."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.res_tuning import ResTuningBypass


def tuner(part: nn.Module, z: Tensor) -> Tensor:
    """A tuner from its tensors."""
    h = F.gelu(z @ part.down.weight.T + part.down.bias)
    return z + h @ part.up.weight.T + part.up.bias


def tuned(stem: str, **args) -> nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), ResTuningBypass(4, **args))
    model.eval()
    tiny.shake_(model)
    return model


def test_counts():
    assert counts('vit_b', ResTuningBypass()).delta == 387_312
    want = sum(2 * (2 * d * 10 + 10 + d) for d in widths('swin_b'))
    assert counts('swin_b', ResTuningBypass()).delta == want


def test_equals_sums_of_tuners_in_front_of_the_last_norm():
    model = plain_vit.tuned(ResTuningBypass(4))
    state = {}

    def edit(place, block, value, seen):
        if place == 'x0' and block == 0:
            state['x'] = value
        if place == 'x2':
            delta = plain_vit.delta(model, block, 'block')
            fed = tuner(delta.horizontal, value)
            state['x'] = tuner(delta.vertical, state['x']) + fed
        if place == 'final':
            return tiny.base('timm_vit', torch.double).norm(state['x'])
        return value

    plain_vit.check(model, edit)


@pytest.mark.parametrize('stem_', ['timm_vit', 'mmpretrain_swin'])
def test_the_trunk_has_no_graph_and_every_tuner_a_gradient(stem_):
    model, seen = tuned(stem_), []
    for module in model.modules():
        if hasattr(module, 'sublayers'):
            module.register_forward_hook(lambda m, i, y: seen.append(y.requires_grad))
    ys = tiny.outputs(model, tiny.images(stem_, dtype=torch.double))
    assert not any(seen)
    sum(y.square().sum() for y in ys).backward()
    deltas = {n: p for n, p in model.named_parameters() if 'petl' in n}
    assert all(p.grad.abs().max() > 0 for p in deltas.values())


def test_the_merging_of_the_trunk_takes_the_bypass_on():
    model = tuned('mmpretrain_swin')
    x, streams = tiny.images('mmpretrain_swin', dtype=torch.double), []

    def keep(module, args, y):
        streams.append(y)

    for module in model.modules():
        if hasattr(module, 'sublayers'):
            module.register_forward_hook(keep)
    got = tiny.outputs(model, x)
    blocks = [b.petl.block['0'] for stage in model.stages for b in stage.blocks]
    h = model.drop_after_pos(model.patch_embed(x)[0])
    with torch.no_grad():
        for i, (delta, fed) in enumerate(zip(blocks, streams, strict=True)):
            h = tuner(delta.vertical, h) + tuner(delta.horizontal, fed)
            if i == 1:
                first = model.norm0(h)
                h, grid = model.stages[0].downsample(h, (8, 8))
        for y, want in zip(got, (first, model.norm1(h)), strict=True):
            assert y.shape[2] == {16: 8, 32: grid[0]}[y.shape[1]]
            flat = y.flatten(2).transpose(1, 2)
            torch.testing.assert_close(flat, want, rtol=1e-9, atol=1e-9)


def test_zero_init_last_adds_the_last_output_as_it_is():
    model = mmpetl.inject(tiny.base('timm_vit'), ResTuningBypass(zero_init_last=True))
    first, last = (b.petl.block['0'] for b in model.blocks)
    z = torch.randn(2, 3, 32)
    for name in ('vertical', 'horizontal'):
        assert torch.equal(getattr(last, name)(z), z)
        assert not torch.allclose(getattr(first, name)(z), z)


def test_the_last_norm_is_read_and_what_acts_at_the_output_is_refused():
    model = mmpetl.inject(tiny.base('timm_vit'), ResTuningBypass())
    mmpetl.inject(model, 'LNTune')
    mmpetl.inject(model, 'SSF')
    model(tiny.images('timm_vit')).sum().backward()
    assert model.norm.weight.requires_grad
    assert model.norm.weight.grad.abs().max() > 0
    with pytest.raises(PETLError, match='hands over a feature of its own') as error:
        mmpetl.inject(model, {'type': 'LST', 'reduction': 2})
    assert '\n' not in str(error.value)
