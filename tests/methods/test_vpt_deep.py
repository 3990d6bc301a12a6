"""VPT-deep: fresh prompts in front of every block."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import (
    Context,
    PETLError,
    Prompts,
    Site,
    host,
    softmax_attention,
)
from mmpetl.methods.vpt_deep import VPTDeep
from mmpetl.methods.vpt_shallow import VPTShallow

P = 3
CLASS_TOKEN = ('mmpretrain_vit', 'timm_vit', 'mmpretrain_timm')
SWINS = ('mmpretrain_swin', 'mmpretrain_swin_cls', 'mmaction_swin3d')


def tuned(stem: str, tokens: int = P, **args) -> torch.nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), VPTDeep(tokens, **args))
    tiny.shake_(model, 1.0)
    model.eval()
    return model


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'sublayers')]


def prompts(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.endswith('.E')]


@pytest.mark.parametrize(
    ('host', 'total'), [('vit_b', 9_216), ('swin_b', 12_032), ('swin_l_dense', 18_048)]
)
def test_count_is_tokens_times_the_sum_of_widths(host, total):
    assert sum(widths(host)) == total
    assert counts(host, VPTDeep(7)).delta == 7 * total


def test_published_counts_on_vit_b():
    assert counts('vit_b', VPTDeep(10)).delta == 92_160
    assert counts('vit_b', VPTDeep(50)).delta == 460_800


def test_every_stage_starts_within_the_bound_of_the_first():
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), VPTDeep(500))
    bound = (6 / (3 * 4 * 4 + 16)) ** 0.5
    for e in prompts(model):
        assert 0.99 * bound < e.abs().max() <= bound


def test_equals_a_plain_vit_that_replaces_the_prompts():
    plain, model = tiny.base('timm_vit', torch.double), tuned('timm_vit')
    x = tiny.images('timm_vit', dtype=torch.double)
    h = plain._pos_embed(plain.patch_embed(x))
    for block, e in zip(plain.blocks, prompts(model), strict=True):
        h = block(torch.cat((h[:, :1], e.expand(2, -1, -1), h[:, 1:]), dim=1))
        h = torch.cat((h[:, :1], h[:, 1 + P :]), dim=1)
    want = plain.head(plain.norm(h)[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('host', ['mmpretrain_vit', 'mmpretrain_swin', 'mmaction_vit'])
def test_feeding_on_the_prompt_outputs_is_vpt_shallow(host):
    x, model = tiny.images(host, dtype=torch.double), tuned(host)
    shallow = mmpetl.inject(tiny.base(host, torch.double), VPTShallow(P))
    for block in blocks(model)[1:]:
        block.petl.tokens.off.add('0')
    with torch.no_grad():
        prompts(shallow)[0].copy_(prompts(model)[0])
    shallow.eval()
    got, want = tiny.outputs(model, x), tiny.outputs(shallow, x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_block_does_not_know_later_prompts(stem):
    x, model = tiny.images(stem, dtype=torch.double), tuned(stem)
    seen: list[torch.Tensor] = []
    blocks(model)[0].register_forward_hook(lambda m, i, y: seen.append(y))
    first = tiny.outputs(model, x)
    with torch.no_grad():
        for e in prompts(model)[1:]:
            e.mul_(-2)
    second = tiny.outputs(model, x)
    assert torch.equal(*seen)
    assert not torch.equal(first[-1], second[-1])


def test_prompt_outputs_do_not_reach_the_next_block(stem):
    x, model = tiny.images(stem, dtype=torch.double), tuned(stem)
    before = tiny.outputs(model, x)
    own = int(stem in CLASS_TOKEN)

    def spoil(module, inputs, y):
        y = y.clone()
        y[:, own : own + P] += 5
        return y

    for block in blocks(model)[:-1]:
        block.register_forward_hook(spoil)
    for got, want in zip(tiny.outputs(model, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('host', 'pools'), list(zip(SWINS, (False, True, True), strict=True))
)
def test_only_a_pooled_output_sees_the_last_prompt_outputs(host, pools):
    x, model = tiny.images(host, dtype=torch.double), tuned(host)
    before = tiny.outputs(model, x)

    def spoil(module, inputs, y):
        return torch.cat((torch.randn_like(y[:, :P]), y[:, P:]), dim=1)

    blocks(model)[-1].register_forward_hook(spoil)
    after = tiny.outputs(model, x)
    assert torch.equal(before[-1], after[-1]) is not pools


def test_prompts_without_attention_leave_the_frozen_output(stem, monkeypatch):
    x = tiny.images(stem, odd=True, dtype=torch.double)
    frozen = tiny.outputs(
        mmpetl.inject(tiny.base(stem, torch.double), tiny.Nothing()), x
    )
    model = tuned(stem, pool_prompts=False)
    own = int(stem in CLASS_TOKEN)

    def blind(q, k, v, *args):
        k, v = (torch.cat((t[:, :, :own], t[:, :, own + P :]), dim=2) for t in (k, v))
        return softmax_attention(q, k, v, *args)

    monkeypatch.setattr(host, 'softmax_attention', blind)
    for got, want in zip(tiny.outputs(model, x), frozen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_order_of_the_prompts_does_not_matter(stem):
    x, model = tiny.images(stem, dtype=torch.double), tuned(stem)
    before = tiny.outputs(model, x)
    with torch.no_grad():
        for e in prompts(model):
            e.copy_(e.roll(1, 0))
    for got, want in zip(tiny.outputs(model, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_an_image_does_not_see_the_rest_of_its_batch(stem):
    x, model = tiny.images(stem, 4, odd=True, dtype=torch.double), tuned(stem)
    together = tiny.outputs(model, x)
    for i in range(4):
        alone = tiny.outputs(model, x[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got[0], want[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('host', ['mmpretrain_vit', 'mmpretrain_swin_cls'])
def test_two_slots_are_one_with_all_their_prompts(host):
    x = tiny.images(host, dtype=torch.double)
    one = tuned(host, 5)
    two = mmpetl.inject(tiny.base(host, torch.double), VPTDeep(2))
    mmpetl.inject(two, VPTDeep(3))
    with torch.no_grad():
        for a, b in zip(blocks(one), blocks(two), strict=True):
            e = a.petl.tokens['0'].E
            b.petl.tokens['0'].E.copy_(e[:2])
            b.petl.tokens['1'].E.copy_(e[2:])
    two.eval()
    for got, want in zip(tiny.outputs(two, x), tiny.outputs(one, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_beside_vpt_shallow_each_keeps_its_own():
    x = tiny.images('timm_vit', dtype=torch.double)
    plain = tiny.base('timm_vit', torch.double)
    both = mmpetl.inject(tiny.base('timm_vit', torch.double), VPTShallow(4))
    mmpetl.inject(both, VPTDeep(P))
    tiny.shake_(both, 1.0)
    both.eval()
    lasting = both.blocks[0].petl.tokens['0'].E
    h = plain._pos_embed(plain.patch_embed(x))
    h = torch.cat((h[:, :1], lasting.expand(2, -1, -1), h[:, 1:]), dim=1)
    for i, block in enumerate(plain.blocks):
        fresh = both.blocks[i].petl.tokens['1'].E.expand(2, -1, -1)
        h = block(torch.cat((h[:, :5], fresh, h[:, 5:]), dim=1))
        h = torch.cat((h[:, :5], h[:, 5 + P :]), dim=1)
    want = plain.head(plain.norm(h)[:, 0])
    torch.testing.assert_close(both(x), want, rtol=1e-9, atol=1e-9)
    mmpetl.disable(both, '0')
    alone = tuned('timm_vit')
    with torch.no_grad():
        for a, b in zip(blocks(alone), blocks(both), strict=True):
            a.petl.tokens['0'].E.copy_(b.petl.tokens['1'].E)
    torch.testing.assert_close(both(x), alone(x), rtol=1e-12, atol=1e-12)


def test_dropout_is_drawn_per_sample():
    delta = VPTDeep(50, drop_rate=0.5).build(
        Site('tokens', 'b', 8, 8, 0, patch_dims=4, embed_dims=8)
    )
    y = delta.train().before(torch.zeros(2, 4, 8), Context((2, 2)))
    assert y.shape == (2, 54, 8)
    assert not torch.equal(y[0], y[1])


def test_no_prompts_are_refused():
    with pytest.raises(PETLError, match='num_tokens of at least 1, got 0'):
        VPTDeep(0)


@torch.no_grad()
def test_without_a_single_prompt_the_frozen_model_is_left(stem):
    """P = 0 is refused as an argument; here the algebra meets it."""
    x = tiny.images(stem, odd=True)
    frozen = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    model = mmpetl.inject(tiny.base(stem), VPTDeep(P))
    model.eval()
    assert not torch.equal(tiny.outputs(model, x)[0], frozen[0])
    for module in model.modules():
        if isinstance(module, Prompts):
            module.E = torch.nn.Parameter(module.E[:0])
    for got, want in zip(tiny.outputs(model, x), frozen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_serves_padded_maps_that_are_no_squares(stem):
    for odd in (False, True):
        x = tiny.images(stem, odd=odd)
        want = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
        model = mmpetl.inject(tiny.base(stem), VPTDeep(P))
        model.eval()
        got = tiny.outputs(model, x)
        assert [y.shape for y in got] == [y.shape for y in want]
        assert all(torch.isfinite(y).all() for y in got)


@pytest.mark.parametrize('host', ['timm_vit', 'mmpretrain_swin', 'mmaction_swin3d'])
def test_blocks_of_one_width_share_the_projection_of_their_prompts(host):
    x, plain = tiny.images(host, dtype=torch.double), tuned(host)
    model = tuned(host, project_dims=5)
    maps = {k: m for n, m in model.named_modules() for k, m in _maps(n, m)}
    assert set(maps) == ({'32'} if host == 'timm_vit' else {'16', '32'})
    with torch.no_grad():
        for mine, theirs in zip(prompts(plain), prompts(model), strict=True):
            assert theirs.shape == (P, 5)
            mine.copy_(maps[str(mine.shape[1])](theirs))
    for got, want in zip(tiny.outputs(model, x), tiny.outputs(plain, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def _maps(name: str, module: torch.nn.Module) -> list:
    return list(module.items()) if name.endswith('petl.shared.0') else []


def test_projected_prompts_count():
    method = VPTDeep(10, project_dims=64)
    assert counts('vit_b', method).delta == 12 * 10 * 64 + 64 * 768 + 768
    widths_b = (128, 256, 512, 1024)
    want = 24 * 10 * 64 + sum(64 * d + d for d in widths_b)
    assert counts('swin_b', method).delta == want
