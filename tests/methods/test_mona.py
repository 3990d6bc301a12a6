"""Mona: multi-scale depthwise convolutions in a bottleneck behind both sums."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths

import mmpetl
from mmpetl.core import Context, Site
from mmpetl.methods.mona import Depthwise, Mona, ScaledDown, convolved


def delta(dims: int = 12, **args) -> torch.nn.Module:
    site = Site('attn.sum', 'b', dims, dims)
    made = Mona(hidden_dims=8, **args).build(site).double().eval()
    with torch.no_grad():
        for param in made.parameters():
            param.add_(0.3 * torch.randn_like(param))
    return made


def stream(tokens: int, dims: int = 12, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, tokens, dims, dtype=torch.double)


def branches(conv: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    """The operator as the paper writes it, one convolution after another."""
    d = z.shape[1]
    parts = [
        F.conv2d(z, dw.weight, dw.bias, padding=dw.kernel_size[0] // 2, groups=d)
        for dw in (conv.dw3, conv.dw5, conv.dw7)
    ]
    t = sum(parts) / 3 + z
    return t + F.conv2d(t, conv.mix.weight, conv.mix.bias)


@pytest.mark.parametrize(
    'host', ['vit_b', 'videomae_b', 'swin_b', 'swin_l_dense', 'video_swin_b']
)
def test_count_is_133_per_channel_and_9728_per_module(host):
    want = sum(2 * (133 * d + 9_728) for d in widths(host))
    assert counts(host, Mona()).delta == want


def test_counts_of_the_authors_code():
    assert counts('swin_b', Mona()).delta == 3_667_456
    assert counts('swin_l', Mona()).delta == 5_267_712
    assert counts('vit_b', Mona()).delta == 2_684_928
    module = Mona().build(Site('attn.sum', 'b', 768, 768))
    assert sum(p.numel() for p in module.parameters()) == 111_872


def test_start_values():
    module = Mona().build(Site('attn.sum', 'b', 768, 768))
    assert (module.gamma == 1e-6).all()
    assert (module.gamma_x == 1).all()
    assert not module.up.bias.any()
    assert not module.down.bias.any()
    assert module.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.down.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_zero_init_is_the_frozen_model_bit_for_bit(stem):
    x = tiny.images(stem)
    frozen = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), Mona(zero_init=True))
    frozen.eval(), model.eval()
    for got, want in zip(tiny.outputs(model, x), tiny.outputs(frozen, x), strict=True):
        assert torch.equal(got, want)


def test_fused_kernel_equals_the_three_branches():
    made, z = delta(), torch.randn(2, 8, 9, 11, dtype=torch.double)
    weight, bias = made.conv.fused()
    assert weight.shape == (8, 1, 7, 7)
    want = branches(made.conv, z)
    torch.testing.assert_close(made.conv(z), want, rtol=1e-10, atol=1e-10)
    grads = [
        torch.autograd.grad(out.square().sum(), list(made.conv.parameters()))
        for out in (made.conv(z), want)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('channels_last', [False, True])
def test_backward_of_a_depthwise_convolution_by_forward_ones(channels_last):
    z = torch.randn(2, 3, 5, 6).double()
    if channels_last:
        z = z.contiguous(memory_format=torch.channels_last)
    args = z, torch.randn(3, 1, 7, 7).double(), torch.randn(3).double()
    for arg in args:
        arg.requires_grad_()
    torch.testing.assert_close(Depthwise.apply(*args), convolved(*args))
    grad = torch.randn(2, 3, 5, 6).double()
    got = torch.autograd.grad(Depthwise.apply(*args), args, grad)
    want = torch.autograd.grad(convolved(*args), args, grad)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_norm_and_scales_have_the_gradients_of_their_formula():
    dims = [(2, 5, 6), (6,), (6,), (6,), (6,), (3, 6), (3,)]
    args = [torch.randn(d).double().requires_grad_() for d in dims]
    y, gamma, gamma_x, weight, bias, down, down_bias = args
    z = gamma * F.layer_norm(y, (6,), weight, bias) + gamma_x * y
    want = F.linear(z, down, down_bias)
    torch.testing.assert_close(ScaledDown.apply(*args, 1e-5), want)
    assert torch.autograd.gradcheck(lambda *a: ScaledDown.apply(*a, 1e-5), args)


def test_formula_on_a_map():
    made, y = delta(), stream(20)
    mean, var = y.mean(-1, keepdim=True), y.var(-1, unbiased=False, keepdim=True)
    normed = (y - mean) / (var + 1e-5).sqrt() * made.norm.weight + made.norm.bias
    h = made.down(made.gamma * normed + made.gamma_x * y)
    h = branches(made.conv, h.transpose(1, 2).reshape(2, 8, 4, 5)).flatten(2)
    want = y + made.up(F.gelu(h.transpose(1, 2)))
    got = made.after(stream(20), y, Context((4, 5)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_commutes_with_a_shift_of_the_map_in_its_interior():
    made, wide = delta(), stream(12 * 13).view(2, 12, 13, 12)
    left, right = (
        made.after(None, part.reshape(2, 144, 12), Context((12, 12))).view(
            2, 12, 12, 12
        )
        for part in (wide[:, :, :12], wide[:, :, 1:])
    )
    inside = slice(4, 8)
    torch.testing.assert_close(left[:, inside, 5:9], right[:, inside, 4:8])
    assert not torch.allclose(left[:, inside, 1:], right[:, inside, :-1])


def test_without_gamma_the_norm_has_no_say():
    made, y = delta(), stream(16)
    with torch.no_grad():
        made.gamma.zero_()
        before = made.after(None, y, Context((4, 4)))
        made.norm.weight.mul_(3)
        made.norm.bias.add_(1)
        assert torch.equal(made.after(None, y, Context((4, 4))), before)


def test_class_tokens_pass_the_convolutions_by():
    made, y = delta(), stream(2 + 16)
    other = torch.cat((y[:, :2], stream(16)), dim=1)
    ctx = Context((4, 4), 2)
    got = made.after(None, y, ctx)[:, :2]
    torch.testing.assert_close(got, made.after(None, other, ctx)[:, :2], rtol=0, atol=0)
    t = y[:, :2]
    h = made.down(made.gamma * made.norm(t) + made.gamma_x * t)
    torch.testing.assert_close(got, t + made.up(F.gelu(h)), rtol=1e-10, atol=1e-10)


def test_video_is_convolved_frame_by_frame():
    made, y = delta(), stream(3 * 20)
    got = made.after(None, y, Context((3, 4, 5))).view(2, 3, 20, 12)
    for t in range(3):
        frame = y.view(2, 3, 20, 12)[:, t]
        want = made.after(None, frame, Context((4, 5)))
        torch.testing.assert_close(got[:, t], want, rtol=1e-10, atol=1e-10)


def test_a_map_smaller_than_the_kernel_keeps_its_size():
    made, y = delta(), stream(6)
    assert made.after(None, y, Context((2, 3))).shape == y.shape
