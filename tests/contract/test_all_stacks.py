"""Every ordered pair of methods on a ViT, a Swin and a Video Swin (slow)."""

from __future__ import annotations

import copy
import importlib
from functools import cache

import pytest
import torch
from stacked import (
    TRUNKS,
    batch,
    cases,
    params_of,
    same,
    stack,
    trunk,
    untrained,
    without_gradient,
)
from tiny import MethodCase, Nothing, method_cases, outputs, shake_
from tiny_methods import moves_seldom
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, delta_state, load_delta_state

pytestmark = pytest.mark.slow

ORDERS = ('ab', 'ba')


@pytest.fixture(autouse=True)
def _keep_all(monkeypatch) -> None:
    """Methods that train most of a tiny base give it back as well."""
    module = importlib.import_module('mmpetl.core.inject')
    monkeypatch.setattr(module, 'KEEP_AT_MOST', 1.0)


def unreached(model: nn.Module, x: Tensor, seed: int) -> set[str]:
    """Parameters without a gradient under any draw; a ReLU may be off under one."""
    missing = without_gradient(model, x)
    while missing and seed < 4:
        seed += 1
        other = copy.deepcopy(model)
        shake_(other, std=0.3, seed=seed)
        missing &= without_gradient(other, x)
    return missing


def plain_name(name: str, slot: str) -> str:
    """A parameter's name, whatever the slot."""
    return '.'.join('*' if part == slot else part for part in name.split('.'))


def faults(
    name: str,
    model: nn.Module,
    pair: tuple[MethodCase, MethodCase],
) -> list[str]:
    """What is wrong with a stack; it is the base afterwards."""
    x = batch(name)
    return [
        *learning_faults(name, model, x, pair),
        *acting_faults(model, x),
        *saving_faults(name, model, x, pair),
        *returning_faults(name, model, x),
    ]


def learning_faults(name, model, x, pair) -> list[str]:
    """Every parameter that a method trains alone trains beside the other."""
    found = []
    missing, asleep = unreached(model, x, 0), untrained(model)
    for slot, case in zip('ab', pair, strict=True):
        for key, param in params_of(model, slot).items():
            if not param.requires_grad and key not in asleep:
                found.append(f'{slot}: {key} does not train')
            known = plain_name(key, slot) in still(name, case.id)
            if key in missing and not known and not moves_seldom(case.name, key):
                found.append(f'{slot}: {key} has no gradient')
    return found


@torch.no_grad()
def acting_faults(model, x) -> list[str]:
    """Switching either slot off changes what leaves, unless the other holds it all."""
    found, both = [], outputs(model, x)
    for slot, other in ORDERS:
        trains = set(params_of(model, slot)) - untrained(model)
        hidden = set(params_of(model, other)) if slot == 'a' else set()
        mmpetl.disable(model, slot)
        if trains - hidden and same(outputs(model, x), both):
            found.append(f'{slot}: does nothing')
        mmpetl.enable(model, slot)
    if not same(outputs(model, x), both):
        found.append('switching off and on changes the outputs')
    return found


@torch.no_grad()
def returning_faults(name, model, x) -> list[str]:
    """Disable and eject in any order give the base back, bit for bit."""
    plain, found, both = trunk(name), [], outputs(model, x)
    state = plain.state_dict()
    # Sites may run other arithmetic than the original; eject gives that back.
    want, original = outputs(stack(name, Nothing()), x), outputs(plain, x)
    for order in ORDERS:
        for slot in order:
            mmpetl.disable(model, slot)
        if not same(outputs(model, x), want):
            found.append(f'disable {order}: not the base')
        for slot in order:
            mmpetl.enable(model, slot)
    twin = copy.deepcopy(model)
    if not same(outputs(twin, x), both):
        found.append('a copy, switched off and on in both orders, gives other outputs')
    for order, stacked in zip(ORDERS, (twin, model), strict=True):
        for slot in order:
            mmpetl.eject(stacked, slot)
        back = stacked.state_dict()
        if type(stacked) is not type(plain) or list(back) != list(state):
            found.append(f'eject {order}: not the class or the keys of the base')
        elif not all(torch.equal(back[key], state[key]) for key in state):
            found.append(f'eject {order}: not the values of the base')
        elif not same(outputs(stacked, x), original):
            found.append(f'eject {order}: not the outputs of the base')
    return found


@torch.no_grad()
def saving_faults(name, model, x, pair) -> list[str]:
    """What is saved and loaded into a fresh stack computes the same."""
    fresh = stack(name, *(case.build() for case in pair), seed=9)
    load_delta_state(fresh, delta_state(model))
    equal = same(outputs(fresh, x), outputs(model, x))
    return [] if equal else ['what is saved and loaded gives other outputs']


def check_refused(name: str, pair: tuple[MethodCase, MethodCase]) -> None:
    """A pair is refused in one line, with the model as it was."""
    model = stack(name, pair[0].build())
    before, x = copy.deepcopy(model), batch(name)
    with pytest.raises(PETLError, match='cannot act beside') as error:
        mmpetl.inject(model, pair[1].build(), slot='b')
    line = str(error.value)
    assert '\n' not in line
    assert f"{pair[1].name} in slot 'b'" in line
    assert f"{pair[0].name} in slot 'a'" in line
    assert [slot.name for slot in mmpetl.slots(model)] == ['a']
    flags = [[p.requires_grad for p in m.parameters()] for m in (model, before)]
    assert flags[0] == flags[1]
    old, new = before.state_dict(), model.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert same(outputs(model, x), outputs(before, x))


# In any order. What leaves is replaced: by LST at `out`, by Res-Tuning's bypass in
# front of the norm there, by HST at `feature`.
REPLACED = {
    *(('lst', other) for other in ('e3va', 'last', 'lst', 'ssf', 'vmt_adapter')),
    ('lst', 'rlrr'),
    *(('res_tuning', other) for other in ('e3va', 'last', 'lst', 'vmt_adapter')),
    ('res_tuning', 'res_tuning'),
}
REPLACED_VECTOR = {
    *(('hst', other) for other in ('e3va', 'hst', 'last', 'lst', 'ssf')),
    ('hst', 'rlrr'),
    ('hst', 'res_tuning'),
    ('hst', 'vmt_adapter'),
    ('hst', 'vqt'),
    ('vqt', 'vqt'),
}
TASKS = {
    ('polyhistor_lite', 'polyhistor_lite'),
    ('polyhistor_lite', 'vmt_adapter'),
    ('vmt_adapter', 'vmt_adapter'),
}
# Pooled prompts act at the only output of windowed backbones.
POOLED = {('lst', 'vpt_deep'), ('lst', 'vpt_shallow')}
POOLED |= {('e2vpt', 'lst'), ('lst', 'vfpt')}
POOLED |= {('res_tuning', p) for p in ('e2vpt', 'vfpt', 'vpt_deep', 'vpt_shallow')}
# A block in front of an output has a stream per task, and projections that all read.
STREAMS = {
    ('mt_lora', other)
    for other in (
        *('adapter', 'adapter_plus', 'adaptformer', 'bapat', 'bi_adapt_former'),
        *('compacter', 'conv_adapter', 'convpass', 'dtl', 'dyt', 'e2vpt', 'e3va'),
        *('last', 'lo_rand', 'lst', 'mona', 'mt_lora', 'noah', 'polyhistor_lite'),
        *('rein', 'res_tuning', 'rlrr', 'sct', 'snf', 'ssf', 'u_tuning', 'vfpt'),
        *('vmt_adapter', 'vpt_deep'),
    )
}
STREAMS_VIT = {('mt_lora', other) for other in ('hst', 'vapt', 'vqt')}
POOLED |= {('mt_lora', 'vpt_shallow')}
EXPECTED = {
    'timm_vit': REPLACED | REPLACED_VECTOR | TASKS | STREAMS | STREAMS_VIT,
    'mmpretrain_swin_cls': REPLACED | TASKS | POOLED | STREAMS,
    'mmaction_swin3d': REPLACED
    | TASKS
    | POOLED
    | STREAMS
    | {('mt_lora', 'st_adapter')},
}


@cache
def served(name: str) -> list[MethodCase]:
    """The methods of a trunk."""
    return list(cases(name))


@cache
def still(name: str, id: str) -> set[str]:
    """What a method does not train when it is alone on a trunk."""
    (case,) = (case for case in served(name) if case.id == id)
    alone = stack(name, case.build())
    return {plain_name(n, 'a') for n in unreached(alone, batch(name), 0)}


@pytest.mark.parametrize('id', [c.id for c in method_cases() if ':' not in c.id])
@pytest.mark.parametrize('name', TRUNKS)
def test_every_pair_is_exact_or_refused(name: str, id: str) -> None:
    """A method below every method of the trunk; where it is not served, no pair is."""
    refused, wrong = set(), {}
    for first in served(name):
        for second in served(name) if first.id == id else ():
            pair = first, second
            try:
                model = stack(name, first.build(), second.build())
            except PETLError:
                check_refused(name, pair)
                refused.add(second.id)
                continue
            if found := faults(name, model, pair):
                wrong[f'{id} + {second.id}'] = found
    assert wrong == {}
    expected = {p for a, b in EXPECTED[name] for p in ((a, b), (b, a))}
    assert refused == {second for first, second in expected if first == id}
