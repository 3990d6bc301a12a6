"""``layers``, ``blocks`` and sizes by layer on backbones that a file describes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import base, core, images, loss_of, method_cases, outputs, shake_

from mmpetl.core import (
    PETLError,
    collect_losses,
    count_trainable,
    delta_facts,
    eject,
    fold,
    inject,
    injection_of,
    load_delta,
    save_delta,
)
from mmpetl.core.patterns import as_blocks, in_short, matches, nearest
from mmpetl.methods.lora import LoRA

VIT = 'timm_vit'


def sites_of(model) -> list[str]:
    (slot,) = injection_of(model)[1].slots.values()
    return [f'{site.host}:{site.kind}' for site in slot.sites]


@pytest.mark.parametrize(
    'layers',
    ['*.attn.qkv', 'blocks.1.attn.qkv', 'blocks.1', 'blocks.1.attn.*', ['blocks.1.*']],
)
def test_layers_are_named_by_block_by_place_or_by_weight(layers) -> None:
    model = inject(base(VIT), LoRA(rank=2), layers=layers)
    wanted = {f'blocks.1:attn.{k}' for k in 'qv'}
    if layers == '*.attn.qkv':
        wanted |= {f'blocks.0:attn.{k}' for k in 'qv'}
    assert set(sites_of(model)) == wanted


def test_exclusions_and_targets_meet() -> None:
    method = LoRA(rank=2, targets=('attn.q', 'ffn.fc1', 'ffn.fc2'))
    model = inject(base(VIT), method, layers=['*', '!*.fc2', '!*.attn.q'])
    assert sites_of(model) == ['blocks.0:ffn.fc1', 'blocks.1:ffn.fc1']
    model = inject(base(VIT), method, layers='*.mlp.fc2', blocks=-1)
    assert sites_of(model) == ['blocks.1:ffn.fc2']


@pytest.mark.parametrize('trunk', [VIT, 'mmpretrain_swin', 'mmaction_vit'])
def test_a_narrowed_method_leaves_the_other_blocks_alone(trunk) -> None:
    model, x = base(trunk), images(trunk)
    before = outputs(model, x)
    inject(model, LoRA(rank=2), blocks=[1])
    assert all('.1' in name for name in sites_of(model))
    torch.testing.assert_close(outputs(model, x), before)
    shake_(model, 0.5)
    tuned = outputs(model, x)
    assert any(not torch.allclose(a, b) for a, b in zip(tuned, before, strict=True))
    loss_of(tuned).backward()
    deltas = [p for n, p in core(model).named_parameters() if 'petl' in n.split('.')]
    assert deltas
    assert all(p.grad is not None for p in deltas)
    fold(model)
    torch.testing.assert_close(outputs(model, x), tuned, atol=1e-5, rtol=1e-5)


def test_every_method_is_narrowed_to_a_block_or_says_why_not() -> None:
    """No crash and no parameter without gradient, in the last block of a ViT."""
    x = images(VIT)
    refused, narrowed = {}, set()
    for case in method_cases():
        method = case.build()
        model = base(VIT)
        try:
            whole = inject(copy.deepcopy(model), method)
        except PETLError:
            continue  # it needs other backbones
        (slot,) = injection_of(whole)[1].slots.values()
        if not slot.sites:
            continue
        try:
            inject(model, case.build(), blocks=[-1])
        except PETLError as error:
            refused[case.id] = str(error)
            continue
        assert {s.split(':')[0] for s in sites_of(model)} <= {'blocks.1'}
        model.train()
        loss = loss_of(outputs(model, x)) + sum(collect_losses(model).values())
        loss.backward()
        dead = [
            n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert dead == [], case.id
        narrowed.add(case.id)
    assert {'lora', 'adaptformer', 'ssf', 'mona', 'fact_tk', 'prefix'} <= narrowed
    assert {'lst', 'e3va', 'vpt_deep', 'dtl'} <= refused.keys()
    assert all('work together' in t or 'is left for' in t for t in refused.values())


def test_sizes_by_layer() -> None:
    sizes = {'*.attn.qkv': 3, 'blocks.1.mlp.fc1': 2, '*': 1}
    targets = ('attn.q', 'ffn.fc1')
    model = inject(base(VIT), {'type': 'LoRA', 'rank': sizes, 'targets': targets})
    ranks = {
        n: p.shape[0] for n, p in core(model).named_parameters() if n.endswith('.A')
    }
    assert ranks == {
        'blocks.0.petl.attn_q.0.A': 3,
        'blocks.0.petl.ffn_fc1.0.A': 1,
        'blocks.1.petl.attn_q.0.A': 3,
        'blocks.1.petl.ffn_fc1.0.A': 2,
    }
    eject(model)
    inject(model, {'type': 'AdaptFormer', 'hidden_dims': {'blocks.0*': 2, '*': 5}})
    widths = [
        b.petl.get_submodule('ffn_sum.0').down.weight.shape[0]
        for b in core(model).blocks
    ]
    assert widths == [2, 5]


@pytest.mark.parametrize(
    ('args', 'text'),
    [
        ({'rank': {'*.attn.qkv': 2}, 'targets': ('ffn.fc1',)}, "names '*.attn.qkv'"),
        ({'rank': {'blocks.0*': 2}}, "no rank for blocks.1.attn.qkv; .*add '*'"),
        ({'rank': {'*': 99}}, 'rank below the narrowest projection .*got 99'),
        ({'rank': {}}, 'needs rank for some layer'),
        ({'rank': {'*': 'four'}}, "rank of at least 1, got 'four'"),
    ],
)
def test_sizes_that_do_not_fit(args, text) -> None:
    with pytest.raises(PETLError, match=text.replace('*', r'\*').replace(r'.\*', '.*')):
        inject(base(VIT), {'type': 'LoRA', **args})


def test_a_layer_that_the_method_does_not_act_at() -> None:
    model = base(VIT)
    with pytest.raises(PETLError) as error:
        inject(model, LoRA(rank=2), layers='*.mlp.fc1')
    text = str(error.value)
    assert 'LoRA does not act at blocks.0.mlp.fc1 (Linear 32->64)' in text
    assert 'blocks.{0,1}.attn.qkv' in text
    with pytest.raises(
        PETLError, match=r"matches '\*.atn.qkv'. Did you mean '\*.attn.q"
    ):
        inject(model, LoRA(rank=2), layers='*.atn.qkv')


def test_what_is_chosen_lies_in_the_delta(tmp_path) -> None:
    model, x = base(VIT), images(VIT)
    twin = copy.deepcopy(model)
    inject(model, LoRA(rank=2), layers='*.attn.qkv', blocks='1:')
    inject(model, 'SSF', blocks=[0])
    shake_(model)
    assert delta_facts(model)['where'] == [
        {'layers': ['*.attn.qkv'], 'blocks': [1]},
        {'layers': None, 'blocks': [0]},
    ]
    file = save_delta(model, tmp_path / 'both')
    inject(twin, LoRA(rank=2), layers='*.attn.qkv', blocks=[-1])
    inject(twin, 'SSF', blocks=[1])
    with pytest.raises(PETLError, match='inject with the same layers and blocks'):
        load_delta(twin, file)
    eject(twin, '1')
    load_delta(inject(twin, 'SSF', blocks=[0]), file)
    torch.testing.assert_close(outputs(twin, x), outputs(model, x), rtol=0, atol=0)


def test_a_backbone_in_a_config_takes_layers_and_blocks() -> None:
    from mmpetl.models.petl_backbone import petl_backbone

    model = petl_backbone(
        base(VIT), dict(type='LoRA', rank=2), layers=['*.attn.qkv'], blocks=[1]
    )
    assert count_trainable(model).delta == 4 * 2 * 32
    assert sites_of(model) == ['blocks.1:attn.q', 'blocks.1:attn.v']


def test_an_example_shows_that_described_blocks_are_reached() -> None:
    inject(base(VIT), LoRA(rank=2), example=images(VIT))


# ---------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ('blocks', 'wanted'),
    [
        (None, None),
        (3, (3,)),
        (-1, (5,)),
        ([0, -1], (0, 5)),
        (slice(4, None), (4, 5)),
        ('4:', (4, 5)),
        ('::2', (0, 2, 4)),
        (['-2:', 0], (0, 4, 5)),
        (range(2), (0, 1)),
    ],
)
def test_ways_to_name_blocks(blocks, wanted) -> None:
    assert as_blocks(blocks, 6) == wanted


@pytest.mark.parametrize('blocks', [6, -7, 'x', '1:x', 1.5, [None], True, '6:', []])
def test_what_names_no_block(blocks) -> None:
    with pytest.raises(PETLError) as error:
        as_blocks(blocks, 6)
    assert '\n' not in str(error.value)


def test_patterns_and_exclusions() -> None:
    assert matches(('*.qkv',), ['a.qkv'])
    assert not matches(('*.QKV',), ['a.qkv'])
    assert not matches(('*', '!*.qkv'), ['a', 'a.qkv'])
    assert matches(('!*.fc1',), ['a.qkv'])
    assert not matches(('!*.fc1',), ['a.fc1'])
    assert nearest('*.qkw', ['blocks.0.attn.qkv']) == " Did you mean '*.qkv'?"
    assert nearest('zzz', ['blocks.0.attn.qkv']) == ''


def test_names_in_short() -> None:
    names = [f's.{i}.b.{j}.fc' for i in range(2) for j in range(3)]
    names += ['s.1.b.7.fc', 'stem', 'x.0', 'x.2']
    facts = {n: 'wide' if n.startswith('s.1') else '' for n in names}
    assert in_short(names) == [
        ('s.{0,1}.b.{0..2}.fc', '', 6),
        ('s.1.b.7.fc', '', 1),
        ('stem', '', 1),
        ('x.{0,2}', '', 2),
    ]
    assert in_short(names, facts)[:2] == [
        ('s.0.b.{0..2}.fc', '', 3),
        ('s.1.b.{0..2,7}.fc', 'wide', 4),
    ]


def test_a_digit_that_is_no_number_names_no_block() -> None:
    names = ['blocks.0².attn', 'blocks.1².attn', f'blocks.{"9" * 5000}.attn']
    assert in_short(names) == [(name, '', 1) for name in names]
    assert nearest('blocks.².attm', names[:1]) == " Did you mean 'blocks.0².attn'?"
