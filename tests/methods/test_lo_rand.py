"""LoRand: two serial adapters per block, their matrices sums of low-rank products."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, PETLError, Site
from mmpetl.methods.lo_rand import LoRand

TABLE = [
    ('vit_b', 2, 8, 915_456, 918_528),
    ('swin_b_dense', 2, 8, 1_197_312, 1_203_456),
    ('swin_l_dense', 2, 8, 1_792_896, 1_799_040),
    ('vit_b', 4, 8, 1_803_264, 1_809_408),
    ('swin_b_dense', 4, 8, 2_358_528, 2_370_816),
    ('swin_l_dense', 4, 8, 3_531_648, 3_543_936),
    ('vit_b', 4, 16, 3_591_168, 3_615_744),
    ('swin_b_dense', 4, 16, 4_705_536, 4_754_688),
    ('swin_l_dense', 4, 16, 7_033_728, 7_082_880),
]


def adapter(dims: int = 64, **args) -> nn.Module:
    delta = LoRand(**args).build(Site('attn.branch', 'b', dims, dims)).double()
    with torch.no_grad():
        for param in delta.parameters():
            param.normal_()
    return delta


@pytest.mark.parametrize(('host', 'branches', 'rank', 'shared', 'separate'), TABLE)
def test_specified_counts(host, branches, rank, shared, separate):
    assert counts(host, LoRand(branches, rank)).delta == shared
    assert counts(host, LoRand(branches, rank, False)).delta == separate


def test_published_count_on_swin_b():
    got = counts('swin_b_dense', LoRand()).delta
    assert got == 1_197_312
    assert f'{got / 1e6:.2f}' == '1.20'


@pytest.mark.parametrize('host', ['videomae_b', 'video_swin_b', 'swin_l'])
def test_count_follows_its_formula(host):
    a, b = 3, 5
    per = (2 * a * b * (c + c // 2) + c // 2 + c + a * b * b for c in widths(host))
    assert counts(host, LoRand(a, b)).delta == 2 * sum(per)


@pytest.mark.parametrize('shared', [True, False], ids=['shared', 'separate'])
def test_collapsed_equals_factored(shared):
    delta, y = adapter(shared_kernels=shared), torch.randn(3, 7, 64).double()
    w_d, w_u = delta.down.weight(delta.K[0]), delta.up.weight(delta.K[-1])
    assert w_d.shape == (32, 64)
    assert w_u.shape == (64, 32)
    want = y + nn.functional.gelu(y @ w_d.T + delta.down.bias) @ w_u.T + delta.up.bias
    torch.testing.assert_close(delta.adapted(y), want, rtol=1e-9, atol=1e-9)


def test_matrix_is_the_sum_of_products_of_its_factors():
    down = adapter(branches=3, rank=4).down
    kernels = torch.randn(3, 4, 4).double()
    parts = zip(down.P, kernels, down.Q, strict=True)
    want = sum(p @ k @ q for p, k, q in parts).T
    torch.testing.assert_close(down.weight(kernels), want)


def test_gradient_of_shared_kernels_is_the_sum_over_both_projections():
    one, two = adapter(), adapter(shared_kernels=False)
    with torch.no_grad():
        two.K.copy_(one.K.expand(2, -1, -1, -1))
        for part in ('down', 'up'):
            getattr(two, part).load_state_dict(getattr(one, part).state_dict())
    y, w = torch.randn(2, 2, 5, 64).double()
    for delta in (one, two):
        (delta.adapted(y) * w).sum().backward()
    assert two.K.grad[0].any()
    assert two.K.grad[1].any()
    torch.testing.assert_close(one.K.grad[0], two.K.grad.sum(0))


def test_rank_is_at_most_that_of_all_products_together():
    delta = adapter(96)
    s = torch.linalg.svdvals(delta.down.weight(delta.K[0]))
    assert s[15] > 1e-6 * s[0]
    assert s[16] < 1e-12 * s[0]


def test_starts_at_zero_where_asked(stem):
    x = tiny.images(stem, odd=True)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    method = LoRand(2, 2, zero_init=True)
    same = tiny.outputs(mmpetl.inject(tiny.base(stem), method), x)
    assert all(map(torch.equal, same, plain))
    other = tiny.outputs(mmpetl.inject(tiny.base(stem), LoRand(2, 2)), x)
    assert not torch.equal(other[0], plain[0])


def test_acts_on_what_each_residual_adds():
    model = plain_vit.tuned(LoRand(2, 3))
    keys = {'m': 'attn_branch', 'f': 'ffn_branch'}

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if place not in keys:
            return value
        d = plain_vit.delta(model, block, keys[place])
        w_d, w_u = d.down.weight(d.K[0]), d.up.weight(d.K[0])
        h = nn.functional.gelu(value @ w_d.T + d.down.bias)
        return value + h @ w_u.T + d.up.bias

    plain_vit.check(model, edit)


@pytest.mark.parametrize('inside', [False, True], ids=['behind', 'in_front'])
def test_order_of_stochastic_depth(inside):
    """A branch that is dropped leaves what the adapter makes of nothing, or nothing."""
    plain = tiny.timm_vit(num_classes=0, drop_path_rate=1 - 1e-9).double()
    method = LoRand(2, 3, inside_drop_path=inside)
    model = mmpetl.inject(plain, method, frozen_drop_path=True)
    model.train()
    block, x = model.blocks[1], torch.randn(2, 17, 32).double()
    got = block(x, Context((4, 4), 1))
    if inside:
        assert torch.equal(got, x)
        return
    nothing = torch.zeros_like(x)
    added = sum(
        plain_vit.delta(model, 1, key).adapted(nothing)
        for key in ('attn_branch', 'ffn_branch')
    )
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(got, x + added)


def test_start_values():
    delta = LoRand().build(Site('attn.branch', 'b', 256, 256))
    for part, fan_in, out in ((delta.down, 256, 128), (delta.up, 128, 256)):
        for param, bound in (
            (part.P, 8**-0.5),
            (part.Q, out**-0.5),
            (part.bias, fan_in**-0.5),
        ):
            assert 0.9 * bound < param.abs().max() <= bound
    assert delta.K.abs().max() <= 8**-0.5


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match='LoRand needs branches of at least 1, got 0'):
        LoRand(0)
    with pytest.raises(PETLError, match=r'at most half the width \(16\), got 2 x 9'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), LoRand(2, 9))
