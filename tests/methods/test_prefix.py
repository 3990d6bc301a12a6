"""Prefix tuning: keys and values in front of those of every attention."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import (
    Context,
    PETLError,
    delta_state,
    host,
    load_delta_state,
    shift_mask,
    softmax_attention,
)
from mmpetl.core.inject import injection_of
from mmpetl.methods.prefix import Prefix, bake

P = 3
VARIANTS = ('direct', 'mlp')


def tuned(stem: str, parametrisation: str = 'direct') -> torch.nn.Module:
    method = Prefix(P, parametrisation, hidden_dims=5)
    model = mmpetl.inject(tiny.base(stem, torch.double), method)
    tiny.shake_(model, 0.5)
    model.eval()
    return model


def deltas(model: torch.nn.Module) -> list[torch.nn.Module]:
    core, state = injection_of(model)
    return [core.get_submodule(site.path)['0'] for site in state.slots['0'].sites]


@pytest.mark.parametrize('host', ['vit_b', 'swin_b', 'swin_l', 'video_swin_b'])
def test_count_of_direct_is_two_tokens_per_channel(host):
    assert counts(host, Prefix(16)).delta == 2 * 16 * sum(widths(host))


@pytest.mark.parametrize('host', ['vit_b', 'swin_b', 'video_swin_b'])
def test_count_of_mlp_follows_its_formula(host):
    p, m = 16, 128
    want = sum(p * d + d * m + m + 2 * d * m + 2 * d for d in widths(host))
    assert counts(host, Prefix(p, 'mlp', m)).delta == want


def test_published_counts():
    assert counts('vit_b', Prefix(10)).delta == 184_320
    assert counts('vit_b', Prefix(10)).delta + FGVC_HEAD == 364_727
    assert counts('swin_b', Prefix(16)).delta == 385_024
    assert counts('video_swin_b', Prefix(16, 'mlp', 128)).delta == 4_839_936


@pytest.mark.parametrize('variant', VARIANTS)
def test_is_a_gated_sum_of_two_attentions(variant):
    """softmax over [Pk; k] mixes attention to prefixes and to tokens by their mass."""
    model = tuned('timm_vit', variant)
    block, x = model.blocks[1], torch.randn(2, 17, 32, dtype=torch.double)
    delta = block.petl.attn_core['0']
    pk, pv = (delta.Pk, delta.Pv) if variant == 'direct' else delta.keys_and_values()
    pk, pv = (t.view(P, 4, 8).transpose(0, 1) for t in (pk, pv))
    q, k, v = block.attn.qkv(x).view(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    to_prefix = torch.exp(q @ pk.transpose(-1, -2) / 8**0.5)
    to_tokens = torch.exp(q @ k.transpose(-1, -2) / 8**0.5)
    a, b = to_prefix.sum(-1, keepdim=True), to_tokens.sum(-1, keepdim=True)
    mixed = b / (a + b) * (to_tokens / b @ v) + a / (a + b) * (to_prefix / a @ pv)
    want = block.attn.proj(mixed.transpose(1, 2).flatten(2))
    got = block.attention(x, Context((4, 4), 1))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_windows_have_one_softmax_without_bias_or_mask_on_prefixes(monkeypatch):
    model = tuned('mmpretrain_swin')
    block = model.stages[0].blocks[1]
    ctx, x = Context((8, 8)), torch.randn(2, 64, 16, dtype=torch.double)
    seen = []

    def written_out(q, k, v, bias, mask, dropout, scale):
        assert scale == q.shape[-1] ** -0.5
        rows = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        added = bias + mask.repeat(2, 1, 1)[:, None].double()
        rows = torch.cat((rows[..., :P], rows[..., P:] + added), dim=-1)
        seen.append(rows.shape)
        return rows.softmax(-1) @ v

    got = block.attention(x, ctx)
    assert shift_mask((8, 8), (4, 4), (2, 2), x.device) is not None
    monkeypatch.setattr(host, 'softmax_attention', written_out)
    torch.testing.assert_close(got, block.attention(x, ctx), rtol=1e-7, atol=1e-7)
    assert seen == [(8, 2, 16, P + 16)]


@pytest.mark.parametrize('variant', VARIANTS)
def test_prefixes_without_mass_leave_the_frozen_output(stem, variant, monkeypatch):
    x = tiny.images(stem, odd=True, dtype=torch.double)
    frozen = tiny.outputs(
        mmpetl.inject(tiny.base(stem, torch.double), tiny.Nothing()), x
    )
    model = tuned(stem, variant)
    assert not torch.equal(tiny.outputs(model, x)[0], frozen[0])

    def blind(q, k, v, *args):
        return softmax_attention(q, k[:, :, P:], v[:, :, P:], *args)

    monkeypatch.setattr(host, 'softmax_attention', blind)
    for got, want in zip(tiny.outputs(model, x), frozen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_attention_weights_sum_to_one(stem, monkeypatch):
    model, seen = tuned(stem), []

    def on_ones(q, k, v, *args):
        seen.append(softmax_attention(q, k, torch.ones_like(v), *args))
        # As many keys as queries, or one for so many of them.
        assert q.shape[2] % (k.shape[2] - P) == 0
        return softmax_attention(q, k, v, *args)

    monkeypatch.setattr(host, 'softmax_attention', on_ones)
    tiny.outputs(model, tiny.images(stem, dtype=torch.double))
    assert len(seen) == len(deltas(model))
    for o in seen:
        torch.testing.assert_close(o, torch.ones_like(o), rtol=1e-9, atol=1e-9)


def test_order_of_the_prefixes_does_not_matter(stem):
    x, model = tiny.images(stem, dtype=torch.double), tuned(stem)
    before = tiny.outputs(model, x)
    with torch.no_grad():
        for delta in deltas(model):
            delta.Pk.copy_(delta.Pk.flip(0))
            delta.Pv.copy_(delta.Pv.flip(0))
    for got, want in zip(tiny.outputs(model, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_an_image_does_not_see_the_rest_of_its_batch(stem):
    x, model = tiny.images(stem, 3, odd=True, dtype=torch.double), tuned(stem)
    together = tiny.outputs(model, x)
    for i in range(3):
        alone = tiny.outputs(model, x[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got[0], want[i], rtol=1e-9, atol=1e-9)


def test_baked_mlp_is_direct_and_computes_the_same(stem):
    x, model = tiny.images(stem, dtype=torch.double), tuned(stem, 'mlp')
    before = tiny.outputs(model, x)
    bake(model)
    for got, want in zip(tiny.outputs(model, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    method = injection_of(model)[1].slots['0'].method
    assert method.parametrisation == 'direct'
    fresh = mmpetl.inject(tiny.base(stem, torch.double), method)
    load_delta_state(fresh, delta_state(model))
    fresh.eval()
    for got, want in zip(tiny.outputs(fresh, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_only_an_mlp_can_be_baked():
    with pytest.raises(PETLError, match="slot '0' holds Prefix.*only a Prefix with"):
        bake(tuned('mmpretrain_vit'))


def test_unknown_parametrisation_is_refused():
    with pytest.raises(PETLError, match="direct and mlp, got 'lstm'"):
        Prefix(parametrisation='lstm')


@torch.no_grad()
def test_without_a_single_prefix_the_frozen_model_is_left(stem):
    """P = 0 is refused as an argument; here the algebra meets it."""
    x = tiny.images(stem, odd=True)
    frozen = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    model = mmpetl.inject(tiny.base(stem), Prefix(P))
    model.eval()
    assert not torch.equal(tiny.outputs(model, x)[0], frozen[0])
    for delta in deltas(model):
        delta.Pk = torch.nn.Parameter(delta.Pk[:0])
        delta.Pv = torch.nn.Parameter(delta.Pv[:0])
    for got, want in zip(tiny.outputs(model, x), frozen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_serves_padded_maps_that_are_no_squares(stem):
    for odd in (False, True):
        x = tiny.images(stem, odd=odd)
        want = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
        model = mmpetl.inject(tiny.base(stem), Prefix(P))
        model.eval()
        got = tiny.outputs(model, x)
        assert [y.shape for y in got] == [y.shape for y in want]
        assert all(torch.isfinite(y).all() for y in got)
