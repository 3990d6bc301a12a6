"""Views into base weights through which a method writes its exact equivalent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def in_rows(module: nn.Module) -> Iterator[None]:
    """Let every weight lie row by row meanwhile, so that maps are views of weights.

    The kernels of a model in ``torch.channels_last`` do not, and a matrix of their rows
    is a copy: what is written to it is lost. Behind this they lie as they did.
    """
    moved = {}
    for param in module.parameters():
        form = FORMATS.get(param.ndim) if type(param) is nn.Parameter else None
        if form is None or param.is_contiguous():
            continue
        if param.is_contiguous(memory_format=form):
            moved[param] = param.data
            param.data = param.data.contiguous()
    try:
        yield
    finally:
        for param, own in moved.items():
            own.copy_(param.data)
            param.data = own


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Layouts of kernels whose channels lie last, by axes."""


def _bits_of(weight: Tensor) -> int | None:
    """Bits of a :class:`~mmpetl.core.packed.PackedWeight`, None of any other."""
    return getattr(weight, 'bits', None)


class Affine:
    """The map ``y = W x + b`` (or ``y = w * norm(x) + b``) behind a site, writable.

    Args:
        name: The site, for messages.
        weight: (out, in) view of the base weight, or (out,) for a norm; several views
            where several weights hold the rows of one map. Writing to them writes to
            the base.
        bias: Parts of the bias that together cover all ``out`` rows.
        eps: What a norm adds to its variance, None for a projection.

    Attributes:
        tied: Why it can be read but not written to, as one clause, None where it can:
            what else the base does with these weights.
        bits: Of frozen weights that :func:`mmpetl.quantise` has packed, None where none
            is; rows of these are unpacked copies, to which nothing is written.
    """

    tied: str | None = None
    _base: Affine | None = None

    def __init__(
        self,
        name: str,
        weight: Tensor | tuple[Tensor, ...],
        bias: tuple[BiasPart, ...],
        eps: float | None = None,
    ) -> None:
        self.name = name
        self.weights = (weight,) if isinstance(weight, Tensor) else weight
        self.bias = bias
        self.eps = eps
        found = (_bits_of(w) for w in self.weights)
        self.bits: int | None = next((bits for bits in found if bits), None)

    @property
    def weight(self) -> Tensor:
        """All rows, (out, in) or (out,): to read; a view of the base if it is one."""
        return self.weights[0] if len(self.weights) == 1 else torch.cat(self.weights)

    @property
    def tensors(self) -> list[Tensor]:
        """Views of every base tensor behind the map, weights first."""
        return [*self.weights, *(p.bias for p in self.bias if p.bias is not None)]

    @property
    def base(self) -> Affine:
        """The map as it was before any method was folded into it.

        For deltas that read base weights (:attr:`Delta.reads_base`), beside others at
        the same weights. It may be this very map: read it before you write.
        """
        return self if self._base is None else self._base

    def keep_base(self) -> None:
        """Remember the map as it is now, as :attr:`base`."""
        self._base = self.copy()

    def check_readable(self) -> None:
        """Raise PETLError where nothing can be computed from the stored numbers.

        Weights that :func:`mmpetl.quantise` has packed act as the values they stand
        for, and can be read.
        """
        for kind in self._packed(of_others=True):
            raise PETLError(
                f'{self.name} holds a {kind}, whose numbers are no weights; take a '
                'floating base, or a method that reads no base weights, such as LoRA'
            )

    def check_writable(self) -> None:
        """Raise PETLError where an exact equivalent cannot be written.

        A quantised weight rounds what is added to it, in steps of its own.
        """
        if self.tied is not None:
            raise PETLError(
                f'what {self.name} has learnt cannot be folded: {self.tied}; keep the '
                'delta unfolded'
            )
        if self.bits is not None:
            raise PETLError(
                f'{self.name} holds a frozen weight of {self.bits} bits, into which '
                'nothing can be folded exactly; save the delta and fold it into the '
                'floating base (mmpetl fold DELTA OUT --base FILE)'
            )
        for kind in self._packed():
            raise PETLError(
                f'{self.name} holds a {kind}, into which nothing can be folded '
                'exactly; fold into a floating base, and quantise that'
            )

    def _packed(self, of_others: bool = False) -> list[str]:
        """Class and dtype of each tensor that does not hold plain floating numbers.

        Args:
            of_others: Whether those of :func:`mmpetl.quantise` are left out.
        """
        return [
            f'{type(tensor).__name__} of {str(tensor.dtype).removeprefix("torch.")}'
            for tensor in self.tensors
            if not (of_others and _bits_of(tensor))
            and (
                type(tensor) not in (Tensor, nn.Parameter)
                or not tensor.is_floating_point()
            )
        ]

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
        weights = tuple(weight.detach().clone() for weight in self.weights)
        return Affine(self.name, weights, tuple(bias), self.eps)

    def full_bias(self) -> Tensor:
        """A copy of the bias, (out,), with zeros where the base has none."""
        first = self.weights[0]
        zeros = first.new_zeros(sum(len(weight) for weight in self.weights))
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
        weights, row = [], 0
        for weight in self.weights:
            low, high = max(start - row, 0), min(stop - row, len(weight))
            if low < high:
                weights.append(weight[low:high])
            row += len(weight)
        found = Affine(name, tuple(weights), parts, self.eps)
        found.bits = self.bits
        return found

    def _check_shape(self, verb: str, given: Tensor, width: Sequence[int] = ()) -> None:
        # torch would broadcast, and fold something else without a word.
        needed = (sum(map(len, self.weights)), *width)
        if tuple(given.shape) != needed:
            raise PETLError(
                f'{self.name}: Affine.{verb} takes a tensor of shape {needed}, got '
                f'{tuple(given.shape)}'
            )

    @torch.no_grad()
    def add_(self, delta: Tensor) -> None:
        """``W <- W + delta``, summed in float64 so that the fold rounds once.

        Raises:
            PETLError: ``delta`` has another shape than the weight.
        """
        self._check_shape('add_', delta, self.weights[0].shape[1:])
        row = 0
        for weight in self.weights:
            piece = delta[row : row + len(weight)].double()
            weight.copy_(weight.double() + piece)
            row += len(weight)

    @torch.no_grad()
    def scale_(self, scale: Tensor) -> None:
        """``W <- diag(scale) W`` and ``b <- scale * b``; ``scale`` is (out,).

        Raises:
            PETLError: ``scale`` has another shape.
        """
        self._check_shape('scale_', scale)
        s, row = scale.double(), 0
        for weight in self.weights:
            piece = s[row : row + len(weight)]
            by_row = piece if weight.ndim == 1 else piece[:, None]
            weight.copy_(weight.double() * by_row)
            row += len(weight)
        for part in self.bias:
            if part.bias is not None:
                part.bias.copy_(part.bias.double() * s[part.start : part.stop])

    @torch.no_grad()
    def shift_(self, shift: Tensor) -> None:
        """``b <- b + shift``; ``shift`` is (out,).

        Raises:
            PETLError: A row needs a bias that the base does not have, or ``shift`` has
                another shape.
        """
        self._check_shape('shift_', shift)
        for part in self.bias:
            piece = shift[part.start : part.stop].double()
            if part.bias is not None:
                part.bias.copy_(part.bias.double() + piece)
            elif not part.free and piece.any():
                raise PETLError(
                    f'{self.name} has no bias to fold a shift into; '
                    'build the base with one, or keep the delta unfolded'
                )
