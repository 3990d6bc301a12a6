"""Frozen weights in few bits: what stands in the place of a Linear's weight.

torchao (Apache, an extra) quantises, packs and unpacks. What is ours is how such a
weight behaves in a frozen trunk: a product unpacks it for as long as it runs, in the
forward pass and once more in the backward pass, so that no unpacked copy is kept; any
other operation sees the values that it stands for; and nothing can be written to it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_map

from mmpetl.compat.extras import pip_line
from mmpetl.core.errors import PETLError

BITS = (8, 4)
"""Bits of an entry."""

BLOCK = 64
"""Entries of 4 bits that share a scale, as in QLoRA."""

SCALES = 256
"""Scales of 4-bit blocks that share one of their own, at most."""


def drop_writes(weights: Iterable[Tensor], step: int) -> None:
    """Begin (1) or end (-1) to take writes to packed weights for none."""
    for weight in weights:
        if isinstance(weight, PackedWeight):
            weight.dropping += step


class PackedWeight(Tensor):
    """A frozen (out, in) weight in few bits, which acts as the values it stands for.

    Args:
        packed: torchao's tensor.
        dtype: Of the values that operations see; that of the tensor by default.

    Attributes:
        packed: torchao's tensor: integers and scales.
        bits: Bits of an entry.
        dropping: Above 0, what is written to it has no effect, and is no error.
    """

    packed: Tensor
    bits: int
    dropping: int

    @staticmethod
    def __new__(
        cls: type[PackedWeight],
        packed: Tensor,
        bits: int,
        dtype: torch.dtype | None = None,
    ) -> PackedWeight:
        return Tensor._make_wrapper_subclass(
            cls,
            packed.shape,
            dtype=packed.dtype if dtype is None else dtype,
            device=packed.device,
            requires_grad=False,
        )

    def __init__(
        self, packed: Tensor, bits: int, dtype: torch.dtype | None = None
    ) -> None:
        self.packed, self.bits, self.dropping = packed, bits, 0

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> PackedWeight:
        """Quantise a weight.

        8 bits: per row, symmetric, one float32 scale. 4 bits: NF4 of QLoRA
        (arXiv:2305.14314), blocks of 64 whose scales are in 8 bits themselves.

        Args:
            weight: (out, in), floating; of 4 bits a multiple of 64 entries.
            bits: 8 or 4.

        Raises:
            PETLError: torchao is not installed.
        """
        ao = torchao()
        weight = weight.detach().contiguous()
        if bits == 8:
            return cls(ao.Int8Tensor.from_hp(weight, ao.PerRow()), bits)
        blocks = weight.numel() // BLOCK
        shared = next(n for n in range(SCALES, 0, -1) if blocks % n == 0)
        # Some of its parts are views of larger tensors.
        return cls(_map(_apart, ao.to_nf4(weight, BLOCK, shared)), bits)

    def plain(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values that it stands for, (out, in), in memory of their own."""
        unpack = getattr(self.packed, 'get_original_weight', None)
        values = self.packed.dequantize() if unpack is None else unpack()
        return values.to(self.dtype if dtype is None else dtype)

    def map(self, fn: Callable[[Tensor], Tensor]) -> PackedWeight:
        """The same weight with ``fn`` of its integers and scales."""
        return PackedWeight(_map(fn, self.packed), self.bits, self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f'PackedWeight({tuple(self.shape)}, bits={self.bits})'

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        if id(self) not in memo:
            copy = self.map(torch.clone)
            left_out = ('packed', 'dropping')
            copy.__dict__.update(
                {k: v for k, v in self.__dict__.items() if k not in left_out}
            )
            memo[id(self)] = copy
        return memo[id(self)]

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ['packed'], (self.bits, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], facts: Any, size: Any, stride: Any
    ) -> PackedWeight:
        return PackedWeight(inner['packed'], *facts)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear:
            return linear(*args, **(kwargs or {}))
        # Results are plain tensors, and not of this class.
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        own = args[0] if args and isinstance(args[0], PackedWeight) else None
        if own is not None and func in _KEEP:
            result = own.map(_KEEP[func])
            result.dropping = own.dropping
            return result
        if own is not None and func is torch.ops.aten._to_copy.default:
            dtype = kwargs.get('dtype') or own.dtype
            where = kwargs.get('device') or own.device
            wait = not kwargs.get('non_blocking')
            moved = _map(lambda part: part.to(where, non_blocking=not wait), own.packed)
            return PackedWeight(moved, own.bits, dtype)
        if own is not None and _writes_first(func):
            if own.dropping > 0 or _is_itself(func, own, args):
                return own
            raise PETLError(
                f'{func.overloadpacket.__name__} would write to a frozen weight of '
                f'{own.bits} bits, which holds no other values; change the base before '
                'mmpetl.quantise'
            )
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))


_KEEP: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.ops.aten.detach.default: torch.detach,
    torch.ops.aten.alias.default: torch.detach,
    torch.ops.aten.clone.default: torch.clone,
}
"""What gives a packed weight again."""


def _writes_first(func: Any) -> bool:
    """Whether an operation writes to its first argument."""
    arguments = func._schema.arguments
    info = arguments[0].alias_info if arguments else None
    return info is not None and info.is_write


def _is_itself(func: Any, own: PackedWeight, args: tuple[Any, ...]) -> bool:
    """Whether the values that it has are copied to it, as DDP does when it begins."""
    if func is not torch.ops.aten.copy_.default or args[1].shape != own.shape:
        return False
    return torch.equal(own.plain(), _plain(args[1]).to(own.device, own.dtype))


def _plain(x: Any) -> Any:
    return x.plain() if isinstance(x, PackedWeight) else x


def _apart(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def _map(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    flatten = getattr(tensor, '__tensor_flatten__', None)
    if flatten is None:
        return fn(tensor)
    names, facts = flatten()
    inner = {name: _map(fn, getattr(tensor, name)) for name in names}
    unflatten = type(tensor).__tensor_unflatten__
    return unflatten(inner, facts, tensor.shape, tensor.stride())


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, but of packed ones."""
    flatten = getattr(tensor, '__tensor_flatten__', None)
    if flatten is None:
        yield tensor
    else:
        for name in flatten()[0]:
            yield from stored(getattr(tensor, name))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` of a packed weight.

    Args:
        x: (..., in).
        weight: (out, in), packed.
        bias: (out,) or None.
    """
    if not isinstance(weight, PackedWeight):
        return F.linear(_plain(x), weight, _plain(bias))
    if not torch.is_grad_enabled():
        return F.linear(x, weight.plain(x.dtype), bias)
    return PackedLinear.apply(x, weight, bias)


class PackedLinear(Function):
    """A product that keeps the packed weight, and unpacks it once more."""

    @staticmethod
    def forward(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight.plain(x.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        # Not among the saved tensors: it lives with the model anyway.
        _, ctx.weight, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ ctx.weight.plain(grad.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return to_x, None, to_bias


def torchao() -> Any:
    """Torchao's module of quantised tensors.

    Raises:
        PETLError: It is not installed, or too old.
    """
    if importlib.util.find_spec('torchao') is None:
        raise PETLError(
            f'a base in few bits needs torchao, which is not installed: '
            f'{pip_line("quantised")}'
        )
    import torchao.quantization as found

    if not hasattr(found, 'to_nf4') or not hasattr(found, 'Int8Tensor'):
        raise PETLError(
            'a base in few bits needs a newer torchao than the one that is installed: '
            f'{pip_line("quantised")}'
        )
    return found
