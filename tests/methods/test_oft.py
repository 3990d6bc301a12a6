"""OFT: block-wise rotations of what enters a projection."""

from __future__ import annotations

from collections.abc import Callable

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.oft import (
    BOFT,
    OFT,
    Butterfly,
    Rotations,
    cayley,
    eliminated,
    skew,
)

F64 = torch.float64


@pytest.mark.parametrize(
    ('size', 'block', 'number'),
    [
        ('vit_b', 8, 32_256),
        ('vit_b', 16, 69_120),
        ('vit_b', 32, 142_848),
        ('vit_b', 64, 290_304),
        ('videomae_b', 32, 142_848),
        ('swin_b', 32, 186_496),
    ],
)
def test_count(size: str, block: int, number: int) -> None:
    got = counts(size, OFT(block, targets=('attn.qkv',))).delta
    assert got == number
    assert got == sum(d * (block - 1) // 2 for d in widths(size))
    assert counts(size, OFT(block)).delta == 2 * number
    shared = counts(size, OFT(block, share_blocks=True, targets=('attn.qkv',))).delta
    assert shared == len(widths(size)) * block * (block - 1) // 2


def test_free_numbers_are_the_upper_triangle_row_by_row() -> None:
    Q = skew(torch.arange(1.0, 7.0), 4)
    want = torch.tensor(
        [[0.0, 1, 2, 3], [-1, 0, 4, 5], [-2, -4, 0, 6], [-3, -5, -6, 0]]
    )
    assert torch.equal(Q, want)


def test_cayley_transform_is_a_rotation() -> None:
    Q = skew(torch.randn(5, 28, dtype=F64), 8)
    one = torch.eye(8, dtype=F64)
    R = one + cayley(Q)
    torch.testing.assert_close(R @ R.mT, one.expand(5, 8, 8))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(5, dtype=F64))
    torch.testing.assert_close(R, (one - Q) @ torch.linalg.inv(one + Q))


@pytest.mark.parametrize('size', [1e-3, 1.0, 1e3])
def test_elimination_solves_without_pivots(size: float) -> None:
    Q, one = skew(size * torch.randn(5, 28, dtype=F64), 8), torch.eye(8, dtype=F64)
    found = eliminated(one + Q, -2 * Q)
    torch.testing.assert_close((one + Q) @ found, -2 * Q)
    torch.testing.assert_close(found, cayley(Q))


def test_series_has_the_terms_that_the_source_has() -> None:
    R = Rotations(3, 4, series=True)
    torch.nn.init.normal_(R.upper)
    Q = skew(R.upper.double(), 4)
    want = torch.eye(4) + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q
    torch.testing.assert_close(torch.eye(4) + R.turns(F64), want)


def test_bounded_rotations_stay_near_one_and_learn() -> None:
    R = Rotations(2, 4, max_norm=0.5).double()
    with torch.no_grad():
        R.upper.copy_(torch.tensor([[3.0] * 6, [0.01] * 6]))
    Q = skew(R.upper, 4)
    torch.testing.assert_close(R.turns(F64)[1], cayley(Q)[1])
    torch.testing.assert_close(R.turns(F64)[0], cayley(Q * 0.5 / Q[0].norm())[0])
    start = Rotations(2, 4, max_norm=0.5)
    start.turns(torch.float32)[:, 0, 1].sum().backward()
    assert (start.upper.grad[:, 0] == -2).all()


def expected(R: torch.nn.Module, x: Tensor) -> Tensor:
    """``x R``, one group of channels after the other."""
    one = torch.eye(R.size, dtype=F64)
    blocks = one + cayley(skew(R.upper, R.size))
    groups = x.split(R.size, dim=-1)
    if len(blocks) == 1:
        blocks = blocks.expand(len(groups), -1, -1)
    return torch.cat([g @ M for g, M in zip(groups, blocks, strict=True)], dim=-1)


@pytest.mark.parametrize('share', [False, True], ids=['apart', 'shared'])
def test_equals_the_formula(share: bool) -> None:
    method = OFT(8, share, targets=('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2'))
    model = plain_vit.tuned(method)
    at = {'qkv_in': 'attn_qkv', 'proj_in': 'attn_proj'}
    at |= {'fc1_in': 'ffn_fc1', 'fc2_in': 'ffn_fc2'}

    def edit(place: str, block: int, x: Tensor, seen: dict) -> Tensor:
        if place not in at:
            return x
        return expected(plain_vit.delta(model, block, at[place]).change, x)

    plain_vit.check(model, edit)


def test_lengths_of_inputs_and_angles_between_neurons_stay() -> None:
    """The hypersphere energy of a projection is that of the frozen one."""
    model = plain_vit.tuned(OFT(8))
    x = torch.randn(3, 7, 32, dtype=F64)
    turned = plain_vit.delta(model, 0, 'attn_qkv').before(x, None)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    after = mmpetl.fold(model).blocks[0].attn.qkv.weight.detach()
    assert (before - after).abs().max() > 1e-2
    torch.testing.assert_close(after @ after.T, before @ before.T)


def test_dropped_blocks_do_not_turn() -> None:
    R = Rotations(400, 4, drop_rate=0.25)
    torch.nn.init.normal_(R.upper)
    x = torch.randn(1600)
    got, turned = R(x).view(400, 4), R.eval()(x).view(400, 4)
    still = (got == 0).all(1)
    assert 50 < still.sum() < 150
    assert torch.equal(got[~still], turned[~still])
    assert turned.any(1).all()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'block_size': 1}, 'OFT needs block_size of at least 2, got 1'),
        ({'max_norm': 0}, 'OFT needs max_norm above 0, got 0'),
        ({'targets': ['attn.sum']}, "OFT cannot act at 'attn.sum'"),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        OFT(**args)


def test_blocks_that_do_not_fill_the_width_are_refused() -> None:
    said = 'attn.qkv has 32, got 6. It can be: 2, 4, 8, 16, 32'
    with pytest.raises(PETLError, match=said):
        mmpetl.inject(tiny.timm_vit(), OFT(6))


def test_count_of_butterflies() -> None:
    for size in ('vit_b', 'videomae_b'):
        got = counts(size, BOFT(targets=('attn.q', 'attn.v'))).delta
        assert got == 147_456
        assert got == sum(2 * (2 * d * 7 // 2 + d) for d in widths(size))


def permutation(width: int, size: int, i: int) -> Tensor:
    """``P_i``, (width, width), i from 0: ``P_i z`` has even halves in front."""
    half, group = size // 2, size * 2**i
    order = []
    for start in range(0, width, group):
        halves = [range(h, h + half) for h in range(start, start + group, half)]
        order += [n for h in halves[::2] + halves[1::2] for n in h]
    return torch.eye(width, dtype=F64)[order]


@pytest.mark.parametrize(('factors', 'width'), [(1, 32), (2, 32), (3, 32), (6, 128)])
def test_butterfly_is_the_product_of_its_factors(factors: int, width: int) -> None:
    size = 4
    change = Butterfly(width // size, size, factors).double()
    torch.nn.init.normal_(change.upper)
    blocks = torch.eye(size, dtype=F64) + cayley(skew(change.upper, size))
    R = torch.eye(width, dtype=F64)
    for i, own in enumerate(blocks.chunk(factors)):
        P = permutation(width, size, i)
        R = P @ torch.block_diag(*own) @ P.T @ R
    x = torch.randn(5, width, dtype=F64)
    torch.testing.assert_close(x + change(x), x @ R)
    torch.testing.assert_close(x + change.of_weight(x), x @ R.T)
    # A channel reaches as many as the factors let it.
    reached = (R.detach().abs() > 1e-12).sum(1)
    assert (reached == size * 2 ** (factors - 1)).all()


@pytest.mark.parametrize('kinds', [['attn.qkv'], ['attn.q', 'attn.k', 'attn.v']])
def test_butterflies_equal_the_formula(kinds: list[str]) -> None:
    """``s * (W R^T x) + b``, for the whole projection and for its rows."""
    model = plain_vit.tuned(BOFT(4, targets=kinds))

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if place != 'qkv':
            return value
        qkv, x, parts = model.blocks[block].attn.qkv, seen['qkv_in'], []
        rows = 96 // len(kinds)
        for i, kind in enumerate(kinds):
            d = plain_vit.delta(model, block, kind.replace('.', '_'))
            at = slice(i * rows, (i + 1) * rows)
            y = (x + d.change(x)) @ qkv.weight[at].T
            parts.append(d.s * y + qkv.bias[at])
        return torch.cat(parts, dim=-1)

    plain_vit.check(model, edit)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'block_size': 6, 'factors': 1}, 'attn.qkv has 32, got 6'),
        ({'block_size': 8, 'factors': 4}, 'groups of 8 for 4 factors; .* has 4'),
        ({'factors': 0}, 'BOFT needs factors of at least 1, got 0'),
    ],
)
def test_butterflies_that_do_not_fit_are_refused(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.timm_vit(), BOFT(**args))


@pytest.mark.parametrize('method', [OFT(4), BOFT(4)], ids=['oft', 'boft'])
def test_layers_of_any_model_turn_and_fold(method: OFT | BOFT) -> None:
    """Linear layers and ``nn.MultiheadAttention``, whose sites lie inside of it."""
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = mmpetl.inject(model.double(), method).eval()
    x = torch.randn(2, 5, 8, dtype=F64)
    start = model(x)
    tiny.shake_(model)
    with torch.no_grad():
        want = model(x)
        assert (want - start).abs().max() > 1e-2
        torch.testing.assert_close(mmpetl.fold(model)(x), want)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ('make', 'channels'),
    [
        (lambda: Rotations(4, 8), 32),
        (lambda: Rotations(1, 8), 32),
        (lambda: Butterfly(4, 8, 2), 32),
        (lambda: Butterfly(8, 16, 4), 128),  # too wide to be written as one
    ],
)
def test_what_is_turned_is_x_and_its_change(
    make: Callable[[], Rotations], channels: int, dtype: torch.dtype
) -> None:
    change, x = make().double(), torch.randn(3, channels, dtype=dtype)
    assert torch.equal(change.added(x), x)  # bit for bit at the start
    torch.nn.init.normal_(change.upper, std=0.01)
    want = x.double() + change(x.double())
    # In half precision a turn of a thousandth is not lost beside one.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 0.01)
    got = change.to(dtype).added(x).double()
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('make', [lambda: Rotations(4, 8), lambda: Butterfly(4, 8, 2)])
def test_a_small_turn_is_not_lost_under_autocast(
    make: Callable[[], Rotations],
) -> None:
    """A product with the identity would be in half precision there."""
    change, x = make(), torch.randn(64, 32)
    torch.nn.init.normal_(change.upper, std=1e-3)
    want = change.added(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = change.added(x)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)
