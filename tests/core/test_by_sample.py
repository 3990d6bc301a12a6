"""Samples of one batch with slots of their own, in as few passes as there can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, inject

F64 = torch.float64

CHEAP = ('convpass', 'fact_tk', 'ia3', 'lora', 'lst', 'ssf', 'vpt_deep', 'bitfit')
"""Methods that meet the plain host by default; ``-m slow`` has all, on all hosts."""

SLOTS = ['cars', 'birds', None, 'cars', 'birds']
"""Names that no part of a delta has."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'slot_pair' in metafunc.fixturenames:
        brief = metafunc.config.getoption('markexpr').startswith('not slow')
        made = cheap_pairs() if brief else every_pair()
        metafunc.parametrize(
            'slot_pair',
            [
                pytest.param(p, id=p.id, marks=() if is_cheap(p) else pytest.mark.slow)
                for p in made
            ],
        )


def is_cheap(pair: tiny.Pair) -> bool:
    return pair.stem == tiny.HOSTS['plain'] and pair.method.id in CHEAP


def cheap_pairs() -> Iterator[tiny.Pair]:
    cases = {case.id: case for case in tiny.method_cases()}
    return (tiny.Pair(cases[id], tiny.HOSTS['plain']) for id in CHEAP)


def every_pair() -> Iterator[tiny.Pair]:
    """Each method on the hosts, and where these have no place for it on one trunk."""
    for case in tiny.method_cases():
        stems = [stem for stem in tiny.hosts() if tiny.fits(case, stem)]
        met = (s for s in tiny.TINY if tiny.TINY[s].meets(case) and tiny.fits(case, s))
        for stem in stems or [next(met)]:
            yield tiny.Pair(case, stem)


def with_slots(stem: str, **methods: Any) -> nn.Module:
    """A backbone with these slots, each shaken with a seed of its own and left on."""
    model = tiny.base(stem, F64)
    for seed, (slot, method) in enumerate(methods.items()):
        if seed:
            mmpetl.set_active(model, [])
        inject(model, method, slot=slot)
        tiny.shake_(model, seed=seed)
    model.eval()
    try:
        mmpetl.set_active(model, methods)
    except PETLError:  # two of them hand over features of their own
        mmpetl.set_active(model, [*methods][-1])
    return model


def by_slot(model: nn.Module, x: Tensor, slots: list[str | None]) -> list[Tensor]:
    """What leaves, with as many passes as are said."""
    calls = []

    def call(part: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(part))
        return tuple(tiny.outputs(model, part))

    found = mmpetl.run_by_slot(model, x, slots, call)
    assert len(calls) == len(mmpetl.passes_by_slot(model, slots))
    return list(found)


def alone(model: nn.Module, x: Tensor, slot: str | None) -> list[Tensor]:
    """What a slot computes of samples that are all its own."""
    on = [s.name for s in mmpetl.slots(model) if s.enabled]
    mmpetl.set_active(model, [] if slot is None else slot)
    try:
        return tiny.outputs(model, x)
    finally:
        mmpetl.set_active(model, on)


def check_alike(model: nn.Module, x: Tensor, slots: list[str | None]) -> None:
    with torch.no_grad():
        found = by_slot(model, x, slots)
        for slot in set(slots):
            rows = [i for i, own in enumerate(slots) if own == slot]
            for y, z in zip(found, alone(model, x[rows], slot), strict=True):
                assert (y[rows] - z).abs().max() <= 1e-10 * z.abs().max(), slot


def gradients(model: nn.Module, ys: list[Tensor]) -> dict[str, Tensor]:
    """Of the deltas, for a loss in which every element has a weight of its own."""
    named = model.named_parameters()
    params = {n: p for n, p in named if p.requires_grad and 'petl' in n.split('.')}
    loss = sum((y * weights_of(y)).sum() for y in ys)
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    zeros = (torch.zeros_like(p) for p in params.values())
    return {
        name: zero if grad is None else grad
        for name, grad, zero in zip(params, found, zeros, strict=True)
    }


def weights_of(y: Tensor) -> Tensor:
    """The same for each sample, whatever the batch."""
    g = torch.Generator().manual_seed(2)
    return torch.randn(y.shape[1:], generator=g, dtype=F64)


def test_a_sample_gets_what_its_slot_alone_computes(slot_pair: tiny.Pair) -> None:
    model = tiny.base(slot_pair.stem, F64)
    x = tiny.images(slot_pair.stem, len(SLOTS), dtype=F64)
    inject(model, slot_pair.method.build(), slot='birds')
    if tiny.trains_most(model):  # which keeps no base to go back to
        with torch.no_grad(), pytest.raises(PETLError, match='load the base again'):
            mmpetl.run_by_slot(model, x, ['birds', None, None, None, None])
        return
    methods = {name: slot_pair.method.build() for name in ('birds', 'cars')}
    model, slots = with_slots(slot_pair.stem, **methods), SLOTS
    with torch.no_grad():
        shapes = [[y.shape for y in alone(model, x, slot)] for slot in SLOTS]
    if shapes[0] != shapes[2]:  # the base gives narrower features
        with torch.no_grad(), pytest.raises(PETLError, match='different shapes'):
            by_slot(model, x, SLOTS)
        slots = ['birds', *SLOTS[:2], *SLOTS[3:]]
    check_alike(model, x, slots)
    facts = {slot.name: slot for slot in mmpetl.slots(model)}
    if any(slot.selected for slot in facts.values()):
        with pytest.raises(PETLError, match='run it under torch'):
            by_slot(model, x, slots)
        return
    if not any(slot.delta for slot in facts.values()):
        return
    found = gradients(model, by_slot(model, x, slots))
    largest = max(grad.abs().max() for grad in found.values())
    assert largest > 0
    for slot in (name for name, entry in facts.items() if entry.enabled):
        rows = [i for i, own in enumerate(slots) if own == slot]
        wanted = gradients(model, by_slot(model, x[rows], [slot] * len(rows)))
        for name, grad in wanted.items():
            if slot in name.split('.'):
                assert (found[name] - grad).abs().max() <= 1e-10 * largest, name


def test_every_trunk_serves_slots_side_by_side(costly_stem: tiny.Costly) -> None:
    stem = costly_stem.stem
    case = tiny.folding(stem)
    model = with_slots(stem, birds=case.build(), cars=case.build())
    assert mmpetl.passes_by_slot(model, SLOTS) == [('cars', 'birds', None)]
    check_alike(model, tiny.images(stem, len(SLOTS), dtype=F64), SLOTS)


def mixed() -> nn.Module:
    """Low rank and scales share a pass; prompts and biases of the base have their own.

    Windows, so that samples are several rows; the slot of the prompts is off.
    """
    model = with_slots(
        'mmpretrain_swin',
        lora={'type': 'LoRA', 'rank': 2},
        prompts={'type': 'VPTDeep', 'num_tokens': 3},
        biases='BitFit',
        scales='IA3',
    )
    mmpetl.disable(model, 'prompts')
    return model


def test_methods_of_all_kinds_meet_in_a_batch() -> None:
    model = mixed()
    slots = ['prompts', 'scales', None, 'biases', 'lora', 'prompts']
    assert mmpetl.passes_by_slot(model, slots) == [
        ('scales', None, 'lora'),
        ('prompts',),
        ('biases',),
    ]
    x = tiny.images('mmpretrain_swin', len(slots), dtype=F64)
    check_alike(model, x, slots)
    on = [s.name for s in mmpetl.slots(model) if s.enabled]
    assert on == ['lora', 'biases', 'scales']
    with torch.no_grad(), pytest.raises(PETLError, match='6 samples, and 2 slots'):
        mmpetl.run_by_slot(model, x, ['lora', None])
    with torch.no_grad(), pytest.raises(PETLError, match="no slot 'lor'"):
        mmpetl.run_by_slot(model, x[:1], ['lor'])
    with torch.no_grad(), pytest.raises(PETLError, match='no row for each'):
        mmpetl.run_by_slot(
            model, x, slots, call=lambda part: tiny.outputs(model, part)[0].mean(0)
        )


def test_slots_train_in_one_batch_as_apart() -> None:
    """With activation checkpointing, and a slot that is off and must learn nothing."""
    model = with_slots('mmpretrain_swin', a='LoRA', b='AdaptFormer', c='LoRA')
    mmpetl.disable(model, 'c')
    model.train()
    for block in model.modules():
        if isinstance(getattr(block, 'with_cp', None), bool):
            block.with_cp = True
        if isinstance(block, nn.Dropout):
            block.p = 0.0
    slots = ['b', 'c', 'a', 'b']
    x = tiny.images('mmpretrain_swin', len(slots), dtype=F64)
    found = gradients(model, by_slot(model, x, slots))
    assert found
    assert not any('.c.' in name for name in found)
    for slot in ('a', 'b'):
        rows = [i for i, own in enumerate(slots) if own == slot]
        mmpetl.set_active(model, slot)
        wanted = gradients(model, tiny.outputs(model, x[rows]))
        for name, grad in wanted.items():
            if slot in name.split('.'):
                assert torch.allclose(found[name], grad, rtol=1e-9, atol=1e-12), name


def test_models_without_a_description_take_a_pass_for_each_slot() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for seed, name in enumerate('ab'):
        inject(model, {'type': 'LoRA', 'rank': 2}, slot=name)
        tiny.shake_(model, seed=seed)
    assert mmpetl.passes_by_slot(model, ['b', None, 'b', 'a']) == [
        ('b',),
        (None,),
        ('a',),
    ]
    check_alike(model, torch.randn(4, 8, dtype=F64), ['b', None, 'b', 'a'])


def test_a_clip_has_one_slot() -> None:
    stem = 'mmpretrain_vit_frames'
    model = with_slots(stem, a='LoRA', b='LoRA')
    clips = tiny.images(stem, 2, dtype=F64)
    check_alike(model, clips, ['a', 'b'])
    frames = clips.transpose(1, 2).flatten(0, 1)
    inner = tiny.core(model)
    with torch.no_grad(), pytest.raises(PETLError, match='only a clip as a whole'):
        mmpetl.run_by_slot(inner, frames, ['a', 'b', *['a'] * (len(frames) - 2)])


def test_parts_of_outputs_come_back_in_order() -> None:
    model = tiny.base(tiny.HOSTS['plain'])
    inject(model, 'LoRA', slot='a')
    inject(model, 'VPTDeep', slot='b')
    x = torch.arange(4.0).view(4, 1)

    def call(part: dict) -> dict:
        return {'y': (part['x'], None), 'z': [part['x'] + 1]}

    found = mmpetl.run_by_slot(model, {'x': x}, ['b', None, 'a', 'b'], call=call)
    assert torch.equal(found['y'][0], x)
    assert found['y'][1] is None
    assert torch.equal(found['z'][0], x + 1)
