from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths
from torch import nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.do_ra import DoRA


@pytest.mark.parametrize(
    ('size', 'number'),
    [('vit_b', 313_344), ('timm_vit_b', 313_344), ('swin_b', 409_088)],
)
def test_count(size: str, number: int) -> None:
    """LoRA's 4 r D, and 2 D lengths, per block."""
    got = counts(size, DoRA(rank=8)).delta
    assert got == number
    assert got == sum(4 * 8 * d + 2 * d for d in widths(size))


def rows(block: nn.Module, key: str) -> slice:
    d = block.attn.proj.in_features
    return {'attn_q': slice(0, d), 'attn_v': slice(2 * d, None)}[key]


@torch.no_grad()
def test_lengths_start_at_those_of_the_rows() -> None:
    base = tiny.base('timm_vit', torch.float64)
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), DoRA(rank=2))
    for mine, theirs in zip(model.blocks, base.blocks, strict=True):
        for key in ('attn_q', 'attn_v'):
            weight = theirs.attn.qkv.weight[rows(theirs, key)]
            want = weight.square().sum(1).sqrt()  # over the inputs of each row
            torch.testing.assert_close(mine.petl.get_submodule(key)['0'].m, want)


def test_equals_a_model_whose_rows_are_rebuilt_with_lengths_held_fixed() -> None:
    """Outputs and gradients are those of ``(m / n) V`` with ``n`` a number."""
    model = plain_vit.tuned(DoRA(rank=3, alpha=6.0, targets=('ffn.fc1',)))
    x = tiny.images('timm_vit', dtype=torch.float64)
    own = [plain_vit.delta(model, i, 'ffn_fc1') for i in range(2)]
    plain = tiny.base('timm_vit', torch.float64)
    with torch.no_grad():
        fixed = [
            (block.mlp.fc1.weight + 2 * d.B @ d.A).norm(dim=1)
            for block, d in zip(plain.blocks, own, strict=True)
        ]
    ours = model(x)
    got = torch.autograd.grad(ours.square().sum(), [p for d in own for p in (d.A, d.m)])
    for block, d, n in zip(plain.blocks, own, fixed, strict=True):
        fc1 = block.mlp.fc1
        weight = (d.m / n)[:, None] * (fc1.weight + 2 * d.B @ d.A)
        del fc1.weight
        fc1.weight = weight
    want = plain(x)
    torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(
        want.square().sum(), [p for d in own for p in (d.A, d.m)]
    )
    for a, b in zip(got, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_convolution_is_one_with_rebuilt_rows() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    weight, bias = conv.weight.clone(), conv.bias.clone()
    model = nn.Sequential(conv)
    mmpetl.inject(model, DoRA(rank=2), delta_dtype=torch.float64)
    tiny.shake_(model)
    own = next(part for part in conv.modules() if hasattr(part, 'm'))
    rows = weight.flatten(1) + own.B @ own.A
    rows = rows * (own.m / rows.norm(dim=1))[:, None]
    x = torch.randn(2, 4, 9, 8).double()
    want = F.conv2d(x, rows.view_as(weight), bias, 2, 1)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize('first', ['DoRA', 'LoRA'])
def test_beside_others_lengths_are_those_of_the_base(first: str) -> None:
    """Folded or not, and in either order, other sums are scaled and not measured."""
    methods = [DoRA(rank=3), {'type': 'LoRA', 'rank': 2}, {'type': 'SSF'}]
    model = tiny.base('timm_vit', torch.float64)
    for method in methods if first == 'DoRA' else methods[::-1]:
        mmpetl.inject(model, method)
    tiny.shake_(model.eval())
    x = tiny.images('timm_vit', dtype=torch.float64)
    want = model(x)
    torch.testing.assert_close(mmpetl.fold(model)(x), want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_row_of_zeros_stays_one_and_can_leave() -> None:
    linear = nn.Linear(4, 3)
    linear.weight[1] = 0
    model, x = nn.Sequential(linear), torch.randn(5, 4)
    plain = model(x)
    mmpetl.inject(model, DoRA(rank=2))
    assert torch.equal(model(x), plain)
    own = next(part for part in linear.modules() if hasattr(part, 'm'))
    nn.init.normal_(own.B)
    own.m.fill_(2.0)
    assert (model(x)[:, 1] != plain[:, 1]).all()


def test_dropout_acts_on_the_low_rank_path_only() -> None:
    model = plain_vit.tuned(DoRA(rank=2, drop_rate=1.0))
    for i in range(2):  # lengths as if nothing were added, so that all else is the base
        for key in ('attn_q', 'attn_v'):
            own = plain_vit.delta(model, i, key)
            weight = model.blocks[i].attn.qkv.weight[rows(model.blocks[i], key)]
            own.m.data = own.norms(weight)
    x = tiny.images('timm_vit', dtype=torch.float64)
    plain = tiny.base('timm_vit', torch.float64)
    torch.testing.assert_close(model.train()(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'DoRA needs rank of at least 1, got 0'),
        ({'drop_rate': 2}, 'DoRA needs drop_rate of at least 0 and at most 1, got 2'),
        ({'targets': ('attn.sum',)}, "DoRA cannot act at 'attn.sum'"),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError) as info:
        DoRA(**args)
    assert message in str(info.value)
