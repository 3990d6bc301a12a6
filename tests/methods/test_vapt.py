"""VAPT: prompts made of the patches in front of each block."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import Context, PETLError, Site
from mmpetl.methods.vapt import VAPT, Refinement


def one(**args) -> tuple[nn.Module, nn.Module]:
    """What the second block has and what is shared, every tensor drawn, in float64."""
    method = VAPT(3, hidden_dims=4, **{'grid_size': (3, 4), **args})
    site = Site('tokens', 'b', 6, 6, 1, stage=0)
    shared, delta = method.share([site]).double(), method.build(site).double()
    delta.attach('0', shared)
    with torch.no_grad():
        for param in (*shared.parameters(), *delta.parameters()):
            param.normal_()
    return delta.eval(), shared.eval()


def test_counts():
    assert counts('vit_b', VAPT()).delta == 55_608
    more = 11 * (768 - 1) * 4  # a kernel of 2 x 2 for each channel
    assert counts('vit_b', VAPT(one_kernel=False)).delta == 55_608 + more


@pytest.mark.parametrize('one_kernel', [True, False])
def test_equals_sums_over_the_places_that_a_kernel_sees(one_kernel):
    delta, shared = one(one_kernel=one_kernel)
    x = torch.randn(2, 1 + 12, 6, dtype=torch.double)
    got = delta.before(x, Context((3, 4), 1))
    g = F.layer_norm(x[:, 1:], (6,), delta.norm.weight, delta.norm.bias)
    g = g.view(2, 3, 4, 6)
    kernel = delta.kernel.expand(6, 1, 2, 2)[:, 0]
    seen = [
        sum(g[:, r + i, c + j] * kernel[:, i, j] for i in (0, 1) for j in (0, 1))
        for r in range(2)
        for c in range(3)
    ]
    z = torch.stack(seen, dim=-1) @ delta.linear.weight.T + delta.linear.bias
    z = z.transpose(1, 2)
    want = z + F.relu(z @ shared.down.weight.T) @ shared.up.weight.T
    torch.testing.assert_close(got[:, 1:4], want, rtol=1e-10, atol=1e-10)
    assert torch.equal(got[:, :1], x[:, :1])
    assert torch.equal(got[:, 4:], x[:, 1:])


def test_dropout_of_the_refinement_is_behind_the_activation() -> None:
    torch.manual_seed(0)
    refine = Refinement(6, 1, 0.5).double()
    z = torch.randn(40, 1, 6, dtype=torch.double)
    refine.eval()
    whole = refine(z) - z
    acts = whole.abs().sum(-1) > 0
    got = refine.train()(z) - z
    # One hidden unit: all channels of a token are dropped, or all are twice as large.
    ratio = (got / whole)[acts]
    assert {tuple(r) for r in ratio.round(decimals=9).tolist()} == {
        (0.0,) * 6,
        (2.0,) * 6,
    }


def test_prompts_take_the_place_of_those_of_the_block_before():
    delta, _ = one()
    ctx = Context((3, 4), 1)
    x = torch.randn(1, 13, 6, dtype=torch.double)
    first = delta.before(x, ctx)
    assert (ctx.num_prefix, ctx.num_extra) == (4, 3)
    again = delta.before(first, ctx)
    assert (ctx.num_prefix, ctx.num_extra) == (4, 3)
    torch.testing.assert_close(again, first)


def test_adaptive_prompts_start_at_zero_and_the_first_do_not():
    model = mmpetl.inject(tiny.base('timm_vit'), VAPT(3, grid_size=(4, 4)))
    model.eval()
    assert model.blocks[0].petl.tokens['0'].E.abs().max() > 0
    x = torch.randn(2, 17, 32)
    joined = model.blocks[1].petl.tokens['0'].before(x, Context((4, 4), 1))
    assert not joined[:, 1:4].any()


def test_a_map_on_another_grid_is_resampled():
    delta, _ = one()
    constant = torch.randn(1, 1, 6, dtype=torch.double)
    small, large = (
        delta.before(constant.expand(1, h * w, 6), Context((h, w)))[:, :3]
        for h, w in ((3, 4), (5, 9))
    )
    torch.testing.assert_close(small, large, rtol=1e-10, atol=1e-10)


def test_on_video_the_mean_of_the_frames_joins_before_the_refinement():
    delta, shared = one()
    x = torch.randn(1, 2 * 12, 6, dtype=torch.double)
    clip = delta.before(x, Context((2, 3, 4)))[:, :3]
    inner, delta.__dict__['shared'] = shared, nn.Identity()
    frames = [delta.before(part, Context((3, 4)))[:, :3] for part in x.split(12, dim=1)]
    torch.testing.assert_close(clip, inner(sum(frames) / 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ('host', 'what'), [('mmpretrain_swin', 'windows'), ('mmseg_mit', 'several stages')]
)
def test_windows_and_stages_are_refused_in_one_line(host, what):
    with pytest.raises(PETLError, match=f'this trunk has {what}') as error:
        mmpetl.inject(tiny.base(host), VAPT())
    assert '\n' not in str(error.value)


def test_a_grid_smaller_than_the_kernel_is_refused():
    with pytest.raises(PETLError, match='at least the kernel_size of 3'):
        VAPT(kernel_size=3, grid_size=(2, 5))
