"""LoKr, LoHa, KAdaptation and Compacter: products of small matrices."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, PETLError, Site, build_method
from mmpetl.methods.kronecker import (
    Compacter,
    Factor,
    KAdaptation,
    LoHa,
    split_dims,
)

F64 = torch.float64


@pytest.mark.parametrize(
    ('size', 'config', 'number'),
    [
        ('vit_b', {'type': 'LoKr'}, 26_112),
        ('vit_b', {'type': 'LoKr', 'factor': 8}, 38_400),
        ('videomae_b', {'type': 'LoKr'}, 26_112),
        ('vit_b', {'type': 'LoHa'}, 589_824),
        ('vit_b', {'type': 'KAdaptation'}, 50_176),
        ('timm_vit_b', {'type': 'KAdaptation'}, 50_176),
        ('vit_b', {'type': 'Compacter'}, 58_816),
    ],
)
def test_count(size: str, config: dict, number: int) -> None:
    assert counts(size, config).delta == number


def test_counts_follow_their_formulas() -> None:
    each = widths('swin_b')
    assert counts('swin_b', LoHa(rank=3)).delta == sum(2 * 4 * d * 3 for d in each)
    rules, own = 2 * 2 * 16 * 16, sum(2 * 2 * d * 3 + d for d in each)
    assert counts('swin_b', KAdaptation(16, rank=3)).delta == rules + own
    own = sum(2 * (2 * (d + 48) + 48 + d) for d in each)
    assert counts('swin_b', Compacter()).delta == 4**3 + own


@pytest.mark.parametrize(
    ('dims', 'factor', 'parts'),
    [
        (768, -1, (24, 32)),
        (768, 8, (8, 96)),
        (32, 16, (2, 16)),
        (36, -1, (6, 6)),
        (100, 8, (5, 20)),
        (7, -1, (1, 7)),
    ],
)
def test_the_smaller_part_of_a_width_comes_first(dims, factor, parts) -> None:
    assert split_dims(dims, factor) == parts


def moved(config: dict, site: Site) -> nn.Module:
    """A delta at a site in float64, with all tensors drawn."""
    torch.manual_seed(0)
    method = build_method(config)
    shared, delta = method.share([site]), method.build(site).double()
    delta.attach('0', None if shared is None else shared.double())
    for module in (delta, shared):
        for param in () if module is None else module.parameters():
            nn.init.normal_(param)
    return delta.eval()


def matrix(factor: Factor) -> Tensor:
    return factor.whole if factor.rank is None else factor.A @ factor.B


LINEAR = Site('attn.q', 'b', 12, 20)
CONV = Site(
    'layer.conv', 'c', 6 * 9, 4, kernel=(3, 3), stride=(2, 1), padding=(1, 0),
    dilation=(1, 1),
)  # fmt: skip


@pytest.mark.parametrize(
    ('args', 'whole'),
    [
        ({'rank': 8}, (True, True)),
        ({'rank': 1}, (True, False)),
        ({'rank': 1, 'decompose_both': True, 'factor': 4}, (False, False)),
    ],
)
def test_lokr_is_a_kronecker_product(args: dict, whole: tuple[bool, bool]) -> None:
    delta = moved({'type': 'LoKr', 'alpha': 3, **args}, LINEAR)
    sides = delta.W1, delta.W2
    assert tuple(side.rank is None for side in sides) == whole
    assert all(('whole' in repr(s)) == (s.rank is None) for s in sides)
    added = torch.kron(matrix(sides[0]), matrix(sides[1])) * 3 / args['rank']
    x, y = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 5, 20, dtype=F64)
    torch.testing.assert_close(delta.after(x, y, None), y + x @ added.T)
    torch.testing.assert_close(delta.increment(), added)


@pytest.mark.parametrize('rank', [1, 8])
def test_lokr_beside_a_convolution_is_one(rank: int) -> None:
    delta = moved({'type': 'LoKr', 'rank': rank}, CONV)
    assert matrix(delta.W1).shape == (2, 2)
    weight = torch.kron(matrix(delta.W1), matrix(delta.W2))
    x = torch.randn(2, 6, 7, 8, dtype=F64)
    want = F.conv2d(x, weight.view(4, 6, 3, 3), None, (2, 1), (1, 0))
    y = torch.zeros_like(want).movedim(1, -1)
    got = delta.after(x, y, Context(())).movedim(-1, 1)
    torch.testing.assert_close(got, want)
    one = delta.after(x[0], y[0], Context(())).movedim(-1, 0)
    torch.testing.assert_close(one, want[0])


@pytest.mark.parametrize('site', [LINEAR, CONV], ids=['linear', 'conv'])
def test_loha_is_a_product_entry_by_entry(site: Site) -> None:
    delta = moved({'type': 'LoHa', 'rank': 2, 'alpha': 3}, site)
    added = (delta.B1 @ delta.A1) * (delta.B2 @ delta.A2) * 1.5
    torch.testing.assert_close(delta.increment(), added)
    if site is LINEAR:
        x, y = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 5, 20, dtype=F64)
        got = delta.after(x, y, Context(()))
        torch.testing.assert_close(got, y + x @ added.T)


def sum_of_products(rules: Tensor, delta: nn.Module) -> Tensor:
    """``sum_i S_i (x) (u_i v_i)``, one product at a time."""
    triples = zip(rules, delta.u, delta.v, strict=True)
    return sum(torch.kron(s, u @ v) for s, u, v in triples)


def test_kadaptation_equals_the_formula() -> None:
    model = plain_vit.tuned(KAdaptation(4, rank=2, scale=0.5), std=0.3)
    shared = model.get_submodule('petl.shared.0')

    def edit(place, i, z, seen):
        if place != 'qkv':
            return z
        parts = list(z.chunk(3, -1))
        for row, kind in ((0, 'attn_q'), (2, 'attn_v')):
            own, rule = plain_vit.delta(model, i, kind), shared.rules[kind]
            h = sum_of_products(rule.a[:, :, None] * rule.b[:, None], own)
            parts[row] = parts[row] + 0.5 * seen['qkv_in'] @ h
            parts[row] = parts[row] + shared.beta[f'blocks_{i}_32']
        return torch.cat(parts, -1)

    plain_vit.check(model, edit)


def test_every_factor_of_kadaptation_comes_alive() -> None:
    x = tiny.images('timm_vit')
    model = tiny.Tuned(mmpetl.inject(tiny.base('timm_vit'), KAdaptation(4)), x)
    added = {n: p for n, p in model.named_parameters() if '.petl.' in n}
    before = {n: p.detach().clone() for n, p in added.items()}
    assert len(added) == 2 * 2 + 2 + 2 * 2 * 2
    tiny.train(model, x, steps=2)
    assert [n for n in added if torch.equal(added[n], before[n])] == []


@pytest.mark.parametrize('activation', ['gelu', 'relu'])
def test_compacter_equals_the_formula(activation: str) -> None:
    method = Compacter(8, num_factors=2, rank=2, activation=activation)
    model = plain_vit.tuned(method, std=0.3)
    act = {'gelu': F.gelu, 'relu': torch.relu}[activation]
    rules = model.get_parameter('petl.shared.0.S')

    def edit(place, i, z, seen):
        if place not in ('m', 'f'):
            return z
        own = plain_vit.delta(model, i, {'m': 'attn', 'f': 'ffn'}[place])
        down, up = (sum_of_products(rules, part) for part in (own.down, own.up))
        return z + act(z @ down + own.down.bias) @ up + own.up.bias

    plain_vit.check(model, edit)


def zeros(config: dict) -> set[str]:
    """Names of the tensors that start at zero, biases left out."""
    delta = build_method(config).build(Site('attn.q', 'b', 768, 768))
    named = delta.named_parameters()
    return {n for n, p in named if not p.any() and not n.endswith('bias')}


def test_one_tensor_of_each_product_starts_at_zero() -> None:
    assert zeros({'type': 'LoKr'}) == {'W1.whole'}
    assert zeros({'type': 'LoKr', 'decompose_both': True}) == {'W1.A'}
    assert zeros({'type': 'LoKr', 'init': 'lycoris'}) == {'W2.B'}
    assert zeros({'type': 'LoKr', 'init': 'lycoris', 'rank': 16}) == {'W2.whole'}
    assert zeros({'type': 'LoHa'}) == {'A2'}
    assert zeros({'type': 'KAdaptation'}) == {'v'}
    assert zeros({'type': 'Compacter'}) == {'up.v'}


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'type': 'LoKr', 'factor': 0}, 'LoKr needs factor of at least 1, or -1'),
        ({'type': 'LoKr', 'init': 'zero'}, "init peft or lycoris, got 'zero'"),
        ({'type': 'LoHa', 'rank': 32}, r'narrowest projection \(32\), got 32'),
        ({'type': 'KAdaptation', 'num_factors': 5}, r'\(32 of what enters blocks.0'),
        ({'type': 'Compacter', 'hidden_dims': 6}, r'\(6 of the bottleneck\), got 4'),
        ({'type': 'Compacter', 'activation': 'tanh'}, "gelu or relu, got 'tanh'"),
    ],
)
def test_bad_argument_is_named(config: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.timm_vit(), config)
