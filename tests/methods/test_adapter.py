from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.adapter import Adapter


@pytest.mark.parametrize(
    ('size', 'style', 'hidden', 'number'),
    [
        ('vit_b', 'pfeiffer', 8, 156_768),  # published 0.16M, VTAB-1k
        ('vit_b', 'pfeiffer', 64, 1_189_632),
        ('vit_b', 'houlsby', 8, 313_536),
        ('timm_vit_b', 'pfeiffer', 8, 156_768),
        ('swin_b', 'houlsby', 64, 3_107_328),  # published 3.11M
        ('swin_l', 'houlsby', 64, 4_659_456),  # published 4.66M
        ('videomae_b', 'pfeiffer', 8, 156_768),
        ('video_swin_b', 'houlsby', 64, 3_107_328),
    ],
)
def test_count(size: str, style: str, hidden: int, number: int) -> None:
    got = counts(size, Adapter(style=style, hidden_dims=hidden)).delta
    each = {'pfeiffer': 1, 'houlsby': 2}[style]
    assert got == number
    assert got == each * sum(2 * d * hidden + hidden + d for d in widths(size))


def test_published_fgvc_count_holds_the_head() -> None:
    got = counts('vit_b', Adapter(hidden_dims=12)).delta
    assert (got, got + FGVC_HEAD) == (230_544, 410_951)  # published 0.41M


@pytest.mark.parametrize('style', ['pfeiffer', 'houlsby'])
@pytest.mark.parametrize('activation', ['gelu', 'relu'])
def test_equals_the_formula(style: str, activation: str) -> None:
    model = plain_vit.tuned(
        Adapter(style=style, hidden_dims=4, scale=0.5, activation=activation)
    )
    act = {'gelu': F.gelu, 'relu': torch.relu}[activation]
    at = {'f': 'ffn', 'm': 'attn'} if style == 'houlsby' else {'f': 'ffn'}

    def edit(place, i, z, seen):
        if place not in at:
            return z
        own = plain_vit.delta(model, i, at[place])
        return z + 0.5 * plain_vit.bottleneck(own, z, act)

    plain_vit.check(model, edit)


def test_adapter_stands_in_front_of_stochastic_depth() -> None:
    model = tiny.mmpretrain_swin(drop_path_rate=1.0 - 1e-6)
    mmpetl.inject(model, Adapter(hidden_dims=4), frozen_drop_path=True)
    own = model.stages[-1].blocks[-1].petl.ffn['0']
    model.train()
    x = tiny.images('mmpretrain_swin_cls')
    with torch.no_grad():
        torch.manual_seed(0)
        before = model(x)[0]
        # Not a constant over channels: the final norm would take it out again.
        own.up.bias.copy_(torch.arange(32.0))
        torch.manual_seed(0)
        assert torch.equal(model(x)[0], before)
        model.eval()
        kept = model(x)[0]
        own.up.bias.zero_()
        assert not torch.equal(model(x)[0], kept)


def test_all_four_tensors_come_alive_within_two_steps() -> None:
    backbone = mmpetl.inject(tiny.base('mmpretrain_vit'), Adapter(hidden_dims=4))
    x = tiny.images('mmpretrain_vit')
    model = tiny.Tuned(backbone, x)
    before = {n: p.clone() for n, p in model.named_parameters()}
    tiny.train(model, x, steps=2)
    dead = [
        n
        for n, p in model.named_parameters()
        if '.petl.' in n and torch.equal(p, before[n])
    ]
    assert len([n for n in before if '.petl.' in n]) == 4 * 2
    assert dead == []


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'style': 'parallel'}, "style pfeiffer or houlsby, got 'parallel'"),
        ({'activation': 'tanh'}, "activation gelu or relu, got 'tanh'"),
        ({'hidden_dims': 0}, 'hidden_dims of at least 1, got 0'),
        ({'drop_rate': 1.5}, 'drop_rate of at least 0 and at most 1, got 1.5'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        Adapter(**args)
