"""LST: a side network that reads the frozen blocks and answers in their place."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.inject import injection_of
from mmpetl.methods.lst import LST


def tuned(stem: str, reduction: int = 8, **args) -> nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), LST(reduction, **args))
    model.eval()
    return model


def parts(model: nn.Module, kind: str) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == kind]
    return [core.get_submodule(site.path)['0'] for site in sites]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'sublayers')]


@pytest.mark.parametrize(
    ('host', 'count'),
    [
        ('vit_b', 2_376_492),
        ('timm_vit_b', 2_376_492),
        ('videomae_b', 2_376_492),
        ('swin_b', 2_444_064),
        ('swin_b_dense', 2_488_192),
        ('swin_l', 5_434_020),
        ('swin_l_dense', 5_532_468),
    ],
)
def test_published_and_specified_counts(host, count):
    assert counts(host, LST()).delta == count


@pytest.mark.parametrize('reduction', [4, 16])
def test_count_on_vit_b_follows_its_formula(reduction):
    c, n, d = 768, 12, 768 // reduction
    want = n * (12 * d**2 + 13 * d) + (n + 1) * (c * d + d) + (d * c + c) + 2 * d + n
    assert counts('vit_b', LST(reduction, init='random')).delta == want


def test_equals_the_ladder_written_out():
    plain = tiny.base('timm_vit', torch.double)
    model = tuned('timm_vit', 2)
    tiny.shake_(model, 0.1)
    x = tiny.images('timm_vit', dtype=torch.double)
    z = plain._pos_embed(plain.patch_embed(x))
    h = parts(model, 'embed')[0].down(z)
    for block, side in zip(plain.blocks, parts(model, 'block'), strict=True):
        z = block(z)
        mu = 1 / (1 + torch.exp(-side.alpha / 0.1))
        h = mu * h + (1 - mu) * side.down(z)
        b = side.block
        q, k, v = b.qkv(b.norm1(h)).view(2, 17, 3, 4, 4).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / 4**0.5).softmax(-1)
        h = h + b.proj((a @ v).transpose(1, 2).flatten(2))
        h = h + b.fc2(nn.functional.gelu(b.fc1(b.norm2(h))))
    (leave,) = parts(model, 'out')
    want = plain.head(leave.up(leave.norm(h))[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_the_trunk_builds_no_graph(stem):
    model, seen = tuned(stem), []
    for block in blocks(model):
        block.register_forward_hook(lambda m, i, y: seen.append(y))
    model.train()
    tiny.loss_of(tiny.outputs(model, tiny.images(stem, dtype=torch.double)))
    assert len(seen) == len(blocks(model))
    assert not any(z.requires_grad for z in seen)


def test_autograd_keeps_of_the_trunk_only_what_the_ladder_reads():
    """Per rung one (B, N, C); nothing of the width of qkv or of the hidden layer."""
    model = tuned('mmpretrain_vit')
    model.train()
    params = {p.data_ptr() for p in model.parameters()}
    kept: list[torch.Tensor] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in params:
            kept.append(t)
        return t

    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)[0]
    wide = {t.data_ptr() for t in kept if t.numel() >= 2 * 17 * 32}
    assert len(wide) == 1 + 2  # the embedding and two blocks
    rest = sum(t.numel() for t in {t.data_ptr(): t for t in kept}.values()) - 3 * 1088
    # Width 4 in place of 32: what the side blocks keep is below one trunk tensor each.
    assert rest < 2 * 17 * 4 * 40
    assert y.requires_grad


def test_only_the_side_network_gets_gradients_and_all_of_it_does(stem):
    model = tuned(stem)
    model.train()
    x = tiny.images(stem, odd=True, dtype=torch.double)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    _, state = injection_of(model)
    for name, param in injection_of(model)[0].named_parameters():
        if name in state.base:
            head = name in state.head and param.requires_grad
            assert param.grad is None or head, name
        else:
            assert param.grad is not None, name
            assert param.grad.any(), name


@pytest.mark.parametrize('host', ['timm_vit', 'mmpretrain_vit', 'mmaction_vit'])
def test_without_reduction_the_side_block_is_the_host_block(host):
    plain, model = tiny.base(host, torch.double), tuned(host, 1)
    hosts = plain.layers if host == 'mmpretrain_vit' else plain.blocks
    h = torch.randn(2, 17, 32, dtype=torch.double)
    for block, side in zip(hosts, parts(model, 'block'), strict=True):
        torch.testing.assert_close(
            side.block(h, (4, 4)), block(h), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmaction_swin3d'])
def test_without_reduction_side_windows_are_those_of_the_host(host):
    """Padded, shifted and biased alike, once the position table is the host's."""
    model = tuned(host, 1)
    grid = (9, 6) if host == 'mmpretrain_swin' else (4, 9, 6)
    sides = parts(model, 'block')
    plain = mmpetl.inject(tiny.base(host, torch.double), tiny.Nothing())
    plain.eval()
    for block, side in zip(blocks(plain)[:2], sides[:2], strict=True):
        attn = block.attn.w_msa if host == 'mmpretrain_swin' else block.attn
        with torch.no_grad():
            side.block.table.copy_(attn.relative_position_bias_table)
        n = torch.Size(grid).numel()
        h = torch.randn(2, n, 16, dtype=torch.double)
        want = block(h, mmpetl.core.Context(grid))
        torch.testing.assert_close(side.block(h, grid), want, rtol=1e-6, atol=1e-6)


def test_side_merging_is_the_patch_merging_of_the_host():
    model = tuned('mmaction_swin3d', 1)
    merge, (side,) = model.layers[0].downsample, parts(model, 'downsample')
    with torch.no_grad():
        side.norm.load_state_dict(merge.norm.state_dict())
        side.down.load_state_dict(merge.reduction.state_dict())
    h = torch.randn(2, 2 * 5 * 7, 16, dtype=torch.double)
    ctx = mmpetl.core.Context((2, 5, 7))
    ctx.scratch[side.shared] = h
    side.before(h, ctx)
    want = merge(h.view(2, 2, 5, 7, 16)).flatten(1, 3)
    got = ctx.scratch[side.shared]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_pruning_keeps_the_largest_residual_channels_in_order():
    base = tiny.base('timm_vit', torch.double)
    planted = [3, 11, 17, 30]
    with torch.no_grad():
        for block in base.blocks:
            block.mlp.fc2.weight[planted] *= 100
            block.norm1.weight.copy_(torch.arange(32.0))
    model = mmpetl.inject(base, LST(8))
    for block, side in zip(model.blocks, parts(model, 'block'), strict=True):
        assert side.block.norm1.weight.tolist() == planted
        fc2 = side.block.fc2
        assert torch.equal(fc2.bias, block.mlp.fc2.bias[planted])
        # Hidden channels keep their order too: each row is a subsequence of its own.
        row = block.mlp.fc2.weight[planted[0]]
        at = [int((row == w).nonzero()[0, 0]) for w in fc2.weight[0]]
        assert at == sorted(at)


def test_pruning_keeps_heads_apart_and_pairs_queries_with_keys():
    base = tiny.base('timm_vit', torch.double)
    with torch.no_grad():
        for block in base.blocks:
            qkv = block.attn.qkv.weight.view(3, 4, 8, 32)
            qkv[0, 0, 5] *= 1000  # a large query channel drags its key along
            block.attn.proj.weight.view(32, 4, 8)[:, 1, 2] *= 1000
    model = mmpetl.inject(base, LST(8))
    for block, side in zip(model.blocks, parts(model, 'block'), strict=True):
        got = side.block.qkv.bias.view(3, 4, 1)
        want = block.attn.qkv.bias.view(3, 4, 8)
        assert got[0, 0, 0] == want[0, 0, 5]
        assert got[1, 0, 0] == want[1, 0, 5]
        assert got[2, 1, 0] == want[2, 1, 2]


def test_a_wide_open_gate_leaves_the_blocks_out():
    model = tuned('mmpretrain_vit')
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    closed = model(x)[0]
    with torch.no_grad():
        for side in parts(model, 'block'):
            side.alpha.fill_(100)
    before = model(x)[0]
    for side in parts(model, 'block'):
        side.down.weight.data.mul_(-3)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
    assert not torch.equal(before, closed)


def test_a_shut_gate_leaves_only_the_last_block():
    model = tuned('mmpretrain_vit')
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.no_grad():
        for side in parts(model, 'block'):
            side.alpha.fill_(-100)
        before = model(x)[0]
        parts(model, 'embed')[0].down.weight.mul_(-3)
        parts(model, 'block')[0].down.weight.mul_(-3)
        torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
        parts(model, 'block')[1].down.weight.mul_(-3)
    assert not torch.equal(model(x)[0], before)


def test_an_image_does_not_see_the_rest_of_its_batch(stem):
    x, model = tiny.images(stem, 3, odd=True, dtype=torch.double), tuned(stem)
    together = tiny.outputs(model, x)
    for i in range(3):
        alone = tiny.outputs(model, x[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got[0], want[i], rtol=1e-9, atol=1e-9)


def test_the_backbone_itself_is_untouched(stem):
    """What the blocks compute is what they compute without the side network."""
    x = tiny.images(stem)
    model = mmpetl.inject(tiny.base(stem), LST())
    plain = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    seen = []
    for m in (model, plain):
        m.eval()
        blocks(m)[-1].register_forward_hook(lambda m, i, y: seen.append(y))
        tiny.outputs(m, x)
    assert torch.equal(*seen)


def test_two_side_networks_do_not_mix():
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model = tuned('mmpretrain_vit')
    alone = model(x)[0]
    mmpetl.inject(model, LST(4))
    model.eval()
    both = model(x)[0]
    mmpetl.disable(model, '1')
    torch.testing.assert_close(model(x)[0], alone, rtol=0, atol=0)
    assert not torch.equal(both, alone)


def test_start_from_magnitude_differs_from_random():
    a, b = (tuned('mmpretrain_vit', init=init) for init in ('magnitude', 'random'))
    base = a.layers[0].attn.qkv.bias
    assert torch.isin(parts(a, 'block')[0].block.qkv.bias, base).all()
    assert not torch.isin(parts(b, 'block')[0].block.qkv.bias, base).any()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(PETLError, match='3 x heads divides; .* has 32 channels'):
        tuned('mmpretrain_vit', 3)


def test_an_unknown_start_is_refused():
    with pytest.raises(PETLError, match="magnitude and random, got 'fisher'"):
        LST(init='fisher')
