"""Writing exact equivalents into base weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpetl.core import Affine, BiasPart, PETLError


def _linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(4, 6, bias=bias).double()


def _x() -> torch.Tensor:
    return torch.randn(5, 4, dtype=torch.float64)


@torch.no_grad()
def test_add_scale_and_shift_compose_as_maps() -> None:
    linear, x = _linear(), _x()
    affine = Affine.of('here', linear.weight, linear.bias)
    y = linear(x)
    update, scale, shift = (
        torch.randn(6, 4).double(),
        torch.randn(6).double(),
        torch.randn(6).double(),
    )
    affine.add_(update)
    affine.scale_(scale)
    affine.shift_(shift)
    expected = (y + x @ update.T) * scale + shift
    torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_rows_write_to_their_part_only() -> None:
    linear, x = _linear(), _x()
    y = linear(x)
    rows = Affine.of('qkv', linear.weight, linear.bias).rows('k', 2, 4)
    rows.add_(torch.ones(2, 4))
    rows.shift_(torch.full((2,), 3.0))
    moved = linear(x) - y
    assert torch.equal(moved[:, :2], torch.zeros(5, 2).double())
    assert torch.equal(moved[:, 4:], torch.zeros(5, 2).double())
    expected = x.sum(1, keepdim=True) + 3
    torch.testing.assert_close(moved[:, 2:4], expected.expand(-1, 2))


@torch.no_grad()
def test_a_convolution_is_its_matrix() -> None:
    conv = nn.Conv2d(3, 6, 2, 2).double()
    x = torch.randn(2, 3, 4, 4).double()
    y = conv(x)
    Affine.of('patches', conv.weight, conv.bias).scale_(torch.arange(6.0))
    torch.testing.assert_close(conv(x), y * torch.arange(6.0)[:, None, None])


@torch.no_grad()
def test_a_norm_scales_by_channel() -> None:
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 6).double()
    y = norm(x)
    affine = Affine.of('norm', norm.weight, norm.bias)
    affine.scale_(torch.full((6,), 2.0))
    affine.shift_(torch.ones(6))
    torch.testing.assert_close(norm(x), 2 * y + 1)


def test_a_shift_without_a_bias_is_refused() -> None:
    linear = _linear(bias=False)
    affine = Affine.of('layers.0:attn.proj', linear.weight, None)
    affine.scale_(torch.ones(6))
    with pytest.raises(PETLError, match='layers.0:attn.proj has no bias'):
        affine.shift_(torch.ones(6))


def test_a_shift_of_keys_without_a_bias_is_dropped() -> None:
    q, v = torch.zeros(2), torch.zeros(2)
    parts = (BiasPart(0, 2, q), BiasPart(2, 4, None, free=True), BiasPart(4, 6, v))
    affine = Affine('qkv', torch.zeros(6, 4), parts)
    affine.shift_(torch.arange(6.0))
    assert q.tolist() == [0, 1]
    assert v.tolist() == [4, 5]
    affine.rows('v', 4, 6).shift_(torch.ones(2))
    assert v.tolist() == [5, 6]
    affine.rows('k', 2, 4).shift_(torch.ones(2))


@torch.no_grad()
def test_sums_round_once() -> None:
    # 1 + 2^-24 + 2^-24 is 1 in steps of float32 and above 1 in one.
    weight = torch.ones(1, 1)
    Affine.of('w', weight, None).add_(torch.full((1, 1), 2.0**-23, dtype=torch.float64))
    assert weight.item() == 1 + 2.0**-23
