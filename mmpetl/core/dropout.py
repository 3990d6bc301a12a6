"""Dropout whose mask is drawn in a few bits where a CPU draws it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmpetl.core.context import has_values

LEVELS = 1 << 16
"""Where :func:`dropout` draws itself, a rate is a multiple of 1 / LEVELS."""


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`, never in place."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each element with probability ``rate``, and scale up the others.

    On a CPU PyTorch draws a number for each element, and keeps a float of each for the
    backward pass. Here four elements share the 64 bits that its generator gives at
    once, which rounds the rate to the nearest multiple of 1 / 65,536, and a byte of
    each is kept. Elsewhere, of a parameter itself, in a trace and under a compiler it
    is PyTorch's.

    Args:
        x: Any shape.
        rate: Between 0 and 1.
    """
    if not _draws(x, rate):
        return F.dropout(x, rate)
    stays = _drawn(x, rate)
    if x.requires_grad and torch.is_grad_enabled():
        return Dropped.apply(x, stays, rate)
    return only_those(x, stays, rate)


def dropped(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """What :func:`dropout` gives, and where elements stay; keeps nothing."""
    if not _draws(x, rate):
        return torch.native_dropout(x, rate, True)
    stays = _drawn(x, rate)
    return only_those(x, stays, rate), stays


def only_those(x: Tensor, stays: Tensor, rate: float) -> Tensor:
    """Elements that stay, scaled up as :func:`dropped` scales, and zeros."""
    if not _draws(x, rate):
        scale = 1 / (1 - rate)
        return torch.ops.aten.native_dropout_backward(x, stays, scale)
    scale = LEVELS / (LEVELS - _levels(rate))
    # One pass, and by bytes for booleans would take twice as long.
    return torch.addcmul(x.new_zeros(()), x, stays.view(torch.int8), value=scale)


def _levels(rate: float) -> int:
    return round(rate * LEVELS)


def _draws(x: Tensor, rate: float) -> bool:
    """Whether the mask of x is drawn here."""
    fits = x.is_cpu and x.is_floating_point() and has_values(x)
    return fits and 0 < _levels(rate) < LEVELS


def _drawn(x: Tensor, rate: float) -> Tensor:
    """True where an element of x stays, of its shape; by PyTorch's own generator."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None)  # all 64
    lowest = _levels(rate) - LEVELS // 2
    return (bits.view(torch.int16)[: x.numel()] >= lowest).view(x.shape)


class Dropped(Function):
    """:func:`only_those`, which keeps a byte for each element."""

    @staticmethod
    def forward(x: Tensor, stays: Tensor, rate: float) -> Tensor:
        return only_those(x, stays, rate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, stays, ctx.rate = inputs
        ctx.save_for_backward(stays)
        ctx.save_for_forward(stays)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (stays,) = ctx.saved_tensors
        return only_those(grad, stays, ctx.rate), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (stays,) = ctx.saved_tensors
        return only_those(tangent, stays, ctx.rate)
