"""Slots switched together, and mixed by weight."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=0, img_size=32).eval()


def shaken(model: nn.Module, slot: str, seed: int) -> None:
    """Values of a slot away from where they start, base parameters included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.requires_grad and ('petl' not in name or f'.{slot}.' in name):
                param.add_(0.1 * torch.randn_like(param))


def two(method) -> nn.Module:
    model = vit()
    for seed, name in enumerate(('a', 'b')):
        mmpetl.inject(model, method, slot=name)
        mmpetl.set_active(model, name)
        shaken(model, name, seed)
    return model


def folded(model: nn.Module, slot: str) -> dict[str, Tensor]:
    """State of a plain model with one slot written into the base, or its selection."""
    mmpetl.set_active(model, slot)
    for other in [s.name for s in mmpetl.slots(model) if s.name != slot]:
        mmpetl.eject(model, other)
    if mmpetl.slots(model)[0].delta:
        mmpetl.fold(model)
    else:
        mmpetl.eject(model, restore=False)
    return {k: v.double() for k, v in model.state_dict().items()}


WEIGHTS = {'a': 0.75, 'b': -0.5}


@pytest.mark.parametrize(
    'method',
    [
        {'type': 'LoRA', 'rank': 3, 'alpha': 5, 'start': 'pissa'},
        {'type': 'LoRA', 'rank': {'*.attn.q': 2, '*': 4}},
        {'type': 'FourierFT', 'num_coefficients': 50},
        'IA3',
        'BitFit',
        'LNTune',
    ],
)
def test_a_mix_is_the_sum_of_what_each_adds_to_the_base(method) -> None:
    """Weights of each slot folded alone, added by hand, are those of the mix."""
    base = {k: v.double() for k, v in vit().state_dict().items()}
    alone = {name: folded(two(method), name) for name in WEIGHTS}
    model = two(method)
    before = [p.detach().clone() for n, p in model.named_parameters() if 'petl' in n]
    mmpetl.mix(model, WEIGHTS, slot='c')
    after = [p for n, p in model.named_parameters() if 'petl' in n and '.c.' not in n]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    mixed = folded(model, 'c')
    moved = 0
    for key, value in base.items():
        change = sum(w * (alone[name][key] - value) for name, w in WEIGHTS.items())
        assert torch.allclose(mixed[key], value + change, atol=2e-6), key
        moved += change.abs().max().item() > 1e-3
    assert moved


def test_scales_and_shifts_add_up_at_their_place() -> None:
    model = two({'type': 'SSF', 'exact_identity': True})
    mmpetl.mix(model, WEIGHTS, slot='c')
    plug = model.blocks[1].petl.norm1
    a, b, c = (plug[name] for name in 'abc')
    gamma = 1 + 0.75 * (a.gamma - 1) - 0.5 * (b.gamma - 1)
    assert torch.allclose(c.gamma, gamma, atol=1e-6)
    assert torch.allclose(c.beta, 0.75 * a.beta - 0.5 * b.beta, atol=1e-6)


@pytest.mark.parametrize(
    ('methods', 'weights', 'message'),
    [
        (('OFT', 'OFT'), WEIGHTS, 'no weighted sum of what it does'),
        (('LoRA', 'IA3'), WEIGHTS, 'not of IA3 and LoRA'),
        (
            ({'type': 'LoRA', 'targets': ('attn.q',)}, 'LoRA'),
            WEIGHTS,
            "slot 'b' acts at other places than 'a'",
        ),
        (('LoRA', 'LoRA'), {'a': 1.0, 'x': 1.0}, "no slot 'x'"),
        (('LoRA', 'LoRA'), {'a': float('nan')}, 'needs a finite weight'),
        (
            ({'type': 'FourierFT', 'seed': 1, 'num_coefficients': 9},)
            + ({'type': 'FourierFT', 'seed': 2, 'num_coefficients': 9},),
            WEIGHTS,
            'differ, and do not mix',
        ),
        (
            ({'type': 'LoRA', 'rank': 32}, {'type': 'LoRA', 'rank': 32}),
            WEIGHTS,
            'needs rank below the narrowest projection',
        ),
    ],
)
def test_what_does_not_add_up_is_refused(methods, weights, message) -> None:
    model = vit()
    for name, method in zip('ab', methods, strict=True):
        mmpetl.inject(model, method, slot=name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError) as error:
        mmpetl.mix(model, weights, slot='c')
    assert message in str(error.value)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [s.enabled for s in mmpetl.slots(model)] == [True, True]


@pytest.mark.filterwarnings('ignore:.*too narrow')
def test_no_layer_is_left_out_of_a_sum() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 32))
    for name in 'ab':
        mmpetl.inject(model, {'type': 'LoRA', 'rank': 4}, slot=name)
    with pytest.raises(PETLError, match='which the sum is, has no room at 0'):
        mmpetl.mix(model, WEIGHTS, slot='c')
    assert [(s.name, s.enabled) for s in mmpetl.slots(model)] == [
        ('a', True),
        ('b', True),
    ]


def test_set_active_switches_all_or_none() -> None:
    model = vit()
    mmpetl.inject(model, 'LST', slot='side')
    mmpetl.disable(model, 'side')
    mmpetl.inject(model, 'LAST', slot='other')
    mmpetl.inject(model, 'LoRA', slot='lora')
    mmpetl.set_active(model, ['lora'])
    assert [s.name for s in mmpetl.slots(model) if s.enabled] == ['lora']
    assert not any(
        p.requires_grad for n, p in model.named_parameters() if '.other.' in n
    )
    for names in (['side', 'other'], ['lora', 'bird']):
        with pytest.raises(PETLError):
            mmpetl.set_active(model, names)
        assert [s.name for s in mmpetl.slots(model) if s.enabled] == ['lora']
    mmpetl.set_active(model, [])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), vit()(x))


def test_the_same_places_mix_however_they_were_named() -> None:
    model = vit()
    for seed, (name, layers) in enumerate({'a': '*.qkv', 'b': None}.items()):
        mmpetl.inject(model, {'type': 'LoRA', 'rank': 2}, slot=name, layers=layers)
        shaken(model, name, seed)
    mmpetl.mix(model, {'a': 0.5, 'b': 0.5}, slot='both')
    assert [s.name for s in mmpetl.slots(model) if s.enabled] == ['both']
