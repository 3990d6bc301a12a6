"""Which methods act on any model, and what is said of bad input."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from leafy import Plain, Wrapped, make, vit
from tiny_methods import method_cases
from torch import nn

import mmpetl
from mmpetl.core import (
    Affine,
    Method,
    PETLError,
    eject,
    fold,
    inject,
    injection_of,
    registered_methods,
    save_delta,
)
from mmpetl.methods.lora import LoRA
from mmpetl.methods.ssf import SSF


@pytest.mark.filterwarnings('ignore:.*leaves out')
@pytest.mark.parametrize('name', sorted(registered_methods()))
def test_a_method_acts_on_any_model_or_says_that_it_does_not(name) -> None:
    case = next(case for case in method_cases() if case.name == name)
    model, _ = make('plain')
    able = {n for n, cls in registered_methods().items() if cls.on_any_model()}
    try:
        inject(model, case.build())
    except PETLError as error:
        line = str(error)
        assert '\n' not in line
        assert type(model) is Plain
        assert line.startswith(f'{name} ')
        _, refused, rest = line.partition(
            'no site map describes leafy.Plain. On any model: '
        )
        # Where it is able, an argument is in the way, or the model has no blocks.
        assert bool(refused) is (name not in able)
        if refused:
            assert set(rest.partition('. ')[0].split(', ')) == able
    else:
        assert name in able
        (slot,) = injection_of(model)[1].slots.values()
        assert slot.sites or slot.selected or not case.build().plugs()


def one_line(model: nn.Module, method: Method | str = 'LoRA', **args) -> str:
    with pytest.raises(PETLError) as error:
        inject(model, method, **args)
    text = str(error.value)
    assert '\n' not in text
    assert not any('petl' in key for key in model.state_dict())
    return text


@pytest.mark.parametrize(
    ('layers', 'text'),
    [
        (
            '*.attn.qkvv',
            "no layer of leafy.Wrapped matches '*.attn.qkvv'. Did you mean "
            "'*.attn.qkv'?",
        ),
        (['*.attn.qkv', '!*.fc9'], "matches '!*.fc9'"),
        ('*.norm1', 'LoRA does not act at inner.blocks.0.norm1 (LayerNorm 32)'),
        (['!*'], 'no layer of leafy.Wrapped is left for LoRA'),
        ([], 'layers takes a pattern'),
        (3, 'layers takes a pattern'),
    ],
)
def test_patterns_that_mean_nothing(layers, text) -> None:
    model, _ = make('wrapped')
    assert text in one_line(model, LoRA(rank=2), layers=layers)


@pytest.mark.parametrize(
    ('blocks', 'text'),
    [
        (2, 'there is no block 2; the model has 2 blocks'),
        ('first', 'blocks takes indices'),
        (slice(2, None), 'means none of the 2 blocks'),
        (True, 'blocks takes indices'),
    ],
)
def test_blocks_that_are_none(blocks, text) -> None:
    model, _ = make('wrapped')
    assert text in one_line(model, LoRA(rank=2), layers='inner.*', blocks=blocks)


def test_blocks_of_any_model() -> None:
    model, _ = make('wrapped')
    for blocks in (1, -1, '1:', [1], slice(1, 2), range(1, 2)):
        inject(model, LoRA(rank=2), layers='inner.*', blocks=blocks)
        (slot,) = injection_of(model)[1].slots.values()
        assert slot.blocks == (1,)
        assert {site.host.split('.')[2] for site in slot.sites} == {'1'}
        eject(model)


def test_an_output_projection_that_torch_never_calls() -> None:
    model, _ = make('encoder')
    text = one_line(model, LoRA(rank=2), layers='*.out_proj')
    assert 'encoder.layers.0.self_attn reads its weight and never calls it' in text
    assert 'name encoder.layers.0.self_attn' in text


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)
        self.read = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.used(x), self.read.weight)


def test_layers_that_no_pass_reaches() -> None:
    model = Skips()
    text = one_line(model, LoRA(rank=2), example=torch.zeros(1, 8))
    assert '2 of the chosen layers are not reached by a pass (idle, read)' in text
    x = {'x': torch.zeros(1, 8)}
    inject(model, LoRA(rank=2), layers=['*', '!idle', '!read'], example=x)
    eject(model)
    inject(model, LoRA(rank=2))
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(PETLError, match=r'2 of the chosen layers .*\(idle, read\)'):
        mmpetl.core.check_trained(model)


def test_a_tied_weight_is_not_folded() -> None:
    model = Skips()
    model.read.weight = model.idle.weight = model.used.weight
    inject(model, LoRA(rank=2), layers='used')
    with pytest.raises(PETLError, match='used shares its weight with idle'):
        fold(model)
    assert injection_of(model)


@pytest.mark.parametrize(
    'wrap',
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ],
)
def test_computed_weights_are_refused(wrap) -> None:
    model = Skips()
    wrap(model.used)
    assert 'the weight of used is computed in every pass' in one_line(
        model, LoRA(rank=2), layers='used'
    )
    inject(model, LoRA(rank=2), layers='idle')
    eject(model)


def test_computed_weights_of_a_described_backbone_too() -> None:
    model = vit()
    nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc1)
    assert 'the weight of blocks.1.mlp.fc1 is computed' in one_line(model, LoRA(rank=2))


def test_a_conversion_after_injection_is_noticed(tmp_path) -> None:
    model, _ = make('resnet')
    inject(model, SSF())
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    for call in (model.train, model.eval, lambda: save_delta(model, tmp_path / 'd')):
        with pytest.raises(PETLError, match=r'now a SyncBatchNorm without sites.*SSF'):
            call()


def test_wrappers_are_refused() -> None:
    model, _ = make('plain')
    assert 'wraps a model' in one_line(nn.DataParallel(model), layers='*')
    compiled = torch.compile(model, backend='eager')
    assert 'model._orig_mod' in one_line(compiled, layers='*')
    assert 'single layer' in one_line(nn.MultiheadAttention(8, 2))


def test_a_model_around_an_injected_one_says_where() -> None:
    model = Wrapped(inject(vit(), LoRA(rank=2)))
    with pytest.raises(PETLError, match=r"holds a backbone with a method at 'inner'"):
        inject(model, LoRA(rank=2), layers='*')


def test_a_layer_with_a_pass_of_its_own_is_not_folded() -> None:
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential()
    model.a = Doubled(8, 8)
    inject(model, LoRA(rank=2))
    with pytest.raises(PETLError, match='a is a Doubled with a forward pass'):
        fold(model)


def test_sizes_by_layer_must_fit() -> None:
    model, _ = make('wrapped')
    sizes = {'*.attn.qkv': 3}
    assert 'LoRA has no rank for inner.' in one_line(
        model, {'type': 'LoRA', 'rank': sizes}, layers='*'
    )
    assert "names '*.qkw'" in one_line(
        model, {'type': 'LoRA', 'rank': {'*.qkw': 3, '*': 2}}, layers='*'
    )
    assert 'rank of at least 1' in str(
        pytest.raises(PETLError, LoRA, rank={'*': 0}).value
    )
    assert 'got 40 at inner.blocks.0.attn.qkv' in one_line(
        model, {'type': 'LoRA', 'rank': {'*.qkv': 40, '*': 2}}, layers='*'
    )


def test_a_layer_too_narrow_for_the_rank_may_have_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 8)))
    model[1].thin = nn.Linear(8, 2)
    line = one_line(model, LoRA(rank=3), layers='*')
    sizes, layers = {'*1.thin': 1, '*': 3}, ['*', '!*1.thin']
    way = f'give it its own, rank={sizes}, or leave it out, layers={layers}'
    assert line.endswith(f'got 3 at 1.thin:layer.linear; {way}')
    inject(copy.deepcopy(model), {'type': 'LoRA', 'rank': sizes})
    inject(model, LoRA(rank=3), layers=layers)


def test_gps_needs_the_loss_of_the_task() -> None:
    model, _ = make('plain')
    assert "choose criterion='task'" in one_line(model, 'GPS')


def test_an_affine_of_attention_has_the_rows_of_torch() -> None:
    model, _ = make('encoder')
    inject(model, LoRA(rank=2))
    module, record = injection_of(model)
    sites = {s.kind: s for s in record.sites if s.host.endswith('0.self_attn')}
    affine = record.site_map.affine(module, sites['attn.v'])
    assert isinstance(affine, Affine)
    weight = model.encoder.layers[0].self_attn.in_proj_weight
    assert torch.equal(affine.weight, weight[32:])
