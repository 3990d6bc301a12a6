"""PATT and BAPAT: keys and values corrected by a bottleneck, and a parallel adapter."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, host, owners, softmax_attention
from mmpetl.core.counts import Owner
from mmpetl.methods.bapat import BAPAT, MODES, PATT


def small(cls: type = BAPAT, **args):
    extra = {'adapter_dims': 3} if cls is BAPAT else {}
    return cls(hidden_dims=5, **extra, **args)


@pytest.mark.parametrize(
    ('host', 'm', 'patt', 'both', 'weights_only'),
    [
        ('video_swin_b', 128, 4_647_424, 6_201_088, 6_173_952),
        ('vit_b', 32, 903_552, 2_093_184, 2_074_368),
        ('videomae_b', 32, 903_552, 2_093_184, 2_074_368),
    ],
)
def test_specified_counts(host, m, patt, both, weights_only):
    assert counts(host, PATT(m)).delta == patt
    assert counts(host, BAPAT(m)).delta == both
    biases = sum(m + 2 * d for d in widths(host))
    assert both - biases == weights_only


@pytest.mark.parametrize('mode', MODES)
def test_count_follows_its_formula(mode):
    n, m = len(mode), 7
    want = sum((n + 1) * d * m + m + n * d for d in widths('swin_b'))
    assert counts('swin_b', PATT(m, mode=mode)).delta == want


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('cls', [PATT, BAPAT])
def test_equals_the_corrected_projections_written_out(cls, mode):
    model = plain_vit.tuned(small(cls, scale=0.7, mode=mode))

    def edit(place: str, block: int, value: Tensor, seen: dict) -> Tensor:
        if place == 'qkv':
            d = plain_vit.delta(model, block, 'attn_qkv')
            hidden = torch.tanh(seen['qkv_in'] @ d.a.weight.T + d.a.bias)
            change = iter((hidden @ d.b.weight.T + d.b.bias).split(32, dim=-1))
            full = [next(change) if p in mode else torch.zeros(()) for p in 'qkv']
            parts = value.split(32, dim=-1)
            pairs = zip(parts, full, strict=True)
            return torch.cat([p + 0.7 * c for p, c in pairs], dim=-1)
        if place == 'f' and cls is BAPAT:
            d = plain_vit.delta(model, block, 'ffn')
            return value + 0.1 * plain_vit.bottleneck(d, seen['g'], nn.functional.relu)
        return value

    plain_vit.check(model, edit)


@pytest.mark.parametrize('args', [{'scale': 0}, {'zero_init': True}], ids=str)
def test_starts_as_the_frozen_model_where_asked(stem, args):
    x = tiny.images(stem, odd=True)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    for cls in (PATT, BAPAT):
        tuned = tiny.outputs(mmpetl.inject(tiny.base(stem), small(cls, **args)), x)
        # A bias that depends on queries rounds by where they lie in memory.
        for a, b in zip(tuned, plain, strict=True):
            assert (a - b).abs().max() <= 1e-6 * b.abs().max()
        other = tiny.outputs(mmpetl.inject(tiny.base(stem), small(cls)), x)
        assert not torch.equal(other[0], plain[0])


@pytest.mark.parametrize('mode', [*MODES, None])
def test_attention_weights_sum_to_one_in_every_mode(stem, mode, monkeypatch):
    method = tiny.Nothing() if mode is None else small(mode=mode)
    model = mmpetl.inject(tiny.base(stem, torch.double), method)
    model.eval()
    tiny.shake_(model, 0.5)
    seen = []

    def on_ones(q, k, v, *args):
        seen.append(softmax_attention(q, k, torch.ones_like(v), *args))
        return softmax_attention(q, k, v, *args)

    monkeypatch.setattr(host, 'softmax_attention', on_ones)
    tiny.outputs(model, tiny.images(stem, odd=True, dtype=torch.double))
    assert len(seen) == tiny.record(model).sites[0].num_blocks
    for o in seen:
        torch.testing.assert_close(o, torch.ones_like(o), rtol=1e-9, atol=1e-9)


def test_only_the_method_trains(stem):
    model = mmpetl.inject(tiny.base(stem), small())
    mine = {n for n, o in owners(model).items() if o is Owner.DELTA}
    head = {n for n, o in owners(model).items() if o is Owner.HEAD}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == mine | head
    assert {n.rpartition('.0.')[2] for n in mine} == {
        f'{layer}.{kind}'
        for layer in ('a', 'b', 'down', 'up')
        for kind in ('weight', 'bias')
    }


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match="PATT has mode kv, qv, qk, qkv, got 'vk'"):
        PATT(mode='vk')
    with pytest.raises(PETLError, match="BAPAT has mode kv, qv, qk, qkv, got 'k'"):
        BAPAT(mode='k')
    with pytest.raises(PETLError, match='hidden_dims of at least 1, got 0'):
        PATT(0)
    with pytest.raises(PETLError, match='adapter_dims of at least 1, got 0'):
        BAPAT(adapter_dims=0)


def test_serves_padded_maps_that_are_no_squares(stem):
    for odd in (False, True):
        x = tiny.images(stem, odd=odd)
        want = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
        model = mmpetl.inject(tiny.base(stem), small())
        model.eval()
        got = tiny.outputs(model, x)
        assert [y.shape for y in got] == [y.shape for y in want]
        assert all(torch.isfinite(y).all() for y in got)
