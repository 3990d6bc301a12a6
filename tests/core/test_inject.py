"""Joining, taking apart, and what is said when that cannot be."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tiny import Nothing, Tuned, base, images, outputs, record, shake_
from torch import nn

import mmpetl
from mmpetl.core import (
    Counts,
    Delta,
    Method,
    Owner,
    PETLError,
    Site,
    base_changes,
    build_method,
    count_trainable,
    delta_state,
    describe,
    disable,
    eject,
    enable,
    find_site_map,
    fingerprint,
    fold,
    frozen_keys,
    inject,
    injections,
    load_delta_state,
    owners,
    tensor_digests,
)
from mmpetl.methods.lora import LoRA

VIT = 'timm_vit'


# Building methods


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(PETLError, match=r"unknown method 'Lora'.*'LoRA'") as error:
        build_method('Lora')
    assert 'Registered:' in str(error.value)
    assert '\n' not in str(error.value)


def test_an_unknown_argument_suggests_the_nearest() -> None:
    with pytest.raises(PETLError, match="LoRA has no argument 'ranks'.*'rank'"):
        build_method({'type': 'LoRA', 'ranks': 4})


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'rank of at least 1, got 0'),
        ({'rank': True}, 'rank of at least 1'),
        ({'rank': 'eight'}, 'rank of at least 1'),
        ({'drop_rate': 1.5}, 'at least 0 and at most 1, got 1.5'),
        ({'targets': ['attn.values']}, "cannot act at 'attn.values'.*'attn.v'"),
        ({'targets': []}, 'at least one of'),
    ],
)
def test_wrong_values_are_refused(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        build_method({'type': 'LoRA', **args})


def test_every_way_to_name_a_method() -> None:
    configs = [LoRA(), LoRA, 'LoRA', 'mmpetl.LoRA', {'type': 'LoRA'}, {'type': LoRA}]
    assert {repr(build_method(c)) for c in configs} == {repr(LoRA())}


def test_an_error_is_one_that_users_catch_as_value_error() -> None:
    assert issubclass(PETLError, ValueError)


# Joining


def test_a_backbone_without_a_site_map_is_refused() -> None:
    with pytest.raises(PETLError, match='a Linear is a single layer'):
        inject(nn.Linear(3, 3), 'LoRA')


def test_missing_site_kinds_are_named_with_what_is_offered() -> None:
    class Merge(Method):
        targets = ('downsample', 'attn.q')

        def build(self, site: Site) -> Delta:
            return Delta()

    model = base(VIT)
    with pytest.raises(PETLError, match='Merge needs site kind downsample;') as error:
        inject(model, Merge())
    assert 'offers attn, attn.branch, attn.core' in str(error.value)
    assert type(model) is type(base(VIT))
    assert not injections(model)


def test_arguments_that_do_not_fit_leave_the_backbone_untouched() -> None:
    model = base(VIT)
    with pytest.raises(PETLError, match='rank below the narrowest'):
        inject(model, LoRA(rank=64))
    assert type(model) is type(base(VIT))
    assert all(p.requires_grad for p in model.parameters())


def test_a_before_port_where_inputs_are_shared_is_refused() -> None:
    class Both(Delta):
        def before(self, x, ctx):
            return x + 1

    class Early(Method):
        targets = ('attn.v',)

        def build(self, site: Site) -> Delta:
            return Both()

    with pytest.raises(PETLError, match='Early overrides `before`'):
        inject(base(VIT), Early())


def test_deltas_take_the_dtype_of_the_base() -> None:
    model = inject(base(VIT, torch.float64), LoRA(rank=2))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_head_prefix_that_names_nothing_is_refused() -> None:
    with pytest.raises(PETLError, match="called 'fc_norm'"):
        inject(base(VIT), LoRA(rank=2), head=['fc_norm'])


def test_new_parts_of_the_base_train_like_a_head() -> None:
    model = inject(base('mmaction_vit'), LoRA(rank=2), head=['fc_norm'])
    assert model.fc_norm.weight.requires_grad
    assert owners(model)['fc_norm.weight'] is Owner.HEAD
    assert 'fc_norm.weight' in delta_state(model)
    model.train()
    assert model.fc_norm.training
    assert not model.blocks[0].norm1.training


def test_parameters_that_an_optimizer_may_miss_are_warned_of() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        inject(model, LoRA(rank=3))
    outputs(model, images(VIT))[0].sum().backward()
    with pytest.warns(UserWarning, match='an optimizer that was made before'):
        inject(model, LoRA(rank=4))


# Slots


def test_a_free_slot_is_found_after_one_was_emptied() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    inject(model, LoRA(rank=3))
    eject(model, '0')
    inject(model, LoRA(rank=4))
    ranks = {n: s.method.rank for n, s in record(model).slots.items()}
    assert ranks == {'1': 3, '0': 4}
    eject(model, '0')
    eject(model, '1')
    assert list(model.state_dict()) == list(base(VIT).state_dict())


def test_a_slot_that_was_emptied_while_off_starts_on() -> None:
    model = inject(base(VIT), LoRA(rank=2), slot='a')
    inject(model, LoRA(rank=3), slot='b')
    disable(model, 'a')
    eject(model, 'a')
    inject(model, LoRA(rank=2), slot='a')
    x = images(VIT)
    before = outputs(model, x)[0]
    shake_(model)
    after = outputs(model, x)[0]
    disable(model, 'a')
    assert not torch.equal(after, before)
    assert not torch.equal(outputs(model, x)[0], after)


def test_one_of_several_slots_must_be_named() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    inject(model, LoRA(rank=3), slot='more')
    for act in (eject, enable, disable):
        with pytest.raises(PETLError, match='no slot None; there are: 0, more'):
            act(model)
        with pytest.raises(PETLError, match="no slot 'less'"):
            act(model, 'less')


def test_a_taken_slot_is_refused() -> None:
    model = inject(base(VIT), LoRA(rank=2), slot='here')
    with pytest.raises(PETLError, match=r"slot 'here' holds LoRA\(rank=2"):
        inject(model, LoRA(rank=3), slot='here')


def test_what_a_disabled_slot_holds_is_neither_trained_nor_folded() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    disable(model)
    deltas = [p for n, p in model.named_parameters() if 'petl' in n.split('.')]
    assert deltas
    assert not any(p.requires_grad for p in deltas)
    with pytest.raises(PETLError, match='is disabled'):
        fold(model)


@pytest.mark.parametrize('act', [eject, enable, disable, fold])
def test_nothing_injected_is_one_clear_line(act) -> None:
    with pytest.raises(PETLError, match='holds 0 injected backbones'):
        act(base(VIT))


# Owners and counts


def test_owners_and_counts_are_by_place_not_by_spelling() -> None:
    class Named(Method):
        """A delta whose parameters carry names that spelling would mistake."""

        targets = ('block',)

        def build(self, site: Site) -> Delta:
            delta = Delta()
            delta.head = nn.Linear(2, 3)  # 9 numbers
            delta.norm = nn.LayerNorm(4)  # 8 numbers
            return delta

        def selects(self, name, param, owner) -> bool:
            return name == 'cls_token'

    x = images(VIT)
    model = Tuned(inject(base(VIT), Named()), x)
    total = sum(p.numel() for p in base(VIT).parameters())
    inside_head = 32 * 5 + 5  # of the timm model, trains like a head
    outside_head = 5 * 3 + 3
    assert count_trainable(model) == Counts(
        delta=2 * 17,
        selected=32,
        head=inside_head + outside_head,
        base=total - 32 - inside_head,
    )
    assert count_trainable(model).backbone == 34 + 32
    assert count_trainable(model).as_dict()['delta'] == 34
    owner = owners(model)
    assert owner['backbone.blocks.0.petl.block.0.head.weight'] is Owner.DELTA
    assert owner['backbone.cls_token'] is Owner.SELECTED
    assert owner['backbone.head.weight'] is Owner.HEAD
    assert owner['heads.0.weight'] is Owner.HEAD
    assert owner['backbone.blocks.1.norm1.weight'] is Owner.BASE


def test_the_paragraph_for_the_log_names_method_sites_and_counts() -> None:
    text = describe(inject(base('mmpretrain_vit'), LoRA(rank=2)))
    assert 'LoRA(rank=2' in text
    assert 'attn.q x 2' in text
    assert '512 in deltas' in text  # 2 blocks, q and v, rank 2 of 32 + 32


# State


def test_a_delta_holds_nothing_of_the_frozen_base() -> None:
    x = images('mmpretrain_swin')
    model = Tuned(inject(base('mmpretrain_swin'), LoRA(rank=2)), x)
    keys = set(delta_state(model))
    assert keys | frozen_keys(model) == set(model.state_dict())
    assert all('petl' in k.split('.') or k.startswith('heads.') for k in keys)


def test_switching_and_ejecting_keep_the_mode_that_was_asked_for() -> None:
    for mode in (True, False):
        model = base('timm_vit')
        model.train(mode)
        mmpetl.inject(model, LoRA(rank=2))
        mmpetl.disable(model)
        mmpetl.enable(model)
        deltas = [m for n, m in model.named_modules() if '.petl.' in n]
        assert deltas
        assert all(m.training is mode for m in deltas)
        mmpetl.eject(model)
        assert all(m.training is mode for m in model.modules())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('blocks.0.petl.attn_q.0.A'), 'attn_q.0.A is missing'),
        (lambda s: s.update(extra=torch.zeros(1)), 'extra is not expected'),
        (
            lambda s: s.update({'blocks.0.petl.attn_q.0.A': torch.zeros(3, 32)}),
            r'has shape \(3, 32\) in the delta and \(2, 32\)',
        ),
    ],
)
def test_a_delta_that_does_not_fit_changes_nothing(change, message: str) -> None:
    model = inject(base(VIT), LoRA(rank=2))
    state = {k: v + 1 for k, v in delta_state(model).items()}
    change(state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PETLError, match=message):
        load_delta_state(model, state)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_delta_of_another_method_is_refused_in_one_line() -> None:
    model = inject(base(VIT), LoRA(rank=2))
    other = inject(base(VIT), LoRA(rank=2, targets=['attn.qkv', 'ffn.fc1']))
    with pytest.raises(PETLError, match='and 6 more are missing') as error:
        load_delta_state(model, delta_state(other))
    assert '\n' not in str(error.value)


# Fingerprints


def test_a_fingerprint_is_of_the_base_and_of_nothing_else() -> None:
    one = inject(base('mmpretrain_vit'), LoRA(rank=2))
    two = inject(base('mmpretrain_vit'), Nothing())
    assert fingerprint(one) == fingerprint(two)
    shake_(one)
    assert fingerprint(one) == fingerprint(two)
    moved = base('mmpretrain_vit')
    with torch.no_grad():
        moved.cls_token[0, 0, 0] += 1e-6
    assert fingerprint(inject(moved, Nothing())) != fingerprint(two)


def test_a_change_of_the_frozen_base_is_found_and_named() -> None:
    x = images(VIT)
    model = Tuned(inject(base(VIT), LoRA(rank=2)), x)
    shake_(model)
    assert base_changes(model) == []
    with torch.no_grad():
        model.backbone.blocks[1].norm2.bias[3] += 1e-7
    assert base_changes(model) == ['backbone.blocks.1.norm2.bias']


def test_digests_see_shape_dtype_and_every_bit() -> None:
    zero = torch.zeros(4)
    minus = zero.clone()
    minus[0] = -0.0
    tensors = {
        'a': zero,
        'b': zero.view(2, 2),
        'c': zero.to(torch.int32),
        'd': minus,
        'e': zero.to(torch.bfloat16),
    }
    assert len(set(tensor_digests(tensors).values())) == 5
    assert tensor_digests({'a': torch.zeros(2, 2).T}) == tensor_digests(
        {'a': torch.zeros(2, 2)}
    )
    assert tensor_digests({'m': torch.zeros(1, device='meta')}) == {'m': ''}


# Wrappers


def test_the_wrapper_of_mmpretrain_is_what_comes_back() -> None:
    model = base('mmpretrain_timm')
    assert inject(model, LoRA(rank=2)) is model
    assert find_site_map(model.timm_model).host.__name__ == 'VisionTransformer'
    with pytest.raises(PETLError, match='already injected'):
        inject(model, LoRA(rank=2))
    eject(model)
    assert list(model.state_dict()) == list(base('mmpretrain_timm').state_dict())


def test_the_package_offers_the_verbs() -> None:
    for name in mmpetl.__all__:
        assert getattr(mmpetl, name) is not None


@pytest.mark.parametrize('method', [{'rank': 3}, {'type': None}, {}])
def test_a_method_without_a_type_is_no_unknown_one(method):
    with pytest.raises(PETLError, match=r'a method is a name or dict\(type='):
        build_method(method)
