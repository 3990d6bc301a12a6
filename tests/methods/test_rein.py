"""Rein: learned tokens that correct the grid behind every block."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.apis.counting import without_memory
from mmpetl.core import Context, PETLError, Site, count_trainable
from mmpetl.methods.rein import Rein, queries


def one(**args) -> tuple[nn.Module, nn.Module]:
    """A delta for 12 channels with what it shares, every tensor drawn, in float64."""
    method, site = Rein(5, **{'rank': 3, **args}), Site('block', 'b', 12, 12)
    shared, delta = method.share([site]).double(), method.build(site).double()
    delta.attach('0', shared)
    with torch.no_grad():
        for param in (*shared.parameters(), *delta.parameters()):
            param.normal_(std=0.5)
    return delta, shared


def test_counts():
    assert counts('vit_b', Rein()).delta == 1_347_841
    widths = {128: 2, 256: 2, 512: 18, 1024: 2}
    blocks = sum(n * 16 * (100 + d) for d, n in widths.items())
    maps = sum(2 * (d * d + d) + 1 for d in widths)
    assert counts('swin_b', Rein()).delta == blocks + maps


@pytest.mark.parametrize(('query_dims', 'count'), [(None, 2_530_817), (256, 2_990_081)])
def test_published_count_on_dinov2(query_dims, count):
    from mmpretrain.models import VisionTransformer

    with without_memory():
        model = VisionTransformer(arch='l', img_size=518, patch_size=14)
        mmpetl.inject(model, Rein(query_dims=query_dims))
    assert count_trainable(model).delta == count


def test_equals_a_plain_vit_with_corrected_grids():
    model = plain_vit.tuned(Rein(7, rank=4), 0.5)
    maps = model.petl.shared['0'].maps['32']

    def edit(place, block, value, seen):
        if place != 'x2':
            return value
        delta = plain_vit.delta(model, block, 'block')
        tokens, f = delta.A @ delta.B, value[:, 1:]
        scores = torch.softmax(f @ tokens.T / 32**0.5, dim=-1)
        values = tokens @ maps.W1.weight.T + maps.W1.bias
        values = torch.cat((torch.zeros_like(values[:1]), values[1:]))
        inside = scores @ values + f
        f = f + maps.scale * (inside @ maps.W2.weight.T + maps.W2.bias)
        return torch.cat((value[:, :1], f), dim=1)

    plain_vit.check(model, edit)


def test_tokens_in_front_of_the_grid_pass():
    delta, _ = one()
    y = torch.randn(2, 3 + 6, 12, dtype=torch.double)
    got = delta.after(y, y, Context((2, 3), 3))
    assert torch.equal(got[:, :3], y[:, :3])
    alone = delta.after(y[:, 3:], y[:, 3:], Context((2, 3)))
    torch.testing.assert_close(got[:, 3:], alone, rtol=0, atol=0)
    front = y[:, :3]
    assert torch.equal(delta.after(front, front, Context((0, 0), 3)), front)


def test_the_first_token_takes_attention_and_gives_nothing():
    delta, shared = one(rank=None)
    maps = shared.maps['12']
    f = torch.randn(2, 6, 12, dtype=torch.double)
    with torch.no_grad():
        delta.T[0] = 1e6 * f[0, 0]  # the first place looks at nothing else
    update = (delta.after(f, f, Context((2, 3))) - f)[0, 0]
    want = maps.scale * maps.W2(f[0, 0])
    torch.testing.assert_close(update, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rank', [4, None])
def test_zero_init_is_the_frozen_model_bit_for_bit(stem, rank):
    x = tiny.images(stem)
    frozen = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), Rein(5, rank, zero_init=True))
    frozen.eval(), model.eval()
    for got, want in zip(tiny.outputs(model, x), tiny.outputs(frozen, x), strict=True):
        assert torch.equal(got, want)


def test_starts_near_the_frozen_model():
    x = tiny.images('timm_vit')
    model = mmpetl.inject(tiny.base('timm_vit'), Rein())
    plain = tiny.plain_outputs('timm_vit')[0]
    far = (tiny.outputs(model, x)[0] - plain).abs().max()
    assert 0 < far < 0.01 * plain.abs().max()


def test_queries_of_a_trunk_with_two_widths():
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), Rein(5, 2, query_dims=6))
    tiny.shake_(model)
    q = queries(model)
    assert q.shape == (5, 6)
    q.sum().backward()
    link = model.petl.shared['0'].link
    assert all(p.grad is not None for p in link.parameters())
    with torch.no_grad():
        tokens = [
            plug['0'].tokens()
            for name, plug in model.named_modules()
            if name.endswith('petl.block')
        ]
        each = [link.transform[str(t.shape[1])](t) for t in tokens]
        three = (
            torch.stack(each).max(0).values,
            sum(each) / len(each),
            each[-1],
        )
        want = link.merge(
            torch.cat([part[:, c : c + 1] for c in range(6) for part in three], 1)
        )
    torch.testing.assert_close(q, want)


def test_without_a_link_there_are_no_queries():
    model = mmpetl.inject(tiny.base('timm_vit'), Rein(5, 2))
    with pytest.raises(PETLError, match='query_dims') as error:
        queries(model)
    assert '\n' not in str(error.value)


def test_one_token_is_refused():
    with pytest.raises(PETLError, match='num_tokens of at least 2, got 1'):
        Rein(1)
