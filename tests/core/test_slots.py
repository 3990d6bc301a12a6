"""Several methods on one backbone: whose value a base tensor holds, and who trains."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
from tiny import Tuned, base, images, outputs, record, shake_, train
from torch import Tensor, nn

import mmpetl
from mmpetl.core import (
    Owner,
    PETLError,
    base_changes,
    delta_state,
    describe,
    injections,
    load_delta_state,
    owners,
)
from mmpetl.methods.bitfit import BitFit
from mmpetl.methods.ln_tune import LNTune
from mmpetl.methods.lora import LoRA

VIT = 'timm_vit'
SELECTORS = ('BitFit', 'DiffFit', 'GPS', 'LNTune')


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_is_base(model: nn.Module, stem: str) -> None:
    plain = base(stem)
    assert type(model) is type(plain)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    moved = [k for k, v in theirs.items() if not torch.equal(ours[k], v)]
    # A head inside of the model trains with whatever method is there.
    assert [k for k in moved if not k.startswith('head')] == []


# One base value per tensor, each slot's own values apart


@pytest.mark.parametrize('trunk', ['timm_vit', 'mmpretrain_swin', 'mmaction_vit'])
@pytest.mark.parametrize('order', list(permutations('abc')))
def test_ejecting_selectors_in_any_order_gives_the_base_back(trunk, order) -> None:
    model = base(trunk)
    for slot, method in zip('abc', ('BitFit', 'LNTune', 'DiffFit'), strict=True):
        mmpetl.inject(model, method, slot=slot)
        shake_(model, seed=ord(slot))
    for slot in order:
        mmpetl.eject(model, slot)
    assert_is_base(model, trunk)


@pytest.mark.parametrize('order', list(permutations('ab')))
def test_switching_selectors_off_in_any_order_shows_the_base(order) -> None:
    model = base(VIT)
    x = images(VIT)
    want = outputs(model, x)
    for slot, method in zip('ab', ('BitFit', 'LNTune'), strict=True):
        mmpetl.inject(model, method, slot=slot)
        shake_(model, seed=ord(slot))
    tuned = outputs(model, x)
    assert not torch.equal(tuned[0], want[0])
    for slot in order:
        mmpetl.disable(model, slot)
    assert all(map(torch.equal, outputs(model, x), want))
    for slot in reversed(order):
        mmpetl.enable(model, slot)
    assert all(map(torch.equal, outputs(model, x), tuned))


def test_the_last_enabled_slot_shows_its_value_and_the_others_keep_theirs() -> None:
    model = base(VIT)
    bias = model.norm.bias
    start = bias.clone()
    mmpetl.inject(model, 'BitFit', slot='a')
    with torch.no_grad():
        bias.fill_(1.0)
    mmpetl.inject(model, 'LNTune', slot='b')
    assert torch.equal(bias, torch.ones_like(bias))  # joining changes nothing
    with torch.no_grad():
        bias.fill_(2.0)
    shown = {}
    for off in ((), ('b',), ('a',), ('a', 'b')):
        for slot in off:
            mmpetl.disable(model, slot)
        shown[off] = bias.clone()
        for slot in off:
            mmpetl.enable(model, slot)
    assert torch.equal(shown[()], torch.full_like(start, 2.0))
    assert torch.equal(shown['b',], torch.full_like(start, 1.0))
    assert torch.equal(shown['a',], torch.full_like(start, 2.0))
    assert torch.equal(shown['a', 'b'], start)
    assert base_changes(model) == []
    mmpetl.eject(model, 'b')
    assert torch.equal(bias, torch.ones_like(bias))


def test_only_the_slot_that_is_shown_trains_a_shared_tensor() -> None:
    model = base(VIT)
    mmpetl.inject(model, BitFit(), slot='a')
    mmpetl.inject(model, LNTune(), slot='b')
    mmpetl.freeze(model, 'b')
    assert not model.norm.bias.requires_grad  # b holds it, and b is frozen
    assert model.blocks[0].attn.qkv.bias.requires_grad  # a's alone
    assert owners(model)['norm.bias'] is Owner.SELECTED
    mmpetl.disable(model, 'b')
    assert model.norm.bias.requires_grad
    assert not model.norm.weight.requires_grad


@pytest.mark.parametrize('method', SELECTORS)
def test_what_a_switched_off_slot_has_learnt_is_saved_and_loaded(method) -> None:
    model = mmpetl.inject(base(VIT), method, slot='task')
    shake_(model)
    x = images(VIT)
    want = outputs(model, x)
    count = len(delta_state(model))
    mmpetl.disable(model, 'task')
    saved = state_of(model)
    delta = {k: v.clone() for k, v in delta_state(model).items()}
    assert len(delta) == count
    other = mmpetl.inject(base(VIT), method, slot='task')
    mmpetl.disable(other, 'task')
    load_delta_state(other, delta)
    assert all(map(torch.equal, state_of(other).values(), saved.values()))
    mmpetl.enable(other, 'task')
    assert all(map(torch.equal, outputs(other, x), want))


def test_kept_values_move_and_copy_with_the_model() -> None:
    model = mmpetl.inject(base(VIT), 'BitFit')
    shake_(model)
    want = model.norm.bias.clone()
    mmpetl.disable(model)
    twin = copy.deepcopy(model).double()
    mmpetl.enable(twin)
    assert torch.equal(twin.norm.bias, want.double())
    assert not torch.equal(model.norm.bias, want)


def test_a_head_keeps_what_it_learnt_when_a_method_goes() -> None:
    for method in ('BitFit', 'LoRA', 'LNTune'):
        model = mmpetl.inject(base(VIT), method)
        with torch.no_grad():
            model.head.bias.fill_(3.0)
        mmpetl.eject(model)
        assert torch.equal(model.head.bias, torch.full_like(model.head.bias, 3.0))


def test_what_is_not_given_back_is_the_base_from_then_on() -> None:
    model = mmpetl.inject(base(VIT), BitFit(), slot='a')
    with torch.no_grad():
        model.norm.bias.fill_(1.0)
    mmpetl.inject(model, LNTune(), slot='b')
    mmpetl.eject(model, 'a', restore=False)
    with torch.no_grad():
        model.norm.bias.fill_(2.0)
    model.train()
    assert base_changes(model) == []
    mmpetl.eject(model, 'b')
    assert torch.equal(model.norm.bias, torch.ones_like(model.norm.bias))


# All or nothing


class Breaks(LoRA):
    """Fails when it reads the base's weights."""

    def initialise(self, deltas, weights) -> None:
        raise RuntimeError('no such weight')


@pytest.mark.parametrize('first', [None, 'BitFit'])
def test_a_method_that_fails_leaves_the_model_as_it_was(first) -> None:
    model = base(VIT)
    model.train()
    model.blocks[0].eval()
    if first:
        mmpetl.inject(model, first)
    before = state_of(model), type(model), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match='no such weight'):
        mmpetl.inject(model, Breaks(rank=2), slot='broken')
    assert list(model.state_dict()) == list(before[0])
    assert type(model) is before[1]
    assert [m.training for m in model.modules()] == before[2]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [s.name for s in mmpetl.slots(model)] == (['0'] if first else [])
    mmpetl.inject(model, LoRA(rank=2), slot='broken')


# Frozen slots, and what users freeze


def trains(model: nn.Module, part: str) -> bool:
    return any(p.requires_grad for n, p in model.named_parameters() if part in n)


def test_a_frozen_slot_acts_and_does_not_train() -> None:
    x = images(VIT)
    model = Tuned(mmpetl.inject(base(VIT), LoRA(rank=2, drop_rate=0.5), slot='a'), x)
    shake_(model)
    mmpetl.freeze(model, 'a')
    mmpetl.inject(model.backbone, LoRA(rank=3), slot='b')
    kept = {n: p.clone() for n, p in model.named_parameters() if '.a.' in n}
    assert kept
    train(model, x)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in kept.items())
    model.train()
    assert not trains(model, '.a.')
    assert trains(model, '.b.')
    modes = {m.training for n, m in model.named_modules() if n.endswith('.a.drop')}
    assert modes == {False}
    mmpetl.unfreeze(model, 'a')
    assert trains(model, '.a.')
    facts = {s.name: (s.enabled, s.frozen) for s in mmpetl.slots(model)}
    assert facts == {'a': (True, False), 'b': (True, False)}


def test_freezing_a_slot_that_is_off_holds_when_it_comes_on() -> None:
    model = mmpetl.inject(base(VIT), LoRA(rank=2))
    mmpetl.disable(model)
    mmpetl.freeze(model)
    mmpetl.enable(model)
    assert not trains(model, 'petl')
    mmpetl.unfreeze(model)
    assert trains(model, 'petl')


def test_what_the_user_froze_stays_frozen() -> None:
    model = mmpetl.inject(base(VIT), LoRA(rank=2), slot='a')
    model.head.requires_grad_(False)
    first = model.blocks[0].petl.attn_v.a
    first.requires_grad_(False)
    for step in (
        lambda: model.train(),
        lambda: mmpetl.inject(model, 'BitFit', slot='b'),
        lambda: mmpetl.disable(model, 'a'),
        lambda: mmpetl.enable(model, 'a'),
        lambda: mmpetl.eject(model, 'b'),
    ):
        step()
        assert not model.head.weight.requires_grad
        assert not first.A.requires_grad
    assert model.blocks[1].petl.attn_v.a.A.requires_grad


def test_what_the_user_froze_stays_frozen_through_switches_and_freezes() -> None:
    model = mmpetl.inject(base(VIT), 'BitFit', slot='a')
    mmpetl.inject(model, LoRA(rank=2), slot='b')
    chosen = model.blocks[0].norm1.bias
    factor = model.blocks[0].petl.attn_v.b.A
    others = model.blocks[1].norm1.bias, model.blocks[1].petl.attn_v.b.A
    for tensor in (model.head.weight, chosen, factor):
        tensor.requires_grad_(False)

    def switched() -> None:
        with mmpetl.disabled(model):
            assert not chosen.requires_grad

    def frozen_while_off() -> None:
        mmpetl.disable(model, 'b')
        mmpetl.freeze(model, 'b')
        mmpetl.enable(model, 'b')
        assert not factor.requires_grad
        mmpetl.unfreeze(model, 'b')

    def frozen(slot: str) -> None:
        mmpetl.freeze(model, slot)
        mmpetl.unfreeze(model, slot)

    steps = [switched, frozen_while_off, lambda: frozen('a'), lambda: frozen('b')]

    @torch.no_grad()
    def served() -> None:
        mmpetl.run_by_slot(model, images(VIT), ['a', 'b'])

    steps.append(served)
    for step in steps:
        step()
        assert not any(t.requires_grad for t in (model.head.weight, chosen, factor))
        assert all(t.requires_grad for t in others)
    mmpetl.eject(model, 'b')
    mmpetl.eject(model, 'a')
    assert not model.head.weight.requires_grad
    assert not chosen.requires_grad
    assert others[0].requires_grad
    # Where no slot trains it any more, nothing is remembered.
    assert mmpetl.inject(model, 'BitFit').blocks[1].norm1.bias.requires_grad


@pytest.mark.parametrize(
    'method',
    [
        {'type': 'LoRA', 'rank': 2, 'start': 'eva'},
        {'type': 'SCT', 'num_channels': 4},
        {'type': 'LST', 'init': 'fisher', 'reduction': 2},
    ],
    ids=lambda method: method['type'],
)
def test_a_slot_that_is_off_stays_off_through_its_data_pass(method: dict) -> None:
    model = mmpetl.inject(base(VIT), method)
    (slot,) = injections(model)[0][2].slots.values()
    batches = [(images(VIT), torch.tensor([0, 1]))]
    for acts in (False, True):
        (mmpetl.enable if acts else mmpetl.disable)(model)
        slot.method.calibrate(model, batches)
        assert slot.enabled == acts


def test_a_head_that_was_frozen_before_stays_frozen() -> None:
    model = base(VIT)
    model.head.requires_grad_(False)
    mmpetl.inject(model, LoRA(rank=2))
    model.train()
    assert not model.head.weight.requires_grad


# Looking and switching


def test_slots_are_listed_with_their_state_and_counts() -> None:
    model = mmpetl.inject(base(VIT), LoRA(rank=2), slot='a')
    mmpetl.inject(model, 'BitFit', slot='b')
    mmpetl.disable(model, 'b')
    a, b = mmpetl.slots(nn.Sequential(model))
    assert (a.name, a.backbone, a.enabled, a.delta, a.selected) == (
        'a',
        '0',
        True,
        512,
        0,
    )
    assert (b.name, b.enabled, b.delta) == ('b', False, 0)
    biases = [p for n, p in base(VIT).named_parameters() if n.endswith('bias')]
    assert b.selected == sum(p.numel() for p in biases) - 5  # the head's is the head's
    assert mmpetl.slots(nn.Linear(2, 2)) == []
    text = describe(model)
    assert "slot 'a' (on): LoRA(rank=2" in text
    assert "slot 'b' (off): BitFit" in text


def test_disabled_is_a_context_in_which_the_base_runs() -> None:
    x = images(VIT)
    want = outputs(base(VIT), x)
    model = mmpetl.inject(base(VIT), LoRA(rank=2), slot='a')
    mmpetl.inject(model, 'BitFit', slot='b')
    mmpetl.inject(model, LoRA(rank=3), slot='c')
    mmpetl.disable(model, 'c')
    shake_(model)
    with torch.no_grad():
        model.head.load_state_dict(base(VIT).head.state_dict())
    tuned = outputs(model, x)
    with mmpetl.disabled(model) as same:
        assert same is model
        assert all(map(torch.equal, outputs(model, x), want))
    assert all(map(torch.equal, outputs(model, x), tuned))
    with mmpetl.disabled(model, 'a'):
        assert [s.enabled for s in mmpetl.slots(model)] == [False, True, False]
    assert [s.enabled for s in mmpetl.slots(model)] == [True, True, False]


@pytest.mark.parametrize(
    'name', ['a.b', '', 'keys', 'a b', 3, 'training', 'pop', 'off', 'put']
)
def test_names_that_no_module_can_have_are_refused(name) -> None:
    model = base(VIT)
    with pytest.raises(PETLError, match='a slot cannot be called') as error:
        mmpetl.inject(model, LoRA(rank=2), slot=name)
    assert '\n' not in str(error.value)
    assert injections(model) == []


def test_full_tuning_says_that_no_copy_is_kept() -> None:
    model = mmpetl.inject(base(VIT), 'Full')
    for act in (mmpetl.disable, mmpetl.eject):
        with pytest.raises(PETLError, match='no second copy is kept'):
            act(model)
    with (
        pytest.raises(PETLError, match='no second copy'),
        mmpetl.disabled(model),
    ):
        pass
    assert not record(model).slots['0'].restores
