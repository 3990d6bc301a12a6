"""VPT-shallow: prompts that travel through all blocks."""

from __future__ import annotations

import pytest
import tiny
import tiny_builds
import torch
from full_size import counts

import mmpetl
from mmpetl.core import Context, PETLError, Site, host, softmax_attention
from mmpetl.core.bricks import PoolPrompts, Prompts
from mmpetl.core.inject import injection_of
from mmpetl.methods.vpt_shallow import VPTShallow

P = 3
CLASS_TOKEN = ('mmpretrain_vit', 'timm_vit', 'mmpretrain_timm')


def tuned(stem: str, **args) -> torch.nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), VPTShallow(P, **args))
    tiny.shake_(model, 1.0)
    model.eval()
    return model


def prompts(model: torch.nn.Module) -> torch.nn.Parameter:
    (found,) = [p for n, p in model.named_parameters() if n.endswith('.E')]
    return found


def plugged(model: torch.nn.Module) -> list[str]:
    return [site.kind for site in injection_of(model)[1].slots['0'].sites]


@pytest.mark.parametrize(
    ('host', 'width'), [('vit_b', 768), ('swin_b', 128), ('swin_l_dense', 192)]
)
def test_count_is_tokens_times_width_of_the_first_stage(host, width):
    assert counts(host, VPTShallow(100)).delta == 100 * width


def test_published_count_on_vit_b():
    assert counts('vit_b', VPTShallow()).delta == 76_800


@pytest.mark.parametrize(
    ('facts', 'bound'),
    [((3 * 16 * 16, 768), 0.0625), ((3 * 4 * 4, 128), (6 / 176) ** 0.5)],
)
def test_prompts_start_uniform_within_the_published_bound(facts, bound):
    patch, dims = facts
    site = Site('tokens', 'b', dims, dims, 0, patch_dims=patch, embed_dims=dims)
    start = VPTShallow(1000).build(site).E.detach()
    assert start.abs().max() <= bound
    assert start.abs().max() > 0.999 * bound
    assert start.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_equals_a_plain_vit_with_the_prompts_in_its_sequence():
    plain, model = tiny.base('timm_vit', torch.double), tuned('timm_vit')
    x = tiny.images('timm_vit', dtype=torch.double)
    h = plain._pos_embed(plain.patch_embed(x))
    h = torch.cat((h[:, :1], prompts(model).expand(2, -1, -1), h[:, 1:]), dim=1)
    want = plain.head(plain.norm(plain.blocks(h))[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('pool', [None, True])
def test_videomae_pools_the_tubes_or_also_the_prompts(pool):
    stem = 'mmaction_vit'
    plain, model = tiny.base(stem, torch.double), tuned(stem, pool_prompts=pool)
    x = tiny.images(stem, dtype=torch.double)
    h = plain.patch_embed(x)[0] + plain.pos_embed
    h = torch.cat((prompts(model).expand(2, -1, -1), h), dim=1)
    for block in plain.blocks:
        h = block(h)
    want = plain.fc_norm((h if pool else h[:, P:]).mean(1))
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_prompts_without_attention_leave_the_frozen_output(stem, monkeypatch):
    """Logits of minus infinity: the keys and values of the prompts are left out."""
    x = tiny.images(stem, odd=True, dtype=torch.double)
    frozen = tiny.outputs(
        mmpetl.inject(tiny.base(stem, torch.double), tiny.Nothing()), x
    )
    model = tuned(stem, pool_prompts=False)
    assert not torch.equal(tiny.outputs(model, x)[0], frozen[0])
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
        prompts(model).copy_(prompts(model).flip(0))
    for got, want in zip(tiny.outputs(model, x), before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_an_image_does_not_see_the_rest_of_its_batch(stem):
    x, model = tiny.images(stem, 4, odd=True, dtype=torch.double), tuned(stem)
    together = tiny.outputs(model, x)
    for i in range(4):
        alone = tiny.outputs(model, x[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got[0], want[i], rtol=1e-9, atol=1e-9)


def test_windows_share_prompts_and_average_them_per_image():
    """One windowed attention, written out with loops over images and windows."""
    model = tuned('mmpretrain_swin_cls')
    block = model.stages[0].blocks[0]
    msa, size, d = block.attn.w_msa, 4, 16
    ctx = Context((8, 12), P)
    h = torch.randn(2, P + 96, d, dtype=torch.double)
    table = msa.relative_position_bias_table[msa.relative_position_index.flatten()]
    bias = torch.zeros(2, P + 16, P + 16, dtype=torch.double)
    bias[:, P:, P:] = table.view(16, 16, 2).permute(2, 0, 1)
    want = torch.zeros_like(h)
    for i in range(2):
        grid = h[i, P:].view(8, 12, d)
        out, made = torch.zeros_like(grid), []
        for r in range(0, 8, size):
            for c in range(0, 12, size):
                window = grid[r : r + size, c : c + size].reshape(-1, d)
                w = torch.cat((h[i, :P], window))
                q, k, v = msa.qkv(w).view(-1, 3, 2, d // 2).permute(1, 2, 0, 3)
                a = (q @ k.transpose(1, 2) / (d // 2) ** 0.5 + bias).softmax(-1)
                o = msa.proj((a @ v).transpose(0, 1).flatten(1))
                made.append(o[:P])
                out[r : r + size, c : c + size] = o[P:].view(size, size, d)
        want[i] = torch.cat((torch.stack(made).mean(0), out.reshape(-1, d)))
    torch.testing.assert_close(block.attention(h, ctx), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmaction_swin3d'])
def test_merging_sees_a_prompt_as_four_equal_neighbours(host):
    model = tuned(host)
    stage = (model.stages if host == 'mmpretrain_swin' else model.layers)[0]
    e = torch.randn(1, 1, 16, dtype=torch.double)
    grid = (2, 2) if host == 'mmpretrain_swin' else (1, 2, 2)
    gathered, _ = model.gather(stage.downsample, e.expand(1, 4, 16), grid)
    torch.testing.assert_close(model.repeat_four(e), gathered, rtol=0, atol=0)


def test_prompts_are_pooled_where_published_and_nowhere_else():
    where = {stem: plugged(tuned(stem)) for stem in tiny_builds.TINY}
    pooled = {stem for stem, kinds in where.items() if 'out' in kinds}
    swins = {'mmpretrain_swin_cls', 'mmpretrain_swin_frames', 'mmaction_swin3d'}
    assert pooled == swins
    assert 'out' not in plugged(tuned('mmpretrain_swin_cls', pool_prompts=False))


def test_pooled_mean_is_that_over_grid_and_prompts():
    ctx = Context((2, 3), 1 + P)
    ctx.num_extra = P
    x = torch.randn(2, 1 + P + 6, 8, dtype=torch.double)
    y = torch.cat((x[:, :1], x[:, 1 + P :]), dim=1)
    got = PoolPrompts().after(x, y, ctx)
    torch.testing.assert_close(got[:, 1:].mean(1), x[:, 1:].mean(1))
    assert torch.equal(got[:, 0], x[:, 0])


def test_pooling_a_class_token_is_refused():
    with pytest.raises(PETLError, match='pool_prompts=True.*does not average'):
        tuned('mmpretrain_vit', pool_prompts=True)


def test_no_prompts_are_refused():
    with pytest.raises(PETLError, match='num_tokens of at least 1, got 0'):
        VPTShallow(0)


@torch.no_grad()
def test_without_a_single_prompt_the_frozen_model_is_left(stem):
    """P = 0 is refused as an argument; here the algebra meets it."""
    x = tiny.images(stem, odd=True)
    frozen = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    model = mmpetl.inject(tiny.base(stem), VPTShallow(P))
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
        model = mmpetl.inject(tiny.base(stem), VPTShallow(P))
        model.eval()
        got = tiny.outputs(model, x)
        assert [y.shape for y in got] == [y.shape for y in want]
        assert all(torch.isfinite(y).all() for y in got)


def test_projected_prompts_are_those_of_the_map_written_out():
    x, plain = tiny.images('timm_vit', dtype=torch.double), tuned('timm_vit')
    model = tuned('timm_vit', project_dims=5)
    assert prompts(model).shape == (P, 5)
    (map_,) = model.petl.shared['0'].values()
    with torch.no_grad():
        prompts(plain).copy_(prompts(model) @ map_.weight.T + map_.bias)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


def test_projected_prompts_count_and_start():
    method = VPTShallow(100, project_dims=64)
    assert counts('vit_b', method).delta == 100 * 64 + 64 * 768 + 768
    site = Site('tokens', 'b', 768, 768, 0, patch_dims=768, embed_dims=768)
    start = VPTShallow(1000, project_dims=64).build(site).E.detach()
    bound = (6 / (768 + 64)) ** 0.5
    assert 0.999 * bound < start.abs().max() <= bound
    weight = method.share([site])['768'].weight
    # Kaiming normal of the fan out.
    assert weight.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.02)
    with pytest.raises(PETLError, match='project_dims of at least 1, got 0'):
        VPTShallow(project_dims=0)
