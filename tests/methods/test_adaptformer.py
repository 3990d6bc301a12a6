from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.adaptformer import AdaptFormer


@pytest.mark.parametrize(
    ('size', 'hidden', 'number'),
    [
        ('vit_b', 8, 156_768),  # published 0.16M, VTAB-1k
        ('vit_b', 64, 1_189_632),
        ('timm_vit_b', 64, 1_189_632),
        ('videomae_b', 64, 1_189_632),  # published 1.19M
        ('swin_b', 64, 1_553_664),
        ('swin_l', 64, 2_329_728),
        ('video_swin_b', 64, 1_553_664),
    ],
)
def test_count(size: str, hidden: int, number: int) -> None:
    got = counts(size, AdaptFormer(hidden_dims=hidden)).delta
    assert got == number
    assert got == sum(2 * d * hidden + hidden + d for d in widths(size))


def test_dense_published_count_is_two_modules_per_block() -> None:
    # Published 3.11M and 4.66M; the public code has one module per block.
    assert 2 * counts('swin_b', AdaptFormer()).delta == 3_107_328
    assert 2 * counts('swin_l', AdaptFormer()).delta == 4_659_456


def test_stream_input_equals_the_formula() -> None:
    model = plain_vit.tuned(AdaptFormer(hidden_dims=4, scale=0.3))

    def edit(place, i, z, seen):
        if place != 'x2':
            return z
        own = plain_vit.delta(model, i, 'ffn_sum')
        return z + 0.3 * plain_vit.bottleneck(own, seen['x1'], torch.relu)

    plain_vit.check(model, edit)


def test_post_norm_input_equals_the_formula() -> None:
    model = plain_vit.tuned(AdaptFormer(hidden_dims=4, scale=0.3, input='post_norm'))

    def edit(place, i, z, seen):
        if place != 'f':
            return z
        own = plain_vit.delta(model, i, 'ffn')
        return z + 0.3 * plain_vit.bottleneck(own, seen['g'], torch.relu)

    plain_vit.check(model, edit)


@pytest.mark.parametrize('factor', [0.5, 3.0])
def test_scale_times_c_gives_c_times_the_difference(factor: float) -> None:
    # One block, read in front of the final norm.
    x = tiny.images('timm_vit', dtype=torch.float64)

    def difference(scale: float) -> torch.Tensor:
        model = tiny.timm_vit(depth=1)
        tiny.randomise_(model).double().eval()
        model.norm = torch.nn.Identity()
        plain = model.forward_features(x)
        torch.manual_seed(0)
        mmpetl.inject(model, AdaptFormer(hidden_dims=4, scale=scale))
        model.eval()
        tiny.shake_(model)
        return model.forward_features(x) - plain

    with torch.no_grad():
        one, many = difference(0.1), difference(0.1 * factor)
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(many, factor * one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ('input_', 'survives'), [('pre_norm_stream', True), ('post_norm', False)]
)
def test_only_the_stream_branch_lies_outside_of_stochastic_depth(
    input_: str, survives: bool
) -> None:
    model = tiny.mmpretrain_swin(drop_path_rate=1.0 - 1e-6)
    mmpetl.inject(
        model, AdaptFormer(4, drop_rate=0.0, input=input_), frozen_drop_path=True
    )
    last = model.stages[-1].blocks[-1]
    (own,) = next(iter(last.petl.children())).values()
    x = tiny.images('mmpretrain_swin_cls')
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        before = model(x)[0]
        # Not a constant over channels: the final norm would take it out again.
        own.up.bias.copy_(torch.arange(32.0))
        torch.manual_seed(0)
        assert (not torch.equal(model(x)[0], before)) is survives


def test_norm_and_activation_equal_the_formula() -> None:
    """V-PETL Bench's image code with Mona's activation."""
    model = plain_vit.tuned(
        AdaptFormer(hidden_dims=4, scale=1.0, activation='gelu', input_norm=True)
    )

    def edit(place, i, z, seen):
        if place != 'x2':
            return z
        own, x = plain_vit.delta(model, i, 'ffn_sum'), seen['x1']
        x = torch.nn.functional.layer_norm(x, (32,), own.norm.weight, own.norm.bias)
        return z + plain_vit.bottleneck(own, x, torch.nn.functional.gelu)

    plain_vit.check(model, edit)


def test_count_with_the_norm_of_the_benchmark() -> None:
    got = counts('vit_b', AdaptFormer(hidden_dims=8, input_norm=True)).delta
    assert got == 175_200 == 156_768 + 12 * 2 * 768


def test_bad_input_is_named() -> None:
    with pytest.raises(PETLError, match="activation gelu or relu, got 'tanh'"):
        AdaptFormer(activation='tanh')
    with pytest.raises(PETLError, match="input pre_norm_stream or post_norm, got 'x'"):
        AdaptFormer(input='x')
