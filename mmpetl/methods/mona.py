"""Mona: an adapter with depthwise convolutions behind both sums of a block.

Paper: Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual
Recognition Tasks", CVPR 2025, https://arxiv.org/abs/2408.08345, section 3.
Differs from the authors' code: none in the algebra; the three depthwise kernels are
summed before the convolution, not after it. Plain transformers (class tokens pass the
convolutions by) and video (frame by frame) are our extension.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    Site,
    autocasts,
    check_range,
    on_maps,
    records_gradients,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product
from mmpetl.registry import METHODS

KERNELS = (3, 5, 7)


def depthwise(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise convolution that keeps the size of the map.

    Args:
        z: (B, C, H, W).
        weight: (C, 1, k, k) with an odd k.
        bias: (C,).
    """
    # A GPU has kernels of its own for the backward pass, and autocast its dtypes.
    slow = z.device.type == 'cpu' and not autocasts(z)
    run = Depthwise.apply if slow and records_gradients() else convolved
    return run(z, weight, bias)


def convolved(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`depthwise` in plain operations."""
    pad = weight.shape[-1] // 2
    return F.conv2d(z, weight, bias, padding=pad, groups=len(weight))


class Depthwise(torch.autograd.Function):
    """:func:`depthwise` with a backward pass of forward convolutions.

    Those of a processor are several times as fast as its own backward pass: the
    gradient of z is g with the kernel turned round, and that of the kernel is z with
    g in the place of a kernel, both map by map.
    """

    forward = staticmethod(convolved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        to_z = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_z = convolved(grad, weight.flip(2, 3), None)
        if ctx.needs_input_grad[1]:
            pad = weight.shape[-1] // 2
            maps = F.pad(z, (pad,) * 4).flatten(0, 1)[None]
            kernels = grad.flatten(0, 1)[:, None]
            if len(kernels):  # a batch may be empty
                found = F.conv2d(maps, kernels, groups=len(kernels))
                to_weight = found.view(len(z), *weight.shape).sum(0)
            else:
                to_weight = torch.zeros_like(weight)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_z, to_weight, to_bias


class MultiScaleConv(nn.Module):
    """``Op``: t = (dw3(z) + dw5(z) + dw7(z)) / 3 + z, then t + conv1x1(t).

    z: (B, C, H, W). Convolution is linear in its kernel, so the three kernels and the
    identity become one 7x7, and the 1x1 takes up its own shortcut: one third of the
    work, and nothing but z and t kept for backward.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        for k in KERNELS:
            self.add_module(f'dw{k}', nn.Conv2d(dims, dims, k, groups=dims))
        self.mix = nn.Conv2d(dims, dims, 1)

    def fused(self) -> tuple[Tensor, Tensor]:
        """Kernel (C, 1, 7, 7) and bias (C,) of the depthwise part with its shortcut."""
        convs = [getattr(self, f'dw{k}') for k in KERNELS]
        pads = [(KERNELS[-1] - k) // 2 for k in KERNELS]
        weights = [
            F.pad(conv.weight, (pad,) * 4)
            for conv, pad in zip(convs, pads, strict=True)
        ]
        # Python's own sum begins at a zero that ONNX's exporter trips over.
        weight = reduce(torch.add, weights)
        one = F.pad(torch.ones_like(weight[..., :1, :1]), (KERNELS[-1] // 2,) * 4)
        bias = reduce(torch.add, (conv.bias for conv in convs))
        return weight / len(KERNELS) + one, bias / len(KERNELS)

    def forward(self, z: Tensor) -> Tensor:
        weight, bias = self.fused()
        t = depthwise(z, weight, bias)
        one = torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        # Channels lie last in tokens, and the 1x1 is a product there.
        mix = self.mix.weight.flatten(1) + one
        return F.linear(t.movedim(1, -1), mix, self.mix.bias).movedim(-1, 1)


def scaled_down(
    y: Tensor,
    gamma: Tensor,
    gamma_x: Tensor,
    weight: Tensor,
    bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    eps: float,
) -> Tensor:
    """``(gamma * norm(y) + gamma_x * y) down^T + down_bias``.

    Args:
        y: (B, N, C).
        gamma: (C,), as gamma_x and the weight and bias of the norm.
        gamma_x: See there.
        weight: See there.
        bias: See there.
        down: (hidden_dims, C).
        down_bias: (hidden_dims,).
        eps: Of the norm.
    """
    n = F.layer_norm(y, y.shape[-1:], gamma * weight, gamma * bias, eps)
    return F.linear(torch.addcmul(n, y, gamma_x), down, down_bias)


class ScaledDown(torch.autograd.Function):
    """:func:`scaled_down` that keeps y alone, and norms it again for backward."""

    forward = staticmethod(scaled_down)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, gamma_x, weight, bias, down = ctx.saved_tensors
        scale, shift, shape = gamma * weight, gamma * bias, y.shape[-1:]
        n, mean, rstd = torch.native_layer_norm(y, shape, scale, shift, ctx.eps)
        z, rows = n.addcmul_(y, gamma_x), grad.reshape(-1, grad.shape[-1])
        to_down = rows.T @ z.flatten(0, -2)
        to_z = grad @ down
        to_y, to_scale, to_shift = torch.ops.aten.native_layer_norm_backward(
            to_z, y, shape, mean, rstd, scale, shift, [True] * 3
        )
        return (
            to_y.addcmul_(to_z, gamma_x),
            to_scale * weight + to_shift * bias,
            (to_z * y).flatten(0, -2).sum(0),
            to_scale * gamma,
            to_shift * gamma,
            to_down,
            rows.sum(0),
            None,
        )


class MonaDelta(Delta):
    """``y + up(drop(gelu(Op(down(gamma * norm(y) + gamma_x * y)))))``.

    y: (B, num_prefix + prod(grid), dims), the stream behind the sum.
    """

    def __init__(
        self, dims: int, hidden_dims: int, drop_rate: float, zero_init: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dims)
        self.gamma = nn.Parameter(torch.full((dims,), 1e-6))
        self.gamma_x = nn.Parameter(torch.ones(dims))
        self.down = nn.Linear(dims, hidden_dims)
        self.conv = MultiScaleConv(hidden_dims)
        self.drop = Dropout(drop_rate)
        self.up = nn.Linear(hidden_dims, dims)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if zero_init:
            nn.init.zeros_(self.up.weight)

    def entered(self, y: Tensor) -> Tensor:
        """``down(gamma * norm(y) + gamma_x * y)``."""
        norm, down = self.norm, self.down
        args = y, self.gamma, self.gamma_x, norm.weight, norm.bias
        args = *args, down.weight, down.bias, norm.eps
        lean = records_gradients() and not autocasts(y)
        run = ScaledDown.apply if lean else scaled_down
        return run(*args)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        h = self.entered(y)
        h = on_maps(self.conv, h, ctx)
        h = self.drop(F.gelu(h))
        return add_product(y, h, self.up.weight, bias=self.up.bias)


@METHODS.register_module()
class Mona(Method):
    """Multi-cognitive visual adapter.

    It stands behind both residuals of a block, and behind the one of a block without
    attention (ConvNeXt), which the paper does not try.

    Args:
        hidden_dims: Width between the projections, >= 1; 64 in the authors' code,
            whatever its own argument says.
        drop_rate: Dropout behind the activation, 0.1 in the authors' code.
        zero_init: Start at the frozen model. The authors draw the up projection from
            a normal of deviation 0.02, so theirs does not.
    """

    targets = ('attn.sum', 'ffn.sum')
    # A convolutional block has one residual, and its sum is both.
    substitutes = {'attn.sum': ('ffn.sum',)}
    family = 'adapter'
    reads_grid = True
    placed = 'grid'
    sized = ('hidden_dims',)

    def __init__(
        self, hidden_dims: int = 64, drop_rate: float = 0.1, zero_init: bool = False
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.hidden_dims = hidden_dims
        self.drop_rate = drop_rate
        self.zero_init = zero_init
        self.starts_as_identity = zero_init

    def build(self, site: Site) -> MonaDelta:
        return MonaDelta(site.in_dims, self.hidden_dims, self.drop_rate, self.zero_init)
