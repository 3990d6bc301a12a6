"""Views into base weights through which a method writes its exact equivalent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError


@dataclass(frozen=True)
class BiasPart:
    """Rows ``start:stop`` of a bias, None where the base stores none.

    ``free``: none is needed either, since a constant added to all keys leaves softmax
    as it is.
    """

    start: int
    stop: int
    bias: Tensor | None
    free: bool = False


class Affine:
    """The map ``y = W x + b`` (or ``y = w * norm(x) + b``) behind a site, writable.

    Args:
        name: The site, for messages.
        weight: (out, in) view of the base weight, or (out,) for a norm. Writing to
            it writes to the base.
        bias: Parts of the bias that together cover all ``out`` rows.
        eps: What a norm adds to its variance, None for a projection.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        bias: tuple[BiasPart, ...],
        eps: float | None = None,
    ) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def check_writable(self) -> None:
        """Raise PETLError where an exact equivalent cannot be written.

        A quantised weight rounds what is added to it, in steps of its own.
        """
        for tensor in (self.weight, *(p.bias for p in self.bias)):
            plain = type(tensor) in (Tensor, nn.Parameter, type(None))
            if tensor is None or (plain and tensor.is_floating_point()):
                continue
            raise PETLError(
                f'{self.name} holds a {type(tensor).__name__} of '
                f'{str(tensor.dtype).removeprefix("torch.")}, into which nothing can '
                'be folded exactly; fold into a floating base, and quantise that'
            )

    @classmethod
    def of(
        cls,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        eps: float | None = None,
    ) -> Affine:
        """The map of an ordinary Linear, convolution or norm."""
        view = weight if weight.ndim == 1 else weight.flatten(1)
        return cls(name, view, (BiasPart(0, len(weight), bias),), eps)

    def copy(self) -> Affine:
        """The same map in memory of its own; writing to it leaves the base alone."""
        bias = (
            part
            if part.bias is None
            else replace(part, bias=part.bias.detach().clone())
            for part in self.bias
        )
        weight = self.weight.detach().clone()
        return Affine(self.name, weight, tuple(bias), self.eps)

    def full_bias(self) -> Tensor:
        """A copy of the bias, (out,), with zeros where the base has none."""
        zeros = torch.zeros_like(self.weight.reshape(len(self.weight), -1)[:, 0])
        return torch.cat(
            [zeros[p.start : p.stop] if p.bias is None else p.bias for p in self.bias]
        )

    def rows(self, name: str, start: int, stop: int) -> Affine:
        """The same map restricted to the rows ``start:stop`` of its output."""
        parts = tuple(
            BiasPart(
                max(p.start, start) - start,
                min(p.stop, stop) - start,
                None
                if p.bias is None
                else p.bias[
                    max(p.start, start) - p.start : min(p.stop, stop) - p.start
                ],
                p.free,
            )
            for p in self.bias
            if p.start < stop and p.stop > start
        )
        return Affine(name, self.weight[start:stop], parts)

    @torch.no_grad()
    def add_(self, delta: Tensor) -> None:
        """``W <- W + delta``, summed in float64 so that the fold rounds once."""
        total = self.weight.double() + delta.double()
        self.weight.copy_(total)

    @torch.no_grad()
    def scale_(self, scale: Tensor) -> None:
        """``W <- diag(scale) W`` and ``b <- scale * b``; ``scale`` is (out,)."""
        s = scale.double()
        by_row = s if self.weight.ndim == 1 else s[:, None]
        self.weight.copy_(self.weight.double() * by_row)
        for part in self.bias:
            if part.bias is not None:
                part.bias.copy_(part.bias.double() * s[part.start : part.stop])

    @torch.no_grad()
    def shift_(self, shift: Tensor) -> None:
        """``b <- b + shift``; ``shift`` is (out,).

        Raises:
            PETLError: A row needs a bias that the base does not have.
        """
        for part in self.bias:
            piece = shift[part.start : part.stop].double()
            if part.bias is not None:
                part.bias.copy_(part.bias.double() + piece)
            elif not part.free:
                raise PETLError(
                    f'{self.name} has no bias to fold a shift into; '
                    'build the base with one, or keep the delta unfolded'
                )
