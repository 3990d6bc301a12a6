"""HRA: products of Householder reflections of what enters a projection."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.hra import HRA, Reflections, paired

F64 = torch.float64


@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [('vit_b', 8, 73_728), ('videomae_b', 8, 73_728), ('swin_b', 4, 48_128)],
)
def test_count(size: str, rank: int, number: int) -> None:
    got = counts(size, HRA(rank, targets=('attn.qkv',))).delta
    assert got == number
    assert got == sum(d * rank for d in widths(size))
    assert counts(size, HRA(rank)).delta == 2 * number
    assert counts(size, HRA(rank, targets=('attn.q', 'attn.v'))).delta == 2 * number


def product(U: Tensor) -> Tensor:
    """``(I - 2 u_1 u_1^T) ... (I - 2 u_r u_r^T)``, one matrix after the other."""
    R = torch.eye(len(U), dtype=U.dtype)
    for u in U.T:
        R = R - 2 * R @ torch.outer(u, u) / (u @ u)
    return R


@pytest.mark.parametrize('rank', [1, 2, 5, 6])
def test_pairs_are_the_product_of_all_reflections(rank: int) -> None:
    U = torch.randn(9, rank, dtype=F64)
    left, right = paired(torch.nn.functional.normalize(U, dim=0).T)
    torch.testing.assert_close(torch.eye(9, dtype=F64) + left @ right, product(U))


def test_orthogonal_directions_reflect_all_at_once() -> None:
    delta = Reflections(9, 4, 'random', True).double()
    left, right = delta.factors(F64)
    R = torch.eye(9, dtype=F64) + left @ right
    P = delta.U @ torch.linalg.inv(delta.U.T @ delta.U) @ delta.U.T
    torch.testing.assert_close(R, torch.eye(9, dtype=F64) - 2 * P)
    first = delta.U[:, 0] / delta.U[:, 0].norm()
    torch.testing.assert_close(R @ first, -first)


def test_equals_the_formula() -> None:
    targets = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
    model = plain_vit.tuned(HRA(5, 'random', targets=targets))
    at = {'qkv_in': 'attn_qkv', 'proj_in': 'attn_proj'}
    at |= {'fc1_in': 'ffn_fc1', 'fc2_in': 'ffn_fc2'}

    def edit(place: str, block: int, x: Tensor, seen: dict) -> Tensor:
        if place not in at:
            return x
        return x @ product(plain_vit.delta(model, block, at[place]).change.U).T

    plain_vit.check(model, edit)


def test_starts_in_pairs_that_training_tells_apart() -> None:
    delta = Reflections(32, 6, 'pairs', False)
    U = delta.U
    assert torch.equal(U[:, 0::2], U[:, 1::2])
    assert 0.9 * 3**-0.5 < U.abs().max() <= 3**-0.5
    x = torch.randn(4, 32)
    assert not delta(x).any()
    (delta(x) * torch.randn(4, 32)).sum().backward()
    assert ((U.grad[:, 0::2] - U.grad[:, 1::2]).norm(dim=0) > 1e-2).all()


def test_the_penalty_is_that_of_directions_of_length_one() -> None:
    model = plain_vit.tuned(HRA(4, penalty=0.25, targets=['attn.qkv', 'attn.v']))
    model.train()
    model(tiny.images('timm_vit', dtype=F64))
    losses = mmpetl.core.collect_losses(model)
    want = 0
    for block in range(2):
        for key in ('attn_qkv', 'attn_v'):
            U = plain_vit.delta(model, block, key).change.U
            u = U / U.norm(dim=0)
            want += 0.25 * ((u.T @ u - torch.eye(4)) ** 2).sum()
    assert losses.keys() == {'hra_orthogonal'}
    torch.testing.assert_close(losses['hra_orthogonal'], want)
    losses['hra_orthogonal'].backward()
    assert plain_vit.delta(model, 1, 'attn_v').change.U.grad.any()
    assert not HRA(4).losses


def test_lengths_of_inputs_and_angles_between_neurons_stay() -> None:
    model = plain_vit.tuned(HRA(4))
    x = torch.randn(3, 7, 32, dtype=F64)
    turned = plain_vit.delta(model, 0, 'attn_qkv').before(x, None)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    after = mmpetl.fold(model).blocks[0].attn.qkv.weight.detach()
    assert (before - after).abs().max() > 1e-2
    torch.testing.assert_close(after @ after.T, before @ before.T)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'HRA needs rank of at least 1, got 0'),
        ({'rank': 3}, "rank 3 is odd; set start='random'"),
        ({'rank': {'*': 5}}, "rank 5 is odd; set start='random'"),
        ({'orthogonal': True}, "orthogonal directions differ; set start='random'"),
        ({'penalty': -1}, 'HRA needs penalty of at least 0, got -1'),
        (
            {'start': 'random', 'orthogonal': True, 'penalty': 1},
            'orthogonal directions, which need no penalty',
        ),
        ({'start': 'zero'}, "HRA needs start pairs or random, got 'zero'"),
        ({'targets': []}, 'HRA needs at least one of'),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        HRA(**args)


def test_more_reflections_than_channels_are_refused() -> None:
    with pytest.raises(PETLError, match='32 at blocks.0:attn.qkv, got 34'):
        mmpetl.inject(tiny.timm_vit(), HRA(34))
