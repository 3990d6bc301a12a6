"""AIM: frozen attention along time, and adapters behind, beside and in front of it."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import swin, vit_b
from torch import Tensor, nn
from torch.nn.functional import gelu

import mmpetl
from mmpetl.apis.counting import without_memory
from mmpetl.core import (
    Context,
    Method,
    PETLError,
    build_method,
    count_trainable,
    injection_of,
    watching,
)
from mmpetl.methods.aim import AIM
from mmpetl.models import FrameBackbone

T = 3
SWIN_B = {128: 2, 256: 2, 512: 18, 1024: 2}
"""Blocks of a Swin-B, by width."""


def clips(batch: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, T, 32, 32, generator=g, dtype=torch.float64)


def tuned(*methods: Method) -> nn.Module:
    """The tiny timm ViT over frames, in float64, every delta moved."""
    model = FrameBackbone(tiny.base('timm_vit', torch.float64), T)
    for method in methods:
        mmpetl.inject(model, method)
    tiny.shake_(model.eval(), 0.3)
    return model


def along_time(norm: nn.Module, attn: nn.Module, delta: nn.Module, x: Tensor) -> Tensor:
    """What the temporal part adds, of the tokens (B, T, N, C), written out.

    Args:
        norm: In front of attention.
        attn: What holds ``num_heads``, ``qkv`` and ``proj``.
        delta: The adapters.
        x: The stream.
    """
    h = norm(x)
    if delta.front is not None:
        h = h + plain_vit.bottleneck(delta.front, h, gelu)
    q, k, v = attn.qkv(h).unflatten(-1, (3, attn.num_heads, -1)).unbind(3)
    scores = torch.einsum('btnhd,bsnhd->bnhts', q, k) / q.shape[-1] ** 0.5
    o = torch.einsum('bnhts,bsnhd->btnhd', scores.softmax(-1), v).flatten(-2)
    return plain_vit.bottleneck(delta, attn.proj(o), gelu)


@pytest.mark.parametrize('number', [1, 2])
def test_equals_the_formula_on_a_plain_vit(number):
    model = tuned(AIM(num_temporal=number, scale=0.7))
    plain, x = tiny.base('timm_vit', torch.float64), clips()

    def edit(place, block, value, seen):
        if place == 'x0':
            frames = value.unflatten(0, (-1, T))
            if block == 0:
                frames = frames + model.model.petl.embed['0'].E[:, None]
            delta = plain_vit.delta(model.model, block, 'block')
            own = plain.blocks[block]
            frames = frames + along_time(own.norm1, own.attn, delta, frames)
            return frames.flatten(0, 1)
        if place == 'm':
            delta = plain_vit.delta(model.model, block, 'attn')
            return value + plain_vit.bottleneck(delta, value, gelu)
        if place == 'f':
            delta = plain_vit.delta(model.model, block, 'ffn')
            return value + 0.7 * plain_vit.bottleneck(delta, seen['g'], gelu)
        return value

    with torch.no_grad():
        frames = x.movedim(2, 1).flatten(0, 1)
        want = plain_vit.forward(plain, frames, edit).unflatten(0, (-1, T)).mean(1)
        torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)
        other = tiny.base('timm_vit', torch.float64)(frames)
        assert (want - other.unflatten(0, (-1, T)).mean(1)).abs().max() > 1e-3


@pytest.mark.parametrize('number', [1, 2])
@torch.no_grad()
def test_equals_the_formula_on_a_swin(number):
    """Space has windows, shifted in every second block, and time has none."""
    plain = tiny.base('mmpretrain_swin', torch.float64)
    model = FrameBackbone(tiny.base('mmpretrain_swin', torch.float64), T)
    mmpetl.inject(model, AIM(num_temporal=number, scale=0.7))
    tiny.shake_(model.eval(), 0.3)
    frames = clips().movedim(2, 1).flatten(0, 1)

    def run(change: bool) -> Tensor:
        x, grid = plain.patch_embed(frames)
        if change:
            x = x.unflatten(0, (-1, T)) + model.model.petl.embed['0'].E[:, None]
            x = x.flatten(0, 1)
        for stage, tuned_stage in zip(plain.stages, model.model.stages, strict=True):
            for block, other in zip(stage.blocks, tuned_stage.blocks, strict=True):
                t, s, m = (
                    other.petl.get_submodule(f'{key}.0')
                    for key in ('block', 'attn', 'ffn')
                )
                if change:
                    msa, along = block.attn.w_msa, x.unflatten(0, (-1, T))
                    along = along + along_time(block.norm1, msa, t, along)
                    x = along.flatten(0, 1)
                a = block.attn(block.norm1(x), grid)
                x = x + a + change * plain_vit.bottleneck(s, a, gelu)
                n = block.norm2(x)
                beside = plain_vit.bottleneck(m, n, gelu)
                x = block.ffn(n, identity=x) + change * 0.7 * beside
            if stage.downsample is not None:
                x, grid = stage.downsample(x, grid)
        x = plain.norm1(x).unflatten(0, (-1, T)).mean(1)
        return x.transpose(1, 2).unflatten(2, grid)

    assert any(site.shift == (2, 2) for site in tiny.record(model).sites)
    want = run(True)
    got = tiny.outputs(model, clips())[-1]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert (want - run(False)).abs().max() > 1e-3


def test_counts_on_swin():
    with without_memory():
        model = FrameBackbone(swin('base', (3,)), 8)
        mmpetl.inject(model, AIM())
    each = sum(n * (d * d // 2 + d // 4 + d) for d, n in SWIN_B.items())
    assert count_trainable(model).delta == 3 * each + 8 * 128 == 10_515_520


def test_published_counts():
    for args, want in (({}, 10_675_968), ({'num_temporal': 2}, 14_226_432)):
        with without_memory():
            model = mmpetl.inject(FrameBackbone(vit_b(), 32), AIM(**args))
        assert count_trainable(model).delta == want


def test_the_order_of_frames_matters_and_clips_do_not_mix():
    model, x = tuned(AIM()), clips()
    with torch.no_grad():
        y = model(x)
        assert not torch.allclose(model(x.flip(2)), y)
        torch.testing.assert_close(model(x[1:]), y[1:], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_attention_along_time_has_what_other_methods_made_of_it():
    """So that folding them into the base changes nothing."""
    both = tuned(build_method('LoRA'), AIM())
    alone = tuned(build_method('LoRA'))
    alone.load_state_dict(both.state_dict(), strict=False)
    folded = mmpetl.inject(mmpetl.fold(alone), AIM()).eval()
    for site in tiny.record(folded).slots['0'].sites:
        learnt = tiny.core(both).get_submodule(f'{site.path}.1').state_dict()
        tiny.core(folded).get_submodule(f'{site.path}.0').load_state_dict(learnt)
    x = clips()
    torch.testing.assert_close(folded(x), both(x), rtol=1e-10, atol=1e-10)


def test_all_of_two_adapters_in_a_row_moves_in_the_third_step():
    model = FrameBackbone(tiny.base('timm_vit', torch.float64), T)
    mmpetl.inject(model, AIM(num_temporal=2, drop_path=0.0))
    model = tiny.Tuned(model, clips())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tiny.train(model, clips(), steps=3)
    after = dict(model.named_parameters())
    still = [n for n in before if torch.equal(before[n], after[n])]
    assert still
    assert not any('.petl.' in name for name in still)


@torch.no_grad()
def test_watchers_see_attention_of_frames_and_not_along_time():
    model, seen = tuned(AIM()), []
    module, record = injection_of(model)
    sites = [site for site in record.sites if site.kind == 'attn.core']
    look = {site: lambda x, y, ctx: seen.append(y.shape) for site in sites}
    with watching(module, look):
        model(clips())
    assert seen == [(2 * T, 4, 17, 8)] * 2


def test_stochastic_depth_grows_and_drops_whole_clips():
    model = tuned(AIM(drop_path=0.5)).train()
    rates = [
        plain_vit.delta(model.model, i, key).drop_path_rate
        for key in ('block', 'attn', 'ffn')
        for i in range(2)
    ]
    assert rates == [0.0, 0.5, 0.0, 0.0, 0.0, 0.5]
    delta, x = plain_vit.delta(model.model, 1, 'ffn'), torch.ones(8 * T, 5, 32)
    torch.manual_seed(0)
    kept = delta.dropped(x, Context((2, 2), 1, T)).unflatten(0, (8, T))
    assert {float(clip.mean()) for clip in kept} == {0.0, 2.0}
    assert all(clip.unique().numel() == 1 for clip in kept)
    assert delta.eval().dropped(x, Context((2, 2), 1, T)) is x


@pytest.mark.parametrize(
    ('stem_', 'said'),
    [
        ('timm_vit', 'no frames of clips'),
        ('mmpretrain_swin', 'no frames of clips'),
        ('mmaction_vit', 'time is an axis of the grid'),
        ('mmaction_swin3d', 'time is an axis of the grid'),
    ],
)
def test_refusals_are_one_line(stem_, said):
    with pytest.raises(PETLError, match=said) as error:
        mmpetl.inject(tiny.base(stem_), AIM())
    assert '\n' not in str(error.value)


def test_a_reduction_beyond_the_width_is_refused():
    with pytest.raises(PETLError, match='at most the width, 32'):
        mmpetl.inject(tiny.base('mmpretrain_vit_frames'), AIM(reduction=33))
