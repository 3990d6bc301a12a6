"""Recipes: several methods on one trunk, said as one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import mmpetl
from mmpetl.core import (
    PETLError,
    base_changes,
    build_entries,
    count_trainable,
    fingerprint,
    methods_family,
    methods_name,
    with_arguments,
)
from mmpetl.methods.lora import LoRA
from mmpetl.methods.vpt_deep import VPTDeep

SIZES = [
    {'type': 'LoRA', 'rank': 4, 'blocks': [0]},
    {'type': 'LoRA', 'rank': 2, 'blocks': '1:', 'layers': '*.attn.*'},
    {'type': 'VPTDeep', 'num_tokens': 3},
]


def tuned(methods, std: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), methods)
    tiny.shake_(model, std)
    return model.eval()


def test_an_entry_is_a_method_and_its_part():
    first, second, third = build_entries(['LoRA', LoRA(rank=4), SIZES[1]])
    assert first.method.config() == LoRA().config()
    assert second.method.rank == 4
    assert third.where == {'blocks': '1:', 'layers': '*.attn.*'}
    assert third.config() == {**third.method.config(), **third.where}
    # A method's own argument of that name is the method's.
    (own,) = build_entries([{'type': 'SNF', 'blocks': 1, 'layers': None}])
    assert own.method.blocks == 1
    assert own.where == {}


def test_several_have_a_name_and_a_family():
    assert methods_name('LoRA') == methods_name([LoRA()]) == 'LoRA'
    assert methods_name(SIZES) == 'LoRA + LoRA + VPTDeep'
    assert methods_name('LoRA+VPTDeep') == 'LoRA + VPTDeep'
    assert methods_name([LoRA, {'type': 'mmpetl.VPTDeep'}]) == 'LoRA + VPTDeep'
    assert methods_family('LoRA') == methods_family('LoRA + SSF') == LoRA.family
    assert methods_family(SIZES) == 'combined'
    methods = [e.method for e in build_entries('LoRA + VPTDeep')]
    assert list(map(type, methods)) == [LoRA, VPTDeep]


def test_arguments_are_given_by_the_number_of_the_method():
    assert with_arguments('LoRA', {'rank': 2}) == {'type': 'LoRA', 'rank': 2}
    assert with_arguments('LoRA + SSF', {'0.rank': 2, '1.blocks': ':1'}) == [
        {'type': 'LoRA', 'rank': 2},
        {'type': 'SSF', 'blocks': ':1'},
    ]
    for key in ('rank', '2.rank', 'x.rank', '0'):
        with pytest.raises(PETLError, match=rf"'{key}' names no argument .* as in 0\."):
            with_arguments('LoRA + SSF', {key: 2})


def test_a_list_is_one_injection_after_another():
    one = tuned(SIZES)
    torch.manual_seed(0)
    model = tiny.base('timm_vit', torch.double)
    for entry in SIZES:
        args = {k: v for k, v in entry.items() if k not in ('layers', 'blocks')}
        mmpetl.inject(model, args, **{k: entry[k] for k in entry if k not in args})
    tiny.shake_(model, 0.2)
    x = tiny.images('timm_vit', dtype=torch.double)
    assert torch.equal(one(x), model.eval()(x))
    assert one.state_dict().keys() == model.state_dict().keys()
    counts = [fact.delta for fact in mmpetl.slots(one)]
    # Queries and values of one block each; prompts in both.
    assert counts == [2 * 4 * 64, 2 * 2 * 64, 2 * 3 * 32]
    assert count_trainable(one).delta == sum(counts)


@pytest.mark.parametrize(
    ('methods', 'message'),
    [
        ([], 'the list of methods is empty'),
        (['LoRA', {'rank': 2}], "entry 1 of the list of methods has no type: {'rank'"),
        (['BitFit', 'Nope'], "unknown method 'Nope'"),
        (['BitFit', {'type': 'SSF', 'rank': 2}], "SSF has no argument 'rank'"),
        (['BitFit', ['SSF']], r"a method is a name .* got \['SSF'\]"),
        (['LoRA', 'LoRA'], "LoRA is already injected in slot '0'"),
        (
            ['LST', 'LoRA', {'type': 'LST', 'reduction': 4}],
            "LST in slot '2' cannot act beside LST",
        ),
        (['Full', {'type': 'LoRA', 'blocks': '7:'}], "blocks='7:' means none of the 2"),
        (['BitFit', 'VQT'], 'VQT needs site kind feature'),
    ],
)
def test_nothing_is_injected_where_one_cannot_be(methods, message):
    model = tiny.base('timm_vit')
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(model, methods)
    assert type(model) is type(tiny.base('timm_vit'))
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert mmpetl.slots(model) == []
    # What was there before stays.
    mmpetl.inject(model, 'LNTune')
    with pytest.raises(PETLError):
        mmpetl.inject(model, methods)
    assert [type(s.method).__name__ for s in mmpetl.slots(model)] == ['LNTune']


@pytest.mark.parametrize('name', ['slot', 'layers', 'blocks', 'places'])
def test_what_is_said_of_one_method_is_not_said_beside_a_list(name):
    given = {'places': {'ffn': '*.mlp'}}.get(name, '0')
    with pytest.raises(PETLError, match=f'{name}= is of one method, and a list is'):
        mmpetl.inject(tiny.base('timm_vit'), ['LoRA'], **{name: given})


def test_a_delta_says_the_part_of_each_and_refuses_another(tmp_path: Path):
    model = tuned(SIZES)
    file = mmpetl.save_delta(model, tmp_path / 'delta')
    x = tiny.images('timm_vit', dtype=torch.double)
    again = mmpetl.inject(tiny.base('timm_vit', torch.double), SIZES)
    assert torch.equal(mmpetl.load_delta(again, file).eval()(x), model(x))
    name = re.escape('LoRA + LoRA + VPTDeep')
    for methods, message in (
        (SIZES[::-1], f'is of {name}, the model has VPTDeep'),
        (SIZES[:2], f'is of {name}, the model has {re.escape("LoRA + LoRA")}'),
        ([SIZES[0] | {'blocks': [1]}, *SIZES[1:]], 'acts at .*, the model at'),
    ):
        other = mmpetl.inject(tiny.base('timm_vit', torch.double), methods)
        with pytest.raises(PETLError, match=message):
            mmpetl.load_delta(other, file)
    with pytest.raises(PETLError, match=r'inject\(model, .*blocks=\[0\]\) and '):
        mmpetl.load_delta(tiny.base('timm_vit', torch.double), file)


def test_a_method_without_tensors_of_its_own_keeps_its_place(tmp_path: Path):
    """The only slot in the keys is the second one."""
    methods, x = ['BitFit', 'SSF'], tiny.images('timm_vit', dtype=torch.double)
    model = tuned(methods)
    file = mmpetl.save_delta(model, tmp_path / 'delta')
    again = mmpetl.inject(tiny.base('timm_vit', torch.double), methods)
    assert torch.equal(mmpetl.load_delta(again, file).eval()(x), model(x))


# ------------------------------------------------------------------------ fold


def test_what_folds_is_folded_and_the_rest_stays():
    model, x = tuned(SIZES), tiny.images('timm_vit', dtype=torch.double)
    before, base = model(x), fingerprint(model)
    with pytest.raises(PETLError, match=r"VPTDeep .* another slot alone \(slot='0'\)"):
        mmpetl.fold(model)
    for slot, left in (('0', ['1', '2']), ('1', ['2'])):
        assert mmpetl.fold(model, slot) is model
        assert [fact.name for fact in mmpetl.slots(model)] == left
        model.train()  # a pass in training mode checks the base
        model.eval()
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    assert base_changes(model) == []
    assert fingerprint(model) != base
    mmpetl.eject(model)
    # What was folded is the base now.
    plain = tiny.base('timm_vit', torch.double)
    moved = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name]) and 'head' not in name
    }
    assert moved == {f'blocks.{i}.attn.qkv.weight' for i in (0, 1)}


def test_a_folded_base_takes_the_delta_of_the_rest(tmp_path: Path):
    model, x = tuned(['LoRA', 'VPTDeep']), tiny.images('timm_vit', dtype=torch.double)
    before = model(x)
    mmpetl.fold(model, '0')
    file = mmpetl.save_delta(model, tmp_path / 'prompts')
    twin = mmpetl.eject(tuned(['LoRA', 'VPTDeep']), '1')
    twin = mmpetl.inject(mmpetl.fold(twin), 'VPTDeep')
    out = mmpetl.load_delta(twin, file).eval()(x)
    torch.testing.assert_close(out, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('methods', 'message'),
    [
        (['LoRA', 'SSF'], 'stays and acts at blocks.0:attn.qkv'),
        (['LoRA', 'BitFit'], 'stays and trains blocks.0.attn.qkv.bias'),
        (['LoRA', {'type': 'LoRA', 'rank': 4}], 'stays and acts at blocks.0:attn.q,'),
    ],
)
def test_a_slot_is_not_folded_where_one_that_stays_meets_it(methods, message):
    model, x = tuned(methods), tiny.images('timm_vit', dtype=torch.double)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError, match=message):
        mmpetl.fold(model, '0')
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    before = model.train()(x)  # as in training, where the base is watched
    torch.testing.assert_close(mmpetl.fold(model)(x), before, rtol=1e-9, atol=1e-9)
