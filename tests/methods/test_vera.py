from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import nn

import mmpetl
from mmpetl.core import PETLError, delta_state, injection_of
from mmpetl.methods.vera import VeRA


@pytest.mark.parametrize(
    ('size', 'args', 'number'),
    [
        ('vit_b', {}, 24_576),  # published 24.6K
        ('timm_vit_b', {}, 24_576),
        ('videomae_b', {}, 24_576),
        ('vit_b', {'probabilistic': True}, 30_720),
        ('swin_b', {'rank': 64}, 27_136),
    ],
)
def test_count(size: str, args: dict, number: int) -> None:
    got = counts(size, VeRA(**args)).delta
    codes = (1 + args.get('probabilistic', False)) * args.get('rank', 256)
    assert got == number
    assert got == sum(2 * (d + codes) for d in widths(size))


@pytest.mark.parametrize('probabilistic', [False, True])
def test_equals_the_formula(probabilistic: bool) -> None:
    model = plain_vit.tuned(
        VeRA(rank=40, probabilistic=probabilistic, d_initial=0.5), std=0.3
    )
    pair = model.get_submodule('petl.shared.0.32_to_32')

    def edit(place, i, z, seen):
        if place != 'qkv':
            return z
        parts = list(z.chunk(3, -1))
        for row, key in ((0, 'attn_q'), (2, 'attn_v')):
            own = plain_vit.delta(model, i, key)
            weight = torch.zeros(32, 32, dtype=torch.float64)
            for j in range(40):  # one outer product of B and A at a time
                weight += own.lambda_d[j] * torch.outer(pair.B[:, j], pair.A[j])
            parts[row] = parts[row] + seen['qkv_in'] @ weight.T * own.lambda_b
        return torch.cat(parts, -1)

    plain_vit.check(model, edit)


def test_a_shape_has_one_pair_that_is_saved_once_and_never_trained() -> None:
    method = VeRA(rank=5, targets=('attn.q', 'attn.v', 'ffn.fc1'))
    model = mmpetl.inject(tiny.base('timm_vit'), method)
    q, v = (plain_vit.delta(model, i, k) for i, k in ((0, 'attn_q'), (1, 'attn_v')))
    for mine, theirs in zip(q.matrices(), v.matrices(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    pairs = [key for key in delta_state(model) if key.endswith(('.A', '.B'))]
    assert pairs == [
        f'petl.shared.0.{shape}.{name}'
        for shape in ('32_to_32', '32_to_64')
        for name in 'AB'
    ]
    assert not {*pairs} & {name for name, _ in model.named_parameters()}


def test_a_smaller_rank_uses_the_first_rows_of_the_same_pair() -> None:
    rank = {'*.0.attn.*': 3, '*': 5}
    model = mmpetl.inject(tiny.base('timm_vit'), VeRA(rank, probabilistic=True))
    pair = injection_of(model)[0].get_submodule('petl.shared.0.32_to_32')
    small, large = (plain_vit.delta(model, i, 'attn_q') for i in (0, 1))
    a, b = small.matrices()
    assert torch.equal(a, pair.A[[0, 1, 2, 5, 6, 7]])
    assert torch.equal(b, pair.B[:, :3])
    assert torch.equal(large.matrices()[0], pair.A)


def test_the_code_is_drawn_around_its_mean_in_training_only() -> None:
    torch.manual_seed(0)
    model = plain_vit.tuned(VeRA(rank=2, probabilistic=True))
    own = plain_vit.delta(model, 0, 'attn_q')
    mean, log_variance = torch.tensor([0.5, -1.0]), torch.tensor([-2.0, 1.0])
    z = torch.cat((mean, log_variance)).expand(20_000, 4)
    with torch.no_grad():
        own.lambda_d.fill_(1.0)
    code, _ = own.float().code(z)
    assert torch.equal(code, z[:, :2])
    drawn, _ = own.train().code(z)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(0), log_variance.exp(), atol=0.1, rtol=0)


def test_acts_beside_convolutions_and_folds_into_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Flatten(), nn.Linear(96, 4))
    model, x = model.double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mmpetl.inject(model, VeRA(rank=4), delta_dtype=torch.float64)
    plain = model(x)
    tiny.shake_(model, 0.5)
    tuned = model(x)
    assert (tuned - plain).abs().max() > 1e-3
    torch.testing.assert_close(mmpetl.fold(model)(x), tuned, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'VeRA needs rank of at least 1, got 0'),
        ({'d_initial': 0}, 'VeRA needs d_initial above 0'),
        ({'targets': ('ffn',)}, "VeRA cannot act at 'ffn'"),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        VeRA(**args)
