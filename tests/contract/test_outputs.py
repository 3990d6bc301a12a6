"""What a tuned backbone gives, held on every pair of method and backbone."""

from __future__ import annotations

import pytest
import torch
from promises import F64, gap, offered_sites, same
from tiny import (
    Pair,
    bare,
    base,
    decide_,
    fits,
    images,
    outputs,
    plain_outputs,
    record,
    shake_,
)
from tiny_methods import MethodCase, method_cases

from mmpetl.core import PETLError, eject, fold, inject, slots


@torch.no_grad()
def test_output_equals_the_base_at_step_0(pair: Pair) -> None:
    model, x = pair.injected(), images(pair.stem)
    plain, ys = plain_outputs(pair.stem), outputs(model, x)
    if feature := [s for s in offered_sites(model) if s.kind == 'feature']:
        dims = [pair.method.build().feature_dims(s) for s in feature]
        assert [y.shape for y in ys] == [
            (len(y), d) for y, d in zip(plain, dims, strict=True)
        ]
    else:
        assert [y.shape for y in ys] == [y.shape for y in plain]
    (slot,) = slots(model)
    if slot.method.starts_as_identity:
        assert same(ys, plain), (
            'it changes the base at step 0: start a factor at zero, or say '
            'starts_as_identity = False'
        )


@torch.no_grad()
def test_evaluation_is_deterministic(brief_pair: Pair) -> None:
    model, x = brief_pair.inject(), images(brief_pair.stem, odd=True)
    shake_(model)
    first = outputs(model, x)
    assert same(outputs(model, x), first), 'a pass draws numbers, or leaves a trace'
    assert all(torch.isfinite(y).all() for y in first)


@pytest.mark.parametrize('case', method_cases(), ids=lambda case: case.id)
def test_an_empty_batch_passes_and_comes_back(case: MethodCase) -> None:
    """As in a process that has no samples left."""
    if not fits(case, 'timm_vit'):
        return  # what looks along time, and along the grid of a pyramid
    model = inject(base('timm_vit'), case.build()).train()
    (got,) = outputs(model, images('timm_vit')[:0])
    assert len(got) == 0
    got.sum().backward()


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(brief_pair: Pair) -> None:
    model = brief_pair.inject(F64)
    x = images(brief_pair.stem, batch=3, odd=True, dtype=F64)
    shake_(model)
    together = outputs(model, x)
    for i in range(3):
        alone = outputs(model, x[i : i + 1])
        assert gap(alone, [y[i : i + 1] for y in together]) < 1e-9, (
            'what an image gives depends on the others of its batch'
        )
    backwards = outputs(model, x.flip(0))
    assert gap([y.flip(0) for y in backwards], together) < 1e-9


@torch.no_grad()
@pytest.mark.parametrize(
    'odd', [pytest.param(False, marks=pytest.mark.slow), True], ids=['square', 'odd']
)
def test_folded_equals_unfolded(folding_pair: Pair, odd: bool) -> None:
    pair = folding_pair
    plain = bare(pair.stem)
    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 1e-5)):
        x = images(pair.stem, odd=odd, dtype=dtype)
        model = pair.inject(dtype)
        shake_(model)
        tuned = outputs(model, x)
        assert fold(model) is model
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        assert gap(outputs(model, x), tuned) < tolerance, (
            '`fold` writes something else than `before` and `after` compute'
        )


@torch.no_grad()
def test_what_does_not_fold_is_left_as_it_is(unfolding_pair: Pair) -> None:
    model, x = unfolding_pair.inject(), images(unfolding_pair.stem)
    shake_(model)
    tuned = outputs(model, x)
    assert record(model).slots['0'].sites
    with pytest.raises(PETLError, match='cannot be folded'):
        fold(model)
    assert same(outputs(model, x), tuned)


@torch.no_grad()
def test_two_methods_stack_and_leave_each_other_alone(brief_pair: Pair) -> None:
    model, x = brief_pair.inject(), images(brief_pair.stem)
    shake_(model)
    decide_(model)
    alone = outputs(model, x)
    low_rank = {'type': 'LoRA', 'rank': 3, 'targets': ['ffn.fc2']}
    inject(model, low_rank, slot='second')
    model.eval()
    assert same(outputs(model, x), alone)
    for name, param in model.named_parameters():
        if '.second.' in name:
            param.add_(0.1 * torch.randn_like(param))
    assert not same(outputs(model, x), alone)
    eject(model, 'second')
    assert same(outputs(model, x), alone)
