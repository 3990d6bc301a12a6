"""Conv-Adapter: a grouped convolution in a bottleneck beside attention."""

from __future__ import annotations

import copy

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths

import mmpetl
from mmpetl.apis.counting import without_memory
from mmpetl.core import Context, PETLError, Site, count_trainable
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


def join(delta: torch.nn.Module, conv: torch.nn.Conv2d) -> None:
    """Let a plain convolution of a plain model have the branch, by a hook."""
    geometry = {'stride': conv.stride, 'padding': conv.padding}
    geometry['dilation'] = conv.dilation
    act = F.gelu if isinstance(delta.act, torch.nn.GELU) else F.relu

    def added(module, args, y):
        weight, bias = delta.conv.weight, delta.conv.bias
        h = act(F.conv2d(args[0], weight, bias, groups=len(weight), **geometry))
        update = F.conv2d(h, delta.point.weight, delta.point.bias)
        return y + delta.gamma[:, None, None] * update

    conv.register_forward_hook(added)


def with_branches(plain, model, x, pairs: dict[str, torch.nn.Conv2d]):
    """The last output of a tuned model, and of the plain one with the same branches.

    Args:
        plain: The base.
        model: The tuned model.
        x: Its input.
        pairs: The convolution beside each site, by path of the site.
    """
    with torch.no_grad():
        before = tiny.outputs(plain, x)[-1]
        sites = tiny.record(model).slots['0'].sites
        assert {site.path for site in sites} == pairs.keys()
        for path, conv in pairs.items():
            join(tiny.core(model).get_submodule(f'{path}.0'), conv)
        got, want = tiny.outputs(model, x)[-1], tiny.outputs(plain, x)[-1]
    assert (want - before).abs().max() > 1e-3
    return got, want


@pytest.mark.parametrize('trunk', ['mmpretrain_convnext', 'timm_convnext'])
def test_on_convnext_beside_each_block_and_each_down_sampling(trunk):
    plain = tiny.base(trunk, torch.float64)
    model = mmpetl.inject(
        tiny.base(trunk, torch.float64), ConvAdapter(4, activation='gelu')
    )
    tiny.shake_(model.eval(), 0.3)
    convs = [m for m in plain.modules() if isinstance(m, torch.nn.Conv2d)]
    beside = {
        'mix': [conv for conv in convs if conv.groups > 1],
        'downsample.reduction': [c for c in convs if c.kernel_size == (2, 2)],
    }
    sites = tiny.record(model).slots['0'].sites
    pairs = {}
    for kind, found in beside.items():
        paths = [site.path for site in sites if site.kind == kind]
        pairs |= dict(zip(paths, found, strict=True))
    x = tiny.images(trunk, odd=True, dtype=torch.float64)
    got, want = with_branches(plain, model, x, pairs)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def resnet(depth: int = 50, **args) -> torch.nn.Module:
    from mmpretrain.models import ResNet

    return ResNet(depth, norm_eval=True, **args)


@pytest.mark.parametrize('kernel_size', [None, 5])
def test_on_a_resnet_beside_the_3_x_3_of_each_bottleneck(kernel_size):
    plain = resnet(base_channels=8, stem_channels=8, dilations=(1, 1, 1, 2)).double()
    tiny.randomise_(plain)
    model = mmpetl.inject(copy.deepcopy(plain), ConvAdapter(4, kernel_size))
    model.eval()
    tiny.shake_(model, 0.3)
    blocks = [name for name, _ in plain.named_modules() if name.endswith('.conv2')]
    sites = tiny.record(model).slots['0'].sites
    assert [site.host for site in sites] == blocks
    assert len(blocks) == 16
    if kernel_size is None:
        x = torch.randn(2, 3, 38, 53, dtype=torch.double)
        pairs = {s.path: plain.get_submodule(s.host) for s in sites}
        plain.eval()
        got, want = with_branches(plain, model, x, pairs)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    else:
        assert model(torch.randn(1, 3, 38, 53).double())[-1].shape == (1, 256, 2, 2)


def test_counts_on_convnext_t():
    from mmpretrain.models import ConvNeXt

    with without_memory():
        model = mmpetl.inject(ConvNeXt(arch='tiny'), ConvAdapter())
    each = {96: 3, 192: 3, 384: 9, 768: 3}
    blocks = sum(n * (49 * w + w // 8 + w * w // 8 + 2 * w) for w, n in each.items())
    # Twice the channels leave: 4 w + w / 8 in front, 2 w w / 8 + 2 w behind, 2 w.
    down = sum(8 * w + w // 8 + w * w // 4 for w in (96, 192, 384))
    assert count_trainable(model).delta == blocks + down == 796_848


def test_counts_on_resnet_50():
    with without_memory():
        model = mmpetl.inject(resnet(), ConvAdapter())
    each = {64: 3, 128: 4, 256: 6, 512: 3}
    want = sum(n * (9 * w + w // 8 + w * w // 8 + 2 * w) for w, n in each.items())
    assert count_trainable(model).delta == want == 199_192


def test_a_kernel_of_its_own_needs_a_convolution_that_keeps_the_map():
    model = torch.nn.Sequential()
    for name in ('a', 'b'):
        block = torch.nn.Sequential(
            torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        )
        model.add_module(name, block)
    with pytest.raises(PETLError, match='a.0:layer.conv does not; leave') as error:
        mmpetl.inject(copy.deepcopy(model), ConvAdapter(4, 5))
    assert '\n' not in str(error.value)
    mmpetl.inject(model, ConvAdapter(4))
    assert model(torch.randn(1, 8, 20, 20)).shape == (1, 8, 4, 4)


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
