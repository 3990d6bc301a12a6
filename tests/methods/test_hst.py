"""HST: a pyramid beside a plain transformer, fed with patches and meta tokens."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, Owner, PETLError, delta_state, owners
from mmpetl.core.inject import injection_of
from mmpetl.methods.hst import HST, SideBlock, frames_of

SMALL = {'dims': (8, 12), 'num_heads': (2, 4)}
VITS = ('mmpretrain_vit', 'mmaction_vit')


def tuned(host: str, std: float = 0.2) -> nn.Module:
    model = mmpetl.inject(tiny.base(host, torch.double), HST(**SMALL))
    model.eval()
    tiny.shake_(model, std)
    return model


def parts(model: nn.Module, kind: str) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == kind]
    return [core.get_submodule(site.path)['0'] for site in sites]


def vit_12(width: int = 24) -> nn.Module:
    """Twelve narrow blocks on 14 x 14 patches of 16 x 16."""
    arch = {
        'embed_dims': width,
        'num_layers': 12,
        'num_heads': 4,
        'feedforward_channels': width,
    }
    return tiny.mmpretrain_vit(arch=arch, img_size=224, patch_size=16)


@pytest.mark.parametrize('host', ['vit_b', 'timm_vit_b', 'videomae_b'])
def test_specified_count(host):
    got = counts(host, HST())
    assert got.delta + got.selected == 764_840
    assert got.selected == 36_864


def test_specified_count_by_part():
    c, widths = 768, (32, 48, 64, 72)
    bridges = sum(c * w + w for w in widths)
    blocks = sum(3 * (12 * w * w + 15 * w) for w in widths)
    stem = 27 * 32 + 2 * 32 + (4 * 32 * 32 + 32) + 2 * 32
    downs = sum(9 * a * b + b + 2 * b for a, b in zip(widths, widths[1:], strict=False))
    assert (bridges, blocks, stem, downs) == (166_104, 463_608, 5_120, 83_496)
    norms = 2 * sum(widths)
    want = 12 * c + bridges + blocks + stem + downs + norms
    assert counts('vit_b', HST()).delta == want


def written_out(plain: nn.Module, model: nn.Module, x: Tensor) -> Tensor:
    """The authors' order: meta token first, patches resized in front of the bridge."""
    deltas, side = parts(model, 'tokens'), model.petl.shared['0']
    z, h, size = plain._pos_embed(plain.patch_embed(x)), None, None
    for i, (block, delta) in enumerate(zip(plain.blocks, deltas, strict=True)):
        s = block(torch.cat((delta.meta.expand(len(x), -1, -1), z), dim=1))
        g, z = s[:, :1], s[:, 1:]
        if i == 0:
            maps = F.relu(side.stem.bn(side.stem.conv1(x)))
            maps, norm = side.stem.conv2(maps), side.stem.norm
        else:
            down = side.downs[i - 1]
            maps, norm = down.conv(h.transpose(1, 2).unflatten(2, size)), down.norm
        size = maps.shape[2:]
        h = norm(maps.flatten(2).transpose(1, 2))
        patches = z[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        patches = F.interpolate(patches, size=size, mode='bilinear')
        v = side.bridges[i](patches.flatten(2).transpose(1, 2))
        b = delta.block
        g = b.meta_norm(side.bridges[i](g))
        r = torch.cat((g, v.mean(1, keepdim=True)), dim=1)
        heads = b.num_heads
        q = b.q(b.norm1(h)).unflatten(-1, (heads, -1)).transpose(1, 2)
        k, w = b.kv(r).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        rows = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        h = h + b.out((rows @ w).transpose(1, 2).flatten(2))
        h = h + v
        h = h + b.fc2(F.gelu(b.fc1(b.norm2(h))))
        h = side.norms[i](h)
    mean = h.mean(1)
    spread = side.exit.running_var + side.exit.eps
    return (mean - side.exit.running_mean) / spread.sqrt()


def test_equals_the_side_network_written_out():
    plain = tiny.randomise_(tiny.timm_vit(num_classes=0)).double()
    model = tiny.randomise_(tiny.timm_vit(num_classes=0)).double()
    model = mmpetl.inject(model, HST(**SMALL))
    plain.eval()
    model.eval()
    side = model.petl.shared['0']
    with torch.no_grad():
        for name, param in model.named_parameters():
            if 'petl' in name.split('.'):
                param.add_(0.2 * torch.randn_like(param))
        for bn in (side.stem.bn, side.exit):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
    x = tiny.images('timm_vit', dtype=torch.double)
    want = written_out(plain, model, x)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_bridge_then_resize_equals_resize_then_bridge():
    side = tuned('mmpretrain_vit').petl.shared['0']
    patches, ctx = torch.randn(2, 16, 32).double(), Context((4, 4), 1)
    maps = patches.transpose(1, 2).unflatten(2, (4, 4))
    maps = F.interpolate(maps, size=(7, 5), mode='bilinear', align_corners=False)
    want = side.bridges[1](maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(side.bridged(patches, 1, ctx, (7, 5)), want)


@pytest.mark.parametrize('host', VITS)
def test_gradients_reach_meta_tokens_and_block_norms_and_nothing_else_of_the_base(
    host,
):
    model = tuned(host)
    model.train()
    x = tiny.images(host, odd=True, dtype=torch.double)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    owner = owners(model)
    with_grad = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_grad == {n for n, o in owner.items() if o is not Owner.BASE}
    norms = {n for n, o in owner.items() if o is Owner.SELECTED}
    names = ('ln1', 'ln2') if host == 'mmpretrain_vit' else ('norm1', 'norm2')
    blocks = 'layers' if host == 'mmpretrain_vit' else 'blocks'
    assert norms == {
        f'{blocks}.{i}.{name}.{kind}'
        for i in (0, 1)
        for name in names
        for kind in ('weight', 'bias')
    }
    for delta in parts(model, 'tokens'):
        assert delta.meta.grad.any()
    assert all(model.get_parameter(n).grad.any() for n in norms)


def test_stages_have_the_shapes_of_a_pyramid():
    model, seen = mmpetl.inject(vit_12(), HST()), []
    for delta in parts(model, 'tokens'):
        delta.block.register_forward_hook(lambda m, i, y: seen.append(tuple(y.shape)))
    model.eval()
    with torch.no_grad():
        (y,) = model(torch.randn(1, 3, 224, 224))
    assert y.shape == (1, 72)
    want = [(56, 32), (28, 48), (14, 64), (7, 72)]
    assert seen == [(1, side**2, c) for side, c in want for _ in range(3)]


def test_198_tokens_enter_each_block():
    model, seen = mmpetl.inject(vit_12(), HST()), []
    for block in model.layers:
        block.ln1.register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    model.eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert seen == [198] * 12


def test_gradient_crosses_the_trunk():
    """It spares no activations: the stream behind every block has a graph."""
    model, seen = tuned('mmpretrain_vit'), []
    for block in model.layers:
        block.register_forward_hook(lambda m, i, y: seen.append(y.requires_grad))
    model.train()
    model(tiny.images('mmpretrain_vit', dtype=torch.double))
    assert seen == [True, True]


def test_a_video_gives_the_middle_frame_of_each_tubelet():
    video = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 3, 8, 6, 6)
    ctx = Context((4, 2, 2))
    ctx.images = video
    frames = frames_of(ctx)
    assert frames.shape == (8, 3, 6, 6)
    assert frames[:, 0, 0, 0].tolist() == [1, 3, 5, 7] * 2
    ctx.images = torch.zeros(2, 3, 6, 6)
    assert frames_of(ctx) is ctx.images


def test_stochastic_depth_grows_from_zero():
    model = mmpetl.inject(vit_12(), HST(drop_path_rate=0.22))
    rates = [delta.block.drop_path for delta in parts(model, 'tokens')]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    block, ones = parts(model, 'tokens')[-1].block, torch.ones(4000, 2, 3)
    block.train()
    torch.manual_seed(0)
    dropped = block.dropped(ones, block.drawn(ones))
    torch.testing.assert_close(dropped.flatten(1).unique(), torch.tensor([0, 1 / 0.78]))
    assert 0.19 < (dropped[:, 0, 0] == 0).float().mean() < 0.25
    block.eval()
    assert block.drawn(ones) is None
    assert block.dropped(ones, None) is ones


def test_a_side_block_that_runs_again_for_backward_is_the_same():
    block = SideBlock(6, 2, drop_path=0.5).double().train()
    args = [torch.randn(3, n, 6).double().requires_grad_() for n in (5, 1, 5)]
    found = []
    for again in (True, False):
        torch.manual_seed(1)
        if again:
            out = block(*args)
        else:
            out = block.grown(*args, block.drawn(args[0]), block.drawn(args[0]))
        learns = [*args, *block.parameters()]
        found.append([out, *torch.autograd.grad(out.square().sum(), learns)])
    assert all(map(torch.equal, *found))


def test_running_statistics_are_saved_with_the_delta():
    keys = [k for k in delta_state(tuned('mmpretrain_vit')) if 'running' in k]
    assert len(keys) == 4


def test_norms_have_the_epsilons_of_the_authors():
    model = tuned('mmpretrain_vit')
    side, blocks = model.petl.shared['0'], [d.block for d in parts(model, 'tokens')]
    fine = [side.exit, *side.norms, *(n for b in blocks for n in (b.norm1, b.norm2))]
    coarse = [side.stem.norm, *(d.norm for d in side.downs)]
    assert {norm.eps for norm in fine} == {1e-6}
    assert {norm.eps for norm in [*coarse, *(b.meta_norm for b in blocks)]} == {1e-5}


def test_stages_may_be_uneven_and_take_several_meta_tokens():
    # What they compute is held against the authors' code in tests/golden.
    method = HST(dims=(8, 12), num_heads=(2, 4), depths=(4, 8), num_tokens=3)
    model = mmpetl.inject(vit_12(), method)
    deltas = parts(model, 'tokens')
    assert [d.stage for d in deltas] == [0] * 4 + [1] * 8
    assert [i for i, d in enumerate(deltas) if d.first] == [0, 4]
    assert [i for i, d in enumerate(deltas) if d.last] == [3, 11]
    assert all(d.meta.shape == (1, 3, 24) for d in deltas)
    one, three = (counts('vit_b', HST(num_tokens=n)).delta for n in (1, 3))
    assert three - one == 2 * 12 * 768


def test_two_pyramids_take_turns():
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model = tuned('mmpretrain_vit')
    alone = model(x)[0]
    with pytest.raises(PETLError, match="HST in slot '1' cannot act beside HST"):
        mmpetl.inject(model, HST(**SMALL, drop_path_rate=0.0))
    mmpetl.disable(model, '0')
    mmpetl.inject(model, HST(**SMALL, drop_path_rate=0.0))
    model.eval()
    assert not torch.equal(model(x)[0], alone)
    mmpetl.eject(model, '1')
    mmpetl.enable(model, '0')
    torch.testing.assert_close(model(x)[0], alone, rtol=0, atol=0)


@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmaction_swin3d', 'timm_vit'])
def test_backbones_that_hand_over_no_vector_are_refused(host):
    with pytest.raises(PETLError, match='HST needs site kind feature'):
        mmpetl.inject(tiny.base(host), HST(**SMALL))


def test_bad_arguments_are_refused():
    with pytest.raises(PETLError, match='as many num_heads as dims, got 1 and 2'):
        HST(dims=[8, 12], num_heads=[2])
    with pytest.raises(PETLError, match='heads that divide the width: 10 by 4'):
        HST(dims=[10], num_heads=[4])
    with pytest.raises(PETLError, match='4 do not divide 2 blocks'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), HST())
    with pytest.raises(PETLError, match='as many depths as dims, got 1 and 2'):
        HST(**SMALL, depths=[2])
    with pytest.raises(PETLError, match=r'sum to the 2 blocks .* got 1 \+ 2'):
        mmpetl.inject(tiny.base('mmpretrain_vit'), HST(**SMALL, depths=[1, 2]))
    two = tiny.mmpretrain_vit(out_indices=(0, 1))
    with pytest.raises(PETLError, match='one feature, behind the last block'):
        mmpetl.inject(two, HST(**SMALL))
