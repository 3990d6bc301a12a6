from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths
from torch import nn

import mmpetl
from mmpetl.core import PETLError, Rows
from mmpetl.core.supernet import supernet_of
from mmpetl.methods import glora
from mmpetl.methods.glora import PATHS, GLoRA


def stored(fan_in: int, fan_out: int, r: int) -> int:
    return 2 * r * (fan_in + fan_out) + r * (fan_in + 1) + 2 * fan_out


@pytest.mark.parametrize('size', ['vit_b', 'timm_vit_b', 'swin_b'])
def test_count(size: str) -> None:
    shapes = [
        (fan_in, fan_out)
        for d in widths(size)
        for fan_in, fan_out in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
    ]
    got = counts(size, GLoRA(rank=4)).delta
    assert got == sum(stored(*shape, 4) for shape in shapes)
    assert got == {'swin_b': 2_093_952}.get(size, 1_603_776)


def tuned(paths: dict[str, str], bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """A Linear of 5 x 7 in float64, and its delta with every number drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=bias)).double()
    mmpetl.inject(model, GLoRA(rank=2, paths=paths), delta_dtype=torch.float64)
    (delta,) = (m for m in model.modules() if type(m).__name__ == 'GLoRADelta')
    with torch.no_grad():
        for param in delta.parameters():
            nn.init.normal_(param)
    return model, delta


def dense(delta: nn.Module, name: str, path: str, rows: int, columns: int):
    """A, B, c, D or E written out in full from what is stored."""
    if path == 'none':
        return torch.zeros(rows, columns).double()
    down = getattr(delta, f'{name}d') if name in 'ABC' else getattr(delta, name)
    if path == 'lora':
        return down @ getattr(delta, f'{name}u')
    return down.reshape(-1, 1).expand(rows, columns)


MIXED = [dict(zip(PATHS, c, strict=True)) for c in itertools.product(*PATHS.values())]
MIXED = MIXED[::5]  # every pair of choices is among them


@torch.no_grad()
def test_every_choice_of_paths_equals_the_formula_and_folds() -> None:
    """Every pair of choices for two parts, against matrices written out."""
    met = {pair for p in MIXED for pair in itertools.combinations(p.items(), 2)}
    both = itertools.combinations(PATHS, 2)
    assert len(met) == sum(len(PATHS[a]) * len(PATHS[b]) for a, b in both)
    x = torch.randn(3, 4, 5).double()
    for paths in MIXED:
        if set(paths.values()) == {'none'}:
            continue
        model, delta = tuned(paths)
        W, b = model[0].weight, model[0].bias
        A, B = (dense(delta, name, paths[name], 7, 5) for name in 'AB')
        D, E = (dense(delta, name, paths[name], 7, 1)[:, 0] for name in 'DE')
        c = dense(delta, 'C', paths['C'], 5, 1)[:, 0]
        want = F.linear(x, W + W * A + B, b + b * D + E + W @ c)
        torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
        names = {name[0] for name, _ in delta.named_parameters()}
        assert names == {name for name, path in paths.items() if path != 'none'}
        torch.testing.assert_close(mmpetl.fold(model)(x), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_base_without_bias_has_none_to_scale() -> None:
    model, delta = tuned({'C': 'none', 'E': 'none'}, bias=False)
    assert delta.D is None
    x = torch.randn(4, 5).double()
    want = model(x)
    torch.testing.assert_close(mmpetl.fold(model)(x), want, rtol=1e-12, atol=1e-12)
    model, delta = tuned({}, bias=False)
    with pytest.raises(PETLError, match='has no bias to fold a shift into'):
        mmpetl.fold(model)


@torch.no_grad()
def test_a_convolution_is_adjusted_as_its_matrix() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    weight, bias = conv.weight.clone(), conv.bias.clone()
    model = mmpetl.inject(nn.Sequential(conv), GLoRA(rank=2), delta_dtype=torch.float64)
    tiny.shake_(model)
    (d,) = (m for m in model.modules() if type(m).__name__ == 'GLoRADelta')
    flat = weight.flatten(1)
    rows = flat + flat * (d.Ad @ d.Au) + d.Bd @ d.Bu
    shift = bias + bias * d.D + d.E + flat @ (d.Cd @ d.Cu)[:, 0]
    x = torch.randn(2, 4, 9, 8).double()
    want = F.conv2d(x, rows.view_as(weight), shift, 2, 1)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'GLoRA needs rank of at least 1, got 0'),
        ({'paths': {'F': 'lora'}}, "GLoRA has paths A, B, C, D, E, got 'F'"),
        (
            {'paths': {'D': 'lora'}},
            "GLoRA needs path D vector or constant or none, got 'lora'",
        ),
        ({'paths': {'A': 'vectr'}}, "Did you mean 'vector'"),
        ({'paths': dict.fromkeys('ABCDE', 'none')}, 'needs a path that is not none'),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError) as info:
        GLoRA(**args)
    assert message in str(info.value)


def test_rows_alone_need_no_room_for_a_rank() -> None:
    rows = {'A': 'vector', 'B': 'vector', 'C': 'vector'}
    model = nn.Sequential(nn.Linear(2, 2))
    assert mmpetl.count_trainable(mmpetl.inject(model, GLoRA(4, rows))).delta == 10


@pytest.mark.parametrize('B', PATHS['B'])
def test_one_product_has_the_gradients_of_two(
    B: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rescaled weight in one step, against the product beside the frozen one."""
    x, found = tiny.images('mmpretrain_vit', dtype=torch.double), []
    for alone in (True, False):
        torch.manual_seed(0)
        model = mmpetl.inject(
            tiny.base('mmpretrain_vit', torch.double), GLoRA(2, {'B': B})
        )
        tiny.shake_(model, 0.3)
        model.train()
        made: list[int] = []
        linear = F.linear

        def counted(x, weight, bias=None, linear=linear, made=made):
            made.append(len(weight))
            return linear(x, weight, bias)

        with monkeypatch.context() as patch:
            if not alone:
                patch.setattr(Rows, 'is_plain', False)
            patch.setattr(F, 'linear', counted)
            loss = tiny.loss_of(tiny.outputs(model, x))
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found.append((loss.detach(), grads, sum(size > 8 for size in made)))
    (loss, grads, few), (other, others, many) = found
    assert 8 <= few < many  # four projections in each of two blocks
    torch.testing.assert_close(loss, other)
    assert all(grad is not None for grad in grads.values())
    torch.testing.assert_close(grads, others)


def test_the_rescaled_weight_has_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    shapes = (2, 3, 5), (4, 5), (4,), (4, 2), (2, 5), (4, 2), (2, 5)
    given = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes]
    given[1].requires_grad_(False)
    assert torch.autograd.gradcheck(glora.Rescaled.apply, given)
    assert torch.autograd.gradgradcheck(glora.Rescaled.apply, given)


def test_paths_of_a_supernet_are_those_of_a_model_of_their_own() -> None:
    """Smaller paths are the first column, or number, of what the largest hold."""
    x, rng = tiny.images('timm_vit', dtype=torch.double), random.Random(0)
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), GLoRA(2, space={}))
    tiny.shake_(model, 0.3)
    model.train()
    net = supernet_of(model)
    for _ in range(4):
        subnet = net.space.draw(rng)
        net.activate(subnet)
        method = GLoRA(2, found=subnet.as_dict()['paths'])
        alone = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
        held = dict(model.named_parameters())
        own = {n: p for n, p in alone.named_parameters() if '.petl.' in n}
        with torch.no_grad():
            for name, param in own.items():
                big = held[name]
                if big.ndim > param.ndim:
                    big = big[:, 0]
                param.copy_(big[tuple(slice(n) for n in param.shape)])
        assert sum(p.numel() for p in own.values()) == net.size(subnet)
        model.zero_grad()
        alone.train()
        got, want = model(x), alone(x)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        got.square().sum().backward()
        moved = {n for n, p in held.items() if '.petl.' in n and p.grad is not None}
        assert moved == own.keys(), 'a path that was not chosen has a gradient'


def test_what_was_found_names_its_projections(tmp_path: Path) -> None:
    base = tiny.base('timm_vit')
    one = dict(zip(PATHS, ('none', 'vector', 'none', 'none', 'none'), strict=True))
    none = dict.fromkeys(PATHS, 'none')
    found = {'blocks.0:attn.qkv': none, 'blocks.1:ffn.fc1': one}
    file = tmp_path / 'found.json'
    file.write_text(json.dumps({'paths': found, 'score': 1.0}))
    model = mmpetl.inject(base, GLoRA(found=str(file)))
    file.unlink()
    slot = tiny.record(model).slots['0']
    assert [str(site) for site in slot.sites] == ['blocks.1:ffn.fc1']
    config = slot.method.config()
    assert config['found'] == found
    mmpetl.inject(tiny.base('timm_vit'), config)
    with pytest.raises(PETLError, match='this backbone lacks blocks.7:attn.proj; was'):
        mmpetl.inject(tiny.base('timm_vit'), GLoRA(found={'blocks.7:attn.proj': one}))


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ({'found': 'no/found.json'}, r'no found paths .*; run the search first'),
        ({'found': {'a': {'A': 'lora'}}}, 'a needs paths A, B, C, D, E'),
        ({'found': {'a': dict.fromkeys(PATHS, 'none')}}, 'no path that is not none'),
        ({'space': {'A': []}}, 'a choice for A in its space'),
        ({'space': {'D': ['lora']}}, 'needs path D'),
        ({'space': {}, 'paths': {'A': 'none'}}, 'without paths and without found'),
    ],
)
def test_a_space_and_what_was_found_are_held_to_what_there_is(args, said) -> None:
    with pytest.raises(PETLError, match=said):
        mmpetl.inject(tiny.base('timm_vit'), GLoRA(**args))
