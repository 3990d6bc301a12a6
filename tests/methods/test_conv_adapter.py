"""Conv-Adapter: a grouped convolution in a bottleneck beside attention."""

from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths

import mmpetl
from mmpetl.core import Context, PETLError, Site
from mmpetl.methods.conv_adapter import ConvAdapter


def one(dims: int = 8, **args) -> torch.nn.Module:
    made = ConvAdapter(4, **args).build(Site('attn', 'b', dims, dims)).double()
    with torch.no_grad():
        for param in made.parameters():
            param.normal_(std=0.5)
    return made


def test_counts():
    assert counts('swin_b', ConvAdapter()).delta == 1_006_304
    want = sum(25 * d + d // 4 + d * d // 4 + 2 * d for d in widths('video_swin_b'))
    assert counts('video_swin_b', ConvAdapter(4, 5)).delta == want


def test_formula_place_by_place():
    delta = one()
    x, y = (torch.randn(1, 12, 8, dtype=torch.double) for _ in range(2))
    padded = F.pad(x.view(3, 4, 8), (0, 0, 1, 1, 1, 1))
    want = y.clone()
    for r in range(3):
        for c in range(4):
            seen = padded[r : r + 3, c : c + 3].reshape(9, 2, 4)
            weight = delta.conv.weight.reshape(2, 4, 9)
            h = torch.einsum('pgi,gip->g', seen, weight) + delta.conv.bias
            out = delta.point.weight[:, :, 0, 0] @ h.relu() + delta.point.bias
            want[0, 4 * r + c] += delta.gamma * out
    got = delta.after(x, y, Context((3, 4)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_equals_a_plain_vit_with_the_norm_as_input():
    model = plain_vit.tuned(ConvAdapter(8))

    def edit(place, block, value, seen):
        if place != 'm':
            return value
        delta = plain_vit.delta(model, block, 'attn')
        maps = seen['a'][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        update = delta.point(delta.conv(maps).relu()) * delta.gamma[:, None, None]
        update = update.flatten(2).transpose(1, 2)
        return torch.cat((value[:, :1], value[:, 1:] + update), dim=1)

    plain_vit.check(model, edit)


def test_the_map_is_seen_and_not_the_windows():
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), ConvAdapter(8))
    delta = model.stages[0].blocks[1].petl.attn['0']  # windows of 4 x 4, shifted
    seen = []
    delta.conv.register_forward_hook(lambda m, args, y: seen.append(args[0].shape))
    tiny.outputs(model, tiny.images('mmpretrain_swin', odd=True))
    assert [tuple(shape) for shape in seen] == [(2, 16, 10, 14)]


def test_beside_the_convolution_of_a_block_without_attention():
    x = tiny.images('mmpretrain_convnext')
    model = mmpetl.inject(tiny.base('mmpretrain_convnext'), ConvAdapter(4))
    sites = tiny.record(model).slots['0'].sites
    assert {site.kind for site in sites} == {'mix'}
    before = tiny.outputs(model, x)
    tiny.shake_(model)
    assert not torch.allclose(tiny.outputs(model, x)[-1], before[-1])


def test_video_is_convolved_frame_by_frame():
    delta = one()
    x, y = (torch.randn(2, 2 * 12, 8, dtype=torch.double) for _ in range(2))
    clip = delta.after(x, y, Context((2, 3, 4)))
    for t in range(2):
        part = slice(12 * t, 12 * t + 12)
        frame = delta.after(x[:, part], y[:, part], Context((3, 4)))
        torch.testing.assert_close(clip[:, part], frame)


def test_zero_init_is_the_frozen_model_bit_for_bit(stem):
    x = tiny.images(stem)
    model = mmpetl.inject(tiny.base(stem), ConvAdapter(4, zero_init=True))
    model.eval()
    got, want = tiny.outputs(model, x), tiny.plain_outputs(stem)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    ('args', 'said'),
    [({'reduction': 5}, 'divides the width'), ({'kernel_size': 2}, 'odd kernel_size')],
)
def test_what_does_not_fit_is_refused_in_one_line(args, said):
    with pytest.raises(PETLError, match=said) as error:
        mmpetl.inject(tiny.base('timm_vit'), ConvAdapter(**args))
    assert '\n' not in str(error.value)
