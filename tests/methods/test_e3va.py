"""E3VA: a highway of adapters beside the frozen blocks."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from full_size import counts
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.inject import injection_of
from mmpetl.methods.e3va import E3VA

PYRAMIDS = ['mmpretrain_swin', 'mmaction_swin3d']


def build(host: str, dtype: torch.dtype = torch.double) -> nn.Module:
    """A tiny backbone; Video Swin with an output per stage."""
    if host != 'mmaction_swin3d':
        return tiny.base(host, dtype)
    model = tiny.mmaction_swin3d(out_indices=(0, 1))
    model.eval()
    return tiny.randomise_(model).to(dtype)


def tuned(host: str, std: float = 0.3) -> nn.Module:
    model = mmpetl.inject(build(host), E3VA(4))
    model.eval()
    tiny.shake_(model, std)
    return model


def parts(model: nn.Module, kind: str) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == kind]
    return [core.get_submodule(site.path)['0'] for site in sites]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'sublayers')]


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What the frozen blocks give, and the outputs."""
    seen: list[Tensor] = []
    hooks = [
        b.register_forward_hook(lambda m, i, y: seen.append(y)) for b in blocks(model)
    ]
    outs = tiny.outputs(model, x)
    for hook in hooks:
        hook.remove()
    return seen, outs


@pytest.mark.parametrize(
    ('host', 'count'),
    [
        ('swin_b_dense', 1_195_008),
        ('swin_l_dense', 1_792_512),
        ('vit_b', 913_920),
        ('timm_vit_b', 913_920),
        # One output has one norm, and VideoMAE's stands behind the mean.
        ('swin_b', 1_195_008 - 2 * (128 + 256 + 512)),
        ('videomae_b', 913_920 - 2 * 768),
    ],
)
def test_specified_counts(host, count):
    assert counts(host, E3VA()).delta == count


def test_starts_as_norms_of_the_frozen_stages(stem):
    """V_u = 0: the highway is the frozen stream, in every output."""
    x = tiny.images(stem, odd=True)
    plain = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
    model = mmpetl.inject(tiny.base(stem), E3VA(4))
    model.eval()
    assert all(map(torch.equal, tiny.outputs(model, x), plain))
    ends = parts(model, 'out.norm')
    # Where the next stage reads the frozen norm, the pair stands behind the exit.
    ends += [end for end in parts(model, 'out') if hasattr(end, 'gamma')]
    for norm in ends:
        with torch.no_grad():
            norm.gamma.mul_(3)
            norm.beta.add_(1)
    if ends and not stem.startswith('timm'):  # a classifier comes behind
        for y, z in zip(tiny.outputs(model, x), plain, strict=True):
            torch.testing.assert_close(y, 3 * z + 1)


def test_equals_the_highway_written_out():
    """On the plain ViT: blocks once more, with a side sum of all that they add."""
    plain, model = tiny.base('timm_vit', torch.double), tuned('timm_vit')
    x = tiny.images('timm_vit', dtype=torch.double)
    z = h = plain._pos_embed(plain.patch_embed(x))
    for block, delta in zip(plain.blocks, parts(model, 'block'), strict=True):
        for adapter, norm, inner in (
            (delta.attn, block.norm1, block.attn),
            (delta.ffn, block.norm2, block.mlp),
        ):
            v = inner(norm(z))
            w_d = adapter.U_d.weight @ adapter.V_d.weight
            w_u = adapter.U_u.weight @ adapter.V_u.weight
            hidden = nn.functional.gelu(v @ w_d.T + adapter.U_d.bias)
            z, h = z + v, h + v + hidden @ w_u.T + adapter.U_u.bias
    (norm,) = parts(model, 'out.norm')
    want = plain.forward_head(norm.gamma * plain.norm(h) + norm.beta)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_trained_scale_behind_the_frozen_norm_is_a_trained_norm():
    model = tuned('mmpretrain_swin')
    x = tiny.images('mmpretrain_swin', dtype=torch.double)
    want = model(x)
    for i, norm in enumerate(parts(model, 'out.norm')):
        host = getattr(model, f'norm{i}')
        with torch.no_grad():
            host.bias.copy_(norm.gamma * host.bias + norm.beta)
            host.weight.mul_(norm.gamma)
            norm.gamma.fill_(1)
            norm.beta.zero_()
    for got, y in zip(model(x), want, strict=True):
        torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('host', PYRAMIDS)
def test_the_highway_crosses_the_backbones_own_merging(host):
    """The second stage's output equals merging and blocks on an edited highway."""
    model, x = tuned(host), tiny.images('mmpretrain_swin', odd=True, dtype=torch.double)
    if host == 'mmaction_swin3d':
        x = tiny.images(host, odd=True, dtype=torch.double)
    ctx_of: list[Tensor] = []
    stages = model.stages if host == 'mmpretrain_swin' else model.layers
    merge = stages[0].downsample
    merge.reduction.register_forward_hook(lambda m, i, y: ctx_of.append(y))
    tiny.outputs(model, x)
    highway, trunk = ctx_of
    assert highway.shape == trunk.shape
    assert highway.requires_grad
    assert not trunk.requires_grad


@pytest.mark.parametrize('host', PYRAMIDS)
def test_gradients_cross_the_merging_and_spare_the_backbone(host):
    model, stem = tuned(host), host
    model.train()
    x = tiny.images(stem, odd=True, dtype=torch.double)
    seen, outs = run(model, x)
    assert not any(z.requires_grad for z in seen)
    tiny.loss_of(outs[-1:]).backward()  # of the last stage alone
    core, state = injection_of(model)
    first = parts(model, 'block')[0]
    assert all(p.grad is not None and p.grad.any() for p in first.parameters())
    assert [n for n in state.base if _grad(core, n) is not None] == []


def _grad(core: nn.Module, name: str) -> Tensor | None:
    return dict(core.named_parameters()).get(name, torch.zeros(())).grad


@torch.no_grad()
@pytest.mark.parametrize('host', PYRAMIDS)
def test_an_early_adapter_moves_all_outputs_and_no_block(host):
    model = tuned(host)
    x = tiny.images(host, odd=True, dtype=torch.double)
    moved = copy.deepcopy(model)
    parts(moved, 'block')[0].attn.U_u.bias.add_(1 + torch.rand(16))
    before, after = run(model, x), run(moved, x)
    assert all(map(torch.equal, before[0], after[0]))
    assert len(before[1]) == 2
    for y, z in zip(before[1], after[1], strict=True):
        assert (y - z).abs().max() > 1e-3


def test_autograd_keeps_of_the_trunk_only_what_the_adapters_read():
    model = tuned('mmpretrain_vit')
    model.train()
    params = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in params:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 8
        return t

    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    whole = 2 * 17 * 32
    # Per block a and m; behind the blocks h and its norm. The hidden width is half.
    wide = [n for n in kept.values() if n >= whole]
    assert set(wide) == {whole}
    assert 2 * 2 <= len(wide) <= 2 * 2 + 2


def test_stochastic_depth_of_the_trunk_reaches_both_streams_alike():
    """a and m are taken behind it, so an untrained highway stays the stream."""
    plain = tiny.timm_vit(num_classes=0, drop_path_rate=0.9).double()
    outs = []
    for method in (tiny.Nothing(), E3VA(4)):
        model = mmpetl.inject(copy.deepcopy(plain), method, frozen_drop_path=True)
        model.train()
        torch.manual_seed(3)
        outs.append(model(tiny.images('timm_vit', 8, dtype=torch.double)))
    assert torch.equal(*outs)


def test_adapters_of_frozen_stages_train():
    swin = tiny.mmpretrain_swin_dense(frozen_stages=1)
    model = mmpetl.inject(swin, E3VA(4))
    model.train()
    assert all(p.requires_grad for d in parts(model, 'block') for p in d.parameters())


def test_two_highways_do_not_mix():
    x = tiny.images('mmpretrain_swin', dtype=torch.double)
    model = tuned('mmpretrain_swin')
    mmpetl.disable(model, '0')
    mmpetl.inject(model, E3VA(3))
    model.eval()
    mmpetl.enable(model, '0')
    block = model.stages[0].blocks[0].petl.block
    assert {d.slot for d in block.active()} == {'0', '1'}
    assert all(torch.isfinite(y).all() for y in model(x))


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match='E3VA needs rank of at least 1, got 0'):
        E3VA(0)
    with pytest.raises(PETLError, match=r'at most half the width \(8\), got 16'):
        mmpetl.inject(tiny.base('mmpretrain_swin'), E3VA())
