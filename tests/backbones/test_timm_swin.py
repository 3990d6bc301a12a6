"""timm's Swin models: their builders, and another input size after injection."""

from __future__ import annotations

import copy
import importlib
import pickle
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm_builders import builders, starts_and_learns
from tiny import outputs, randomise_, record, shake_
from tiny_methods import MethodCase, method_cases
from torch import Tensor, nn

from mmpetl.core import PETLError, Site, base_changes, eject, find_site_map, inject

TRUNKS = ('timm_swin', 'timm_swin_v2')
SMALL = {
    'img_size': 64,
    'embed_dim': 16,
    'depths': (1, 2, 2, 1),
    'num_heads': (2, 4, 4, 8),
}
RESIZES: list[dict[str, Any]] = [
    {'img_size': (48, 64)},
    {'img_size': 48, 'window_size': 4},
    {'img_size': (64, 64), 'window_ratio': (2, 4)},
    {'window_size': (2, 3)},
    {'window_size': [(4, 2), 2], 'img_size': 40},
    {'window_ratio': 4},
    {'window_size': 8, 'always_partition': True},
    {'img_size': 32},
]


def build(trunk: str, **args: Any) -> nn.Module:
    """A tiny one for images of 32 pixels with drawn weights, in eval mode."""
    module = importlib.import_module(f'trunks.{trunk}')
    return randomise_(module.build(**{'dynamic_img_size': False} | args)).eval()


def shrunk(options: dict[str, Any]) -> dict[str, Any]:
    """Windows of a quarter, in the proportions that a builder gives the stages."""
    window = options.get('window_size')
    if window is None:
        return {}
    if isinstance(window, int):
        return {'window_size': max(window // 4, 2)}
    return {'window_size': tuple(max(w // 4, 2) for w in window)}


@pytest.mark.parametrize(
    ('module', 'maker', 'count', 'layers'),
    [
        ('swin_transformer', '_create_swin_transformer', 9, None),
        ('swin_transformer_v2', '_create_swin_transformer_v2', 11, None),
        (
            'swin_transformer_v2_cr',
            '_create_swin_transformer_v2_cr',
            15,
            ['*.attn.qkv', '*.attn.proj'],
        ),
    ],
)
def test_one_size_of_every_family_starts_and_learns(
    monkeypatch: pytest.MonkeyPatch, module: str, maker: str, count: int, layers: Any
) -> None:
    options = builders(monkeypatch, module, maker)
    assert len(options) >= count  # timm 1.0.31 has as many
    made = {}
    for name, args in options.items():
        # What tells families apart: windows and the options that only some have.
        facts = {k: v for k, v in args.items() if k not in (*SMALL, 'patch_size')}
        made.setdefault(str(facts), name)
    assert len(made) > 1
    for name in made.values():
        starts_and_learns(name, 64, layers, **SMALL | shrunk(options[name]))


CR = 'swinv2_cr_tiny_ns_224'


@pytest.mark.parametrize(
    'method', ['Full', 'LinearProbe', 'PartialK', 'BitFit', 'LNTune']
)
def test_selection_works_on_a_class_without_a_file(method: str) -> None:
    plain = randomise_(timm.create_model(CR, **SMALL, num_classes=3)).eval()
    model = inject(copy.deepcopy(plain), method)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), plain(x))
    model(x).square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {'head.fc.weight', 'head.fc.bias'} < trained or method == 'LinearProbe'
    assert (trained == set(dict(plain.named_parameters()))) is (method == 'Full')


@pytest.mark.parametrize(
    ('method', 'said'),
    [
        ('Mona', r'Mona acts at .*no site map describes timm\.models\.swin_trans'),
        ('LoRA', r"or leave it out, layers=\['\*', '!\*meta_mlp\.fc1'\]"),
    ],
)
def test_a_class_without_a_file_is_refused_in_one_line(method: str, said: str) -> None:
    model = timm.create_model(CR, **SMALL)
    layers = '*' if method == 'LoRA' else None
    with pytest.raises(PETLError, match=said) as error:
        inject(model, method, layers=layers)
    assert '\n' not in str(error.value)
    if method == 'LoRA':
        with pytest.warns(UserWarning, match='too narrow for it'):
            inject(model, method)


def test_selection_on_the_feature_list_of_timm() -> None:
    """Stages that timm takes out of the model have their layers for sites."""
    plain = timm.create_model(
        'swin_s3_tiny_224', features_only=True, **SMALL, window_size=(2, 2, 4, 2)
    )
    randomise_(plain).eval()
    model = inject(copy.deepcopy(plain), 'LoRA', layers='*.attn.qkv')
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))
    shake_(model)
    pairs = zip(model(x), plain(x), strict=True)
    assert all((a - b).abs().max() > 1e-4 for a, b in pairs)


def same(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    pairs = zip(outputs(a, x), outputs(b, x), strict=True)
    return all(torch.equal(y, z) for y, z in pairs)


def facts_of(model: nn.Module) -> list[Any]:
    """Windows and shifts of the blocks, and what timm remembers of them."""
    blocks = [(b.window_size, b.shift_size) for s in model.layers for b in s.blocks]
    return [blocks, model._ref_window_sizes, model._ref_grid_size, model._traits]


@pytest.mark.parametrize('args', RESIZES, ids=str)
@pytest.mark.parametrize('trunk', TRUNKS)
@torch.no_grad()
def test_another_size_is_that_of_upstream(trunk: str, args: dict[str, Any]) -> None:
    plain = build(trunk)
    model = inject(copy.deepcopy(plain), 'LoRA')
    for m in (plain, model):
        m.set_input_size(**args)
    assert facts_of(model) == facts_of(plain)
    x = torch.randn(2, 3, *plain.patch_embed.img_size)
    for found, wanted in (
        ([model(x)], [plain(x)]),
        (model.forward_intermediates(x)[1], plain.forward_intermediates(x)[1]),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    blocks = [b for stage in plain.layers for b in stage.blocks]
    sites = [s for s in record(model).sites if s.kind == 'attn']
    assert [(s.window, s.shift) for s in sites] == [
        (b.window_size, b.shift_size) for b in blocks
    ]
    held = {s.window for s in record(model).slots['0'].sites}
    assert held == {b.window_size for b in blocks}
    model.train()
    assert base_changes(model) == []
    model.eval()
    shake_(model)
    assert not same(model, plain, x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(copied, model, x)
        eject(copied)
        assert type(copied) is type(plain)
        assert list(copied.state_dict()) == list(plain.state_dict())
        assert same(copied, plain, x)


@pytest.mark.parametrize('trunk', TRUNKS)
def test_a_pickled_feature_extractor_ejects(trunk: str) -> None:
    net = build(trunk, features_only=True, feature_cls='getter', out_indices=(0, 1))
    tuned = copy.deepcopy(net)
    inject(tuned.model, 'LoRA')
    shake_(tuned)
    x = torch.randn(2, 3, 32, 32)
    copied = pickle.loads(pickle.dumps(tuned))
    assert all(map(torch.equal, copied(x), tuned(x)))
    eject(copied.model)
    assert all(map(torch.equal, copied(x), net(x)))


def test_what_a_method_holds_keeps_its_size() -> None:
    tables = inject(build('timm_swin'), 'BitFit')
    tables.set_input_size(32)
    for args in ({'img_size': 48}, {'window_size': 2}):
        with pytest.raises(PETLError, match=r"slot '0' trains layers\.0.*bias_table"):
            tables.set_input_size(**args)
    side = inject(build('timm_swin_v2'), {'type': 'LST', 'reduction': 2})
    side.set_input_size((32, 32))
    with pytest.raises(PETLError, match='LST in slot .0. has windows of its own'):
        side.set_input_size((48, 48))
    patches = inject(build('timm_swin_v2'), 'LoRA')
    patches.set_input_size((48, 48), patch_size=4)
    with pytest.raises(PETLError, match='change patch_size before inject'):
        patches.set_input_size((48, 48), patch_size=2)
    assert patches.patch_embed.img_size == (48, 48)
    whole = inject(build('timm_swin_v2'), 'Full')  # its tables follow from a network
    whole.set_input_size((48, 48))
    assert whole(torch.randn(1, 3, 48, 48)).shape == (1, 5)


WINDOW, SHIFT = (5, 3), (11, 13)
"""Values that nothing else in a delta has."""


def built(case: MethodCase, sites: list[Site]) -> list[nn.Module]:
    """Every delta of a method, as an injection makes them."""
    method = case.build()
    chosen = method.choose(sites)
    method.check(chosen)
    method.share(chosen)
    return [method.build(site) for site in chosen]


def holds_windows(delta: nn.Module, other: nn.Module) -> bool:
    shapes = [[p.shape for p in d.parameters()] for d in (delta, other)]
    values = [v for m in other.modules() for v in vars(m).values()]
    told = any(isinstance(v, tuple) and v in (WINDOW, SHIFT) for v in values)
    return told or shapes[0] != shapes[1]


def test_methods_say_whether_they_have_windows_of_their_own() -> None:
    model = build('timm_swin', embed_dim=32, num_heads=(2, 2))
    sites = list(find_site_map(model).sites(model))
    others = [replace(s, window=WINDOW, shift=SHIFT) if s.window else s for s in sites]
    seen = {}
    for case in method_cases():
        method = case.build()
        if method.plugs() and not method.lacks({site.kind for site in sites}):
            try:
                pairs = zip(built(case, sites), built(case, others), strict=True)
            except PETLError:
                continue  # it wants clips
            found = any(holds_windows(a, b) for a, b in pairs)
            assert found is method.reads_windows, case.id
            seen[case.id] = found
    assert len(seen) > 20
    assert {name for name, found in seen.items() if found} >= {'lst', 'last'}
