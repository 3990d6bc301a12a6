from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import tiny
import torch
from full_size import counts
from msgspec import to_builtins
from torch.nn import functional as F

import mmpetl
from mmpetl.core import (
    Context,
    PETLError,
    count_trainable,
    delta_state,
    load_delta_state,
)
from mmpetl.methods.spt import (
    SPT,
    Behind,
    LowRank,
    Single,
    SPTDelta,
    packed,
    unpacked,
)

F64 = torch.float64
SMALL = {'rank': 2, 'drop_rate': 0.0, 'drop_path': 0.0}


class Scores(torch.nn.Module):
    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    classes = tiny.base('timm_vit')(torch.zeros(1, 3, 32, 32)).shape[1]
    return [
        (
            torch.randn(4, 3, 32, 32, generator=g, dtype=F64),
            torch.randint(0, classes, (4,), generator=g),
        )
        for _ in range(count)
    ]


def model_with(**args) -> Scores:
    method = SPT(**{**SMALL, **args})
    return Scores(mmpetl.inject(tiny.base('timm_vit', F64), method))


def method_of(model: torch.nn.Module) -> SPT:
    return tiny.record(model).slots['0'].method


def sensitivities(**args):
    model = model_with(**args)
    return method_of(model), method_of(model).sensitivities(model, batches(), 2)


@pytest.mark.parametrize('structure', ['lora', 'adapter'])
def test_the_pass_equals_plain_autograd(structure: str) -> None:
    model = model_with(structure=structure)
    before = copy.deepcopy(model.state_dict())
    method, given = method_of(model), None
    given = method.sensitivities(model, batches(), 2)
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    plain = tiny.base('timm_vit', F64).train()
    sums = {n: torch.zeros_like(p, dtype=F64) for n, p in plain.named_parameters()}
    for inputs, labels in batches()[:2]:
        plain.zero_grad()
        F.cross_entropy(plain(inputs), labels).backward()
        for name, param in plain.named_parameters():
            sums[name] += param.grad**2
    rows = {'attn.q': 0, 'attn.k': 1, 'attn.v': 2}
    names = {'attn.proj': 'attn.proj', 'ffn.fc1': 'mlp.fc1', 'ffn.fc2': 'mlp.fc2'}
    for site, weight in given.weights.items():
        last = names.get(site.kind, 'attn.qkv')
        for part, got in (('weight', weight), ('bias', given.biases[site])):
            want = sums[f'{site.host}.{last}.{part}']
            want = want.chunk(3)[rows[site.kind]] if site.kind in rows else want
            torch.testing.assert_close(got, want.float())
    norms = [n for n in sums if '.norm' in n or n.startswith('norm.')]
    assert set(given.vectors) == set(norms)
    for name in norms:
        torch.testing.assert_close(given.vectors[name], sums[name].float())
    assert given.tokens == plain.cls_token.numel()


def swept(method: SPT, given, budget: int) -> int:
    """Parameters of the best of all cuts, one entry after another."""
    flat = [
        *((s, 'w', given.weights[s]) for s in given.weights),
        *((s, 'b', given.biases[s]) for s in given.biases),
        *((n, 'v', given.vectors[n]) for n in given.vectors),
    ]
    values = torch.cat([v.flatten() for *_, v in flat])
    best = []
    for cut in [0.0, *values.unique().tolist(), float('inf')]:
        total = given.tokens
        for key, what, value in flat:
            c = int((value > cut).sum())
            if what == 'w':
                size = method.size(key)
                total += size if c and c >= size / method.alpha else c
            elif c and c >= len(value) / method.beta:
                total += len(value)
            elif what == 'b':
                total += c
        best.append(total)
    assert best == sorted(best, reverse=True)
    return min(best, key=lambda total: (abs(total - budget), total))


@pytest.mark.parametrize('structure', ['lora', 'adapter'])
@pytest.mark.parametrize('budget', [150, 900, 3000])
def test_bisection_finds_the_best_of_all_cuts(structure: str, budget: int) -> None:
    method, given = sensitivities(structure=structure)
    for group in (given.weights, given.biases, given.vectors):
        for key in group:  # few values, so that the sweep is short
            exact = group[key].clamp(min=1e-12).log2()
            group[key] = (exact * 4).round().div(4).exp2()
    found = method.allocate(given, budget)
    assert found.params == swept(method, given, budget)
    model = model_with(structure=structure, found=_plain(found))
    got = count_trainable(model.backbone)
    assert got.delta + got.selected == found.params


def _plain(found) -> dict:
    import msgspec

    return msgspec.to_builtins(found)


def test_what_was_found_acts_folds_and_needs_its_file_once(tmp_path) -> None:
    method, given = sensitivities()
    found = method.allocate(given, 1500)
    assert found.modules
    assert found.single
    assert found.biases
    assert found.vectors
    (tmp_path / 'spt.json').write_text(json.dumps(to_builtins(found)))
    model = model_with(found=str(tmp_path / 'spt.json'))
    (tmp_path / 'spt.json').unlink()
    tiny.shake_(model)
    model.eval()
    x = batches(1)[0][0]
    want = model(x)
    for name, text in zip(found.single, found.places, strict=True):
        index = unpacked(text, name, 10**6)
        host, _, kind = name.partition(':')
        path = f'{host}.petl.{kind.replace(".", "_")}.0.single'
        single = model.backbone.get_submodule(path)
        assert single.index.tolist() == index.tolist()
        weight, bias = single.dense()
        assert int((torch.cat((weight, bias[:, None]), 1) != 0).sum()) == len(index)
    # The config of the method is whole without the file.
    again = Scores(mmpetl.inject(tiny.base('timm_vit', F64), method_of(model).config()))
    load_delta_state(again, delta_state(model))
    again.eval()
    assert torch.equal(again(x), want)
    assert method_of(again).phases == ()
    mmpetl.fold(model.backbone)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('structure', ['lora', 'adapter'])
def test_stochastic_depth_drops_or_scales_what_a_module_adds(structure: str) -> None:
    module = LowRank(4, 4, 2, 0.0, 0.5)
    if structure == 'adapter':
        module = Behind(4, 2, 0.0, 0.5)
    for param in module.parameters():
        torch.nn.init.normal_(param)
    x, z = torch.randn(64, 3, 4), torch.randn(1, 3, 4).expand(64, 3, 4)
    whole = module.eval()(z, x, Context(())) - z
    got = module.train()(z, x, Context(())) - z
    ratio = (got / whole).mean((1, 2))
    assert {round(r, 2) for r in ratio.tolist()} == {0.0, 2.0}


def test_an_adapter_reads_the_projection_with_its_tuned_bias() -> None:
    index = torch.tensor([3, 11])  # of (4, 3 + 1): biases of the outputs 0 and 2
    delta = SPTDelta(Behind(4, 2, 0.1, 0.1), Single(3, 4, index), 4, True).to(F64)
    for param in delta.parameters():
        torch.nn.init.normal_(param)
    delta.eval()
    x, y = torch.randn(2, 5, 3, dtype=F64), torch.randn(2, 5, 4, dtype=F64)
    z = y + delta.bias
    z[..., 0] += delta.single.values[0]
    z[..., 2] += delta.single.values[1]
    down, up = delta.module.down, delta.module.up
    h = z @ down.weight.T + down.bias
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    want = z + h @ up.weight.T + up.bias
    torch.testing.assert_close(delta.after(x, y, Context(())), want)


@pytest.mark.parametrize(
    ('structure', 'number'), [('lora', 1_327_104), ('adapter', 1_410_624)]
)
def test_counts_with_a_module_everywhere(structure: str, number: int) -> None:
    assert counts('vit_b', SPT(structure=structure)).delta == number


def test_what_does_not_fit_is_named(tmp_path) -> None:
    with pytest.raises(PETLError, match=r"structure lora or adapter, got 'x'"):
        SPT(structure='x')
    with pytest.raises(PETLError, match=r'there is no nowhere/spt\.json; run mmpetl'):
        model_with(found='nowhere/spt.json')
    method, given = sensitivities()
    found = method.allocate(given, 900)
    with pytest.raises(PETLError, match="for structure 'lora' and rank 2, this is"):
        model_with(rank=3, found=_plain(found))
    (tmp_path / 'spt.json').write_text(json.dumps(to_builtins(found)))
    args = {**SMALL, 'found': str(tmp_path / 'spt.json')}
    with pytest.raises(PETLError, match='was it found on another one'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), SPT(**args))
    broken = _plain(found)
    astray = ([3, 5000], [5, 3], [3, 3], [-2, 3], [], [2**31 - 1])
    for text in ('x', 'AAAA', *(packed(np.array(a, np.int32)) for a in astray)):
        broken['places'][0] = text
        with pytest.raises(PETLError, match=f'found at {found.single[0]} is damaged'):
            model_with(found=broken)
    broken['places'][0] = found.places[0]
    broken['vectors'].append('gone.weight')
    with pytest.warns(UserWarning, match=r'do not train, gone\.weight for one'):
        model_with(found=broken)
    broken['places'].pop()
    with pytest.raises(PETLError, match='is damaged: places at'):
        model_with(found=broken)
    with pytest.raises(PETLError, match='nothing to train within 1 parameters'):
        method.allocate(given, 1)
    model = model_with()
    with pytest.raises(PETLError, match='there are none'):
        method_of(model).sensitivities(model, [], 2)
