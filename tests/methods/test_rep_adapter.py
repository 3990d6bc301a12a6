from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import GroupedLinear, PETLError
from mmpetl.methods.rep_adapter import RepAdapter


@pytest.mark.parametrize(
    ('size', 'hidden', 'number'),
    [
        ('vit_b', 8, 239_808),
        ('vit_b', 2, 73_776),
        ('timm_vit_b', 8, 239_808),
        ('videomae_b', 2, 73_776),
        ('swin_b', 8, 313_216),
        ('swin_l', 8, 469_632),
        ('video_swin_b', 8, 313_216),
    ],
)
def test_count(size: str, hidden: int, number: int) -> None:
    got = counts(size, RepAdapter(hidden_dims=hidden)).delta
    each = [d * hidden + hidden + d * hidden // 2 + d for d in widths(size)]
    assert got == number
    assert got == 2 * sum(each)
    assert counts(size, RepAdapter('attn', hidden_dims=hidden)).delta == sum(each)


def test_published_count_leaves_the_biases_out() -> None:
    biases = 2 * sum(8 + d for d in widths('vit_b'))
    got = counts('vit_b', RepAdapter()).delta
    assert got - biases == 221_184  # published 0.22M


def expected(own: torch.nn.Module, z: torch.Tensor, groups: int) -> torch.Tensor:
    """``z + s (W_B (W_A z + a) + c)`` group by group."""
    hidden = z @ own.down.weight.T + own.down.bias
    rows = own.up.weight.chunk(groups)
    parts = [h @ b.T for h, b in zip(hidden.chunk(groups, -1), rows, strict=True)]
    return z + 0.5 * (torch.cat(parts, dim=-1) + own.up.bias)


@pytest.mark.parametrize('style', ['block', 'attn'])
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_equals_the_formula(style: str, groups: int) -> None:
    model = plain_vit.tuned(
        RepAdapter(style=style, hidden_dims=4, groups=groups, scale=0.5)
    )
    at = {'qkv_in': 'attn_qkv', 'fc1_in': 'ffn_fc1'}
    if style == 'attn':
        del at['fc1_in']

    def edit(place, i, z, seen):
        if place not in at:
            return z
        return expected(plain_vit.delta(model, i, at[place]), z, groups)

    plain_vit.check(model, edit)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_densified_weight_is_zero_off_its_blocks(groups: int) -> None:
    up = GroupedLinear(8, 12, groups).double()
    torch.nn.init.normal_(up.weight)
    dense = up.dense()
    blocks = torch.zeros(12, 8, dtype=torch.bool)
    for g in range(groups):
        rows, columns = 12 // groups, 8 // groups
        at = slice(g * rows, (g + 1) * rows), slice(g * columns, (g + 1) * columns)
        blocks[at] = True
    assert torch.equal(dense != 0, blocks)
    h = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(up(h), h @ dense.T + up.bias)


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('name', ['mmpretrain_swin', 'mmaction_vit', 'mmaction_swin3d'])
def test_folds_where_windows_are_padded_and_keys_have_no_bias(
    name: str, groups: int
) -> None:
    x = tiny.images(name, odd=True, dtype=torch.float64)
    model = mmpetl.inject(
        tiny.base(name, torch.float64), RepAdapter(groups=groups, scale=5.0)
    )
    model.eval()
    tiny.shake_(model)
    with torch.no_grad():
        want = tiny.outputs(model, x)
        got = tiny.outputs(mmpetl.core.fold(model), x)
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'style': 'ffn'}, "style block or attn, got 'ffn'"),
        ({'hidden_dims': 3}, 'hidden_dims that groups divides, got 3 and 2'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        RepAdapter(**args)


def test_width_that_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(PETLError, match='blocks.0:attn.qkv has 32, groups is 3'):
        mmpetl.inject(tiny.timm_vit(), RepAdapter(hidden_dims=6, groups=3))
