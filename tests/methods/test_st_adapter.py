"""ST-Adapter: a depth-wise convolution over time inside of a bottleneck."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts, vit_b, widths
from torch import nn

import mmpetl
from mmpetl.apis.counting import without_memory
from mmpetl.core import Context, PETLError, Site, count_trainable
from mmpetl.methods.st_adapter import STAdapter
from mmpetl.models import FrameBackbone

CLIPS = [
    stem
    for stem in ('mmaction_vit', 'mmaction_swin3d', 'mmpretrain_swin_frames')
    if stem in tiny.TINY
]


def one(**args) -> nn.Module:
    """A delta for 12 channels, every tensor drawn, in float64."""
    delta = STAdapter(hidden_dims=4, **args).build(Site('attn.sum', 'b', 12, 12))
    delta = delta.double()
    with torch.no_grad():
        for param in delta.parameters():
            param.normal_(std=0.5)
    return delta


def test_counts():
    assert counts('videomae_b', STAdapter()).delta == 7_110_144
    assert counts('videomae_b', STAdapter('both')).delta == 14_220_288
    want = sum(2 * d * 384 + 5 * 384 + d for d in widths('video_swin_b'))
    assert counts('video_swin_b', STAdapter()).delta == want


def test_equals_a_convolution_written_out():
    delta, ctx = one(), Context((3, 2, 2), 1)
    y = torch.randn(2, 1 + 12, 12, dtype=torch.double)
    z = delta.fc1(y[:, 1:]).view(2, 3, 4, 4)  # frames, places, channels
    w = delta.conv.weight.view(4, 3)
    before = torch.cat((torch.zeros_like(z[:, :1]), z[:, :-1]), dim=1)
    behind = torch.cat((z[:, 1:], torch.zeros_like(z[:, :1])), dim=1)
    h = before * w[:, 0] + z * w[:, 1] + behind * w[:, 2] + delta.conv.bias
    want = torch.cat((y[:, :1], y[:, 1:] + delta.fc2(h).flatten(1, 2)), dim=1)
    torch.testing.assert_close(delta.after(y, y, ctx), want, rtol=1e-12, atol=1e-12)
    front = y[:, :1]
    assert torch.equal(delta.after(front, front, Context((0, 0, 0), 1)), front)


@pytest.mark.parametrize('args', [{}, {'kernel_size': (3, 3, 1)}])
def test_frames_of_the_batch_are_those_of_the_grid(args):
    delta, y = one(**args), torch.randn(2, 12, 12, dtype=torch.double)
    want = delta.after(y, y, Context((3, 2, 2)))
    front = torch.randn(6, 1, 12, dtype=torch.double)
    frames = torch.cat((front, y.reshape(6, 4, 12)), dim=1)
    got = delta.after(frames, frames, Context((2, 2), 1, frames=3))
    torch.testing.assert_close(got[:, 1:].reshape(2, 12, 12), want, rtol=0, atol=0)
    assert torch.equal(got[:, :1], front)


def test_published_count_on_an_image_trunk():
    with without_memory():
        model = mmpetl.inject(FrameBackbone(vit_b(), 8), STAdapter('both'))
    assert count_trainable(model).delta == 14_220_288


def test_the_order_of_frames_matters_and_reaches_one_frame_far():
    delta, ctx = one(), Context((5, 2, 2))
    y = torch.randn(1, 20, 12, dtype=torch.double)
    other = y.clone()
    other[:, :4] += 1  # the first frame
    moved = (delta.after(y, y, ctx) - delta.after(other, other, ctx)).view(5, 4, 12)
    assert [bool(frame.abs().max() > 1e-9) for frame in moved] == [True, True] + 3 * [
        False
    ]
    turned = y.view(1, 5, 4, 12).flip(1).flatten(1, 2)
    back = delta.after(turned, turned, ctx).view(1, 5, 4, 12).flip(1).flatten(1, 2)
    assert not torch.allclose(back, delta.after(y, y, ctx))


@pytest.mark.parametrize('stem_', CLIPS)
def test_the_convolution_moves_first(stem_):
    model = mmpetl.inject(tiny.base(stem_), STAdapter('both', 4))
    sum(y.square().sum() for y in tiny.outputs(model, tiny.images(stem_))).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if 'petl' in n}
    for name, grad in grads.items():
        moves = '.conv.' in name or name.endswith('fc2.bias')
        assert bool(grad.abs().max() > 0) is moves, name


@pytest.mark.parametrize('stem_', CLIPS)
def test_both_places_of_every_block_act(stem_):
    x = tiny.images(stem_)
    model = mmpetl.inject(tiny.base(stem_), STAdapter('both', 4))
    tiny.shake_(model)
    outputs = tiny.outputs(model, x)
    sites = tiny.record(model).slots['0'].sites
    assert len(sites) == 2 * sites[0].num_blocks
    for site in sites:
        plug = tiny.core(model).get_submodule(site.path)
        plug.off.add('0')
        assert not torch.allclose(tiny.outputs(model, x)[0], outputs[0])
        plug.off.clear()


def test_a_trunk_of_images_is_refused_in_one_line():
    with pytest.raises(PETLError, match='no frames of clips') as error:
        mmpetl.inject(tiny.base('timm_vit'), STAdapter())
    assert '\n' not in str(error.value)


@torch.no_grad()
def test_a_trunk_says_whether_time_is_an_axis_of_its_grid(stem):
    """The fact that the refusal rests on, against the grid of a pass."""
    model, seen = mmpetl.inject(tiny.base(stem), tiny.Nothing()), []
    sites = tiny.record(model).sites
    timed = {site.timed for site in sites if site.has_grid}
    host = tiny.core(model).get_submodule(next(s.host for s in sites if s.block == 0))

    def look(module, args):
        ctx = module.context_of(args)
        seen.append((len(ctx.grid), ctx.frames))

    host.register_forward_pre_hook(look)
    tiny.outputs(model, tiny.images(stem))
    assert timed == {seen[0][0] == 3}
    assert {site.frames for site in sites} == {seen[0][1]}


def test_even_kernels_are_refused():
    with pytest.raises(PETLError, match='three odd extents'):
        STAdapter(kernel_size=(2, 1, 1))
