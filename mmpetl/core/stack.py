"""Linear maps however a backbone stores them: fused, split, as 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.affine import Affine, BiasPart

PLAIN = (
    'torch.nn.modules',
    'timm.layers.linear',
    'timm.layers.norm',
    'mmcv.cnn.bricks.wrappers',
    'mmpretrain.models.utils.norm',
)
"""Modules whose layers compute ``W x + b``, or a scale and a shift of a norm."""


def is_plain(cls: type[nn.Module]) -> bool:
    """Whether the forward pass of a layer is that of a known class."""
    owner = next(c for c in cls.__mro__ if 'forward' in c.__dict__)
    return owner.__module__.startswith(PLAIN)


class Rows:
    """A linear map that acts on the last axis, with views of what it is made of.

    Args:
        weight: (out, in), or of a 1x1 convolution (out, in, 1, ...).
        bias: (out,) or None; or several parts: a tensor for rows with a bias, an int
            for that many rows without one.
        call: What computes the map, where that is more than its weight and bias say
            (a quantised Linear, hooks); by default both are read.
        free: Whether rows without a bias need none (see
            :class:`~mmpetl.core.affine.BiasPart`). Keys do need one where rotary
            positions or a norm per head stand in front of the scores.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | Sequence[Tensor | int] | None = None,
        call: Callable[[Tensor], Tensor] | None = None,
        free: bool = True,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.call = call
        self.free = free

    @classmethod
    def of(cls, module: nn.Module | Rows) -> Rows:
        """The map of a Linear, or of a convolution with kernels of one element.

        Convolutions are applied to (B, N, C), channels last.
        """
        if isinstance(module, Rows):
            return module
        if isinstance(module, nn.modules.conv._ConvNd):
            return cls(module.weight, module.bias)
        return cls(module.weight, module.bias, module)

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.weight)

    @property
    def is_plain(self) -> bool:
        """Whether weight and bias say all that the map computes."""
        if type(self.weight) not in (Tensor, nn.Parameter):
            return False
        call = self.call
        if not isinstance(call, nn.Linear):
            return call is None
        return is_plain(type(call)) and not _is_watched(call)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.call is not None:
            return self.call(x)
        weight = self.weight if self.weight.ndim == 2 else self.weight.flatten(1)
        return F.linear(x, weight, self.full_bias())

    def full_bias(self) -> Tensor | None:
        """(out,), zeros where rows have none; None where no row has one."""
        if self.bias is None or isinstance(self.bias, Tensor):
            return self.bias
        return torch.cat(
            [self.weight.new_zeros(b) if isinstance(b, int) else b for b in self.bias]
        )

    def cut(self, size: int) -> tuple[Rows, Rows]:
        """The first ``size`` rows, and the rest, as maps of their own."""
        if self.bias is None:
            biases = (None, None)
        elif isinstance(self.bias, Tensor):
            biases = (self.bias[:size], self.bias[size:])
        else:
            biases = (tuple(self.bias[:1]), tuple(self.bias[1:]))
        weights = (self.weight[:size], self.weight[size:])
        return tuple(
            Rows(w, b, free=self.free) for w, b in zip(weights, biases, strict=True)
        )

    def bias_parts(self, start: int = 0) -> tuple[BiasPart, ...]:
        """The parts of the bias, their rows counted from ``start``."""
        if self.bias is None or isinstance(self.bias, Tensor):
            return (BiasPart(start, start + self.size, self.bias),)
        parts = []
        for b in self.bias:
            size = b if isinstance(b, int) else len(b)
            bare = isinstance(b, int)
            free = bare and self.free
            parts.append(BiasPart(start, start + size, None if bare else b, free))
            start += size
        return tuple(parts)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks run beside the forward pass of a module, or in its place."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    return any((*hooks, module._backward_hooks, module._backward_pre_hooks))


class Stack:
    """Several linear maps of one input as one logical projection, row under row.

    Queries, keys and values of any trunk, or gate and value of a gated feed-forward
    network.

    Args:
        rows: Maps in the order of their rows, each a module or :class:`Rows`.
        sizes: Rows of each logical part (q, k, v); by default the rows of each map, or
            thirds of a single one.
    """

    def __init__(
        self, *rows: nn.Module | Rows, sizes: Sequence[int] | None = None
    ) -> None:
        self.rows = tuple(Rows.of(part) for part in rows)
        if sizes is None:
            sizes = [part.size for part in self.rows]
            if len(sizes) == 1:
                sizes = [sizes[0] // 3] * 3
        self.sizes = tuple(sizes)

    @classmethod
    def of(cls, projection: Stack | nn.Module | Rows) -> Stack:
        """A stack as it is; a fused projection as q, k and v."""
        return projection if isinstance(projection, Stack) else cls(projection)

    @property
    def fused(self) -> bool:
        """Whether one map holds all rows."""
        return len(self.rows) == 1

    def __call__(self, x: Tensor) -> Tensor:
        """All rows, (B, N, in) -> (B, N, out)."""
        if self.fused:
            return self.rows[0](x)
        return torch.cat([part(x) for part in self.rows], dim=-1)

    def parts(self, x: Tensor, others: Tensor | None = None) -> list[Tensor]:
        """The logical parts, each (B, N, size).

        Args:
            x: What all parts read, (B, N, in).
            others: What all parts but the first read, where that is something else.
        """
        rows = self.rows
        if others is None:
            found = [part(x) for part in rows]
        else:
            size = self.sizes[0]
            if rows[0].size > size:
                rows = (*rows[0].cut(size), *rows[1:])
            found = [rows[0](x), *(part(others) for part in rows[1:])]
        parts: list[Tensor] = []
        for y in found:
            held, width = [], 0
            while width < y.shape[-1]:
                held.append(self.sizes[len(parts) + len(held)])
                width += held[-1]
            parts += [y] if len(held) == 1 else y.split(held, dim=-1)
        return parts

    def part(self, index: int) -> Rows | None:
        """A logical part as a map of its own; None where its rows cannot be cut out."""
        first, size = sum(self.sizes[:index]), self.sizes[index]
        for rows in self.rows:
            if (first, size) == (0, rows.size):
                return rows
            if first + size <= rows.size:
                own = slice(first, first + size)
                bias = rows.full_bias()
                bias = None if bias is None else bias[own]
                return Rows(rows.weight[own], bias) if rows.is_plain else None
            first -= rows.size
        return None

    def affine(self, name: str, part: int | None = None) -> Affine:
        """The stack as an affine map, or one of its logical parts."""
        bias: tuple[BiasPart, ...] = ()
        start = 0
        for rows in self.rows:
            bias += rows.bias_parts(start)
            start += rows.size
        weights = tuple(
            r.weight if r.weight.ndim == 2 else r.weight.flatten(1) for r in self.rows
        )
        whole = Affine(name, weights, bias)
        if part is None:
            return whole
        first = sum(self.sizes[:part])
        return whole.rows(name, first, first + self.sizes[part])


def affine_of(name: str, projection: nn.Module | Rows | Stack) -> Affine | None:
    """The affine map of what a block calls, None where it has no weight."""
    if isinstance(projection, Stack):
        return projection.affine(name)
    if isinstance(projection, Rows):
        return Stack(projection).affine(name)
    if getattr(projection, 'weight', None) is None:
        return None
    eps = getattr(projection, 'eps', None)
    bias = getattr(projection, 'bias', None)
    return Affine.of(name, projection.weight, bias, eps)
