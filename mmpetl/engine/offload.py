"""Activations that wait for the backward pass in the memory of the machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

LEAST = 2**20
"""Bytes that a tensor must have to be worth its way there and back."""

BESIDE_COMPILE = (
    'offload_activations is not supported beside compile, which decides by itself what '
    'a pass keeps; leave one out'
)


class Away:
    """A piece of the memory of a device that lies in the memory of the machine.

    Args:
        piece: On the device, (N,), without gaps.
    """

    __slots__ = ('_device', '_copy', '_back', '__weakref__')

    def __init__(self, piece: Tensor) -> None:
        self._device = piece.device
        # Memory that a device can read by itself, so that the processor waits for
        # neither way; their order is that of the device's stream.
        self._copy = torch.empty_like(
            piece, device='cpu', pin_memory=piece.device.type == 'cuda'
        )
        self._copy.copy_(piece, non_blocking=self._copy.is_pinned())
        self._back: Callable[[], torch.UntypedStorage | None] = _nothing

    @property
    def nbytes(self) -> int:
        """In the memory of the machine."""
        return self._copy.nbytes

    def back(self) -> Tensor:
        """The piece on its device, one for all that look at it at the same time.

        Queries, keys and values do, which are views of one piece.
        """
        piece = self._copy.new_empty(0, device=self._device)
        there = self._back()
        if there is not None:
            return piece.set_(there)
        # A copy on a CPU, too, where an estimate counts what a GPU would hold.
        piece = torch.empty_like(self._copy, device=self._device)
        piece.copy_(self._copy, non_blocking=self._copy.is_pinned())
        self._back = weakref.ref(piece.untyped_storage())
        return piece


class Kept(NamedTuple):
    """A tensor that autograd keeps, as a view of a piece that is away."""

    piece: Away
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def back(self) -> Tensor:
        """The tensor, on its device again, in the layout that it had."""
        return self.piece.back().as_strided(self.shape, self.stride, self.offset)


class Here(NamedTuple):
    """A tensor that autograd keeps and that stays on its device."""

    tensor: Tensor
    version: int

    def back(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: It has been written to, as autograd has it without hooks.
        """
        if self.tensor._version != self.version:
            shape, version = tuple(self.tensor.shape), self.tensor._version
            raise RuntimeError(
                'one of the variables needed for gradient computation has been '
                f'modified by an inplace operation: of shape {shape}, it is at version '
                f'{version}; expected {self.version}'
            )
        return self.tensor


class Offloading:
    """A forward pass in it leaves what it keeps in the memory of the machine.

    What autograd keeps for the backward pass is copied from the device to the memory of
    the machine, and back when the backward pass asks for it, so that no number changes.
    Weights and buffers stay where they are, and so does what is small. What several
    operations keep is copied once, in whatever shape they look at it. That it was
    written to through ``.data`` in between is not seen.

    On a CPU it only copies.

    Args:
        model: Whose weights and buffers stay.
        least: Bytes of a tensor that is copied.

    Attributes:
        held: Bytes that lie in the memory of the machine.
    """

    def __init__(self, model: nn.Module, least: int = LEAST) -> None:
        self.model = model
        self.least = least
        self.held = 0
        self._own: set[int] = set()
        self._devices: set[torch.device] = set()
        self._pieces: weakref.WeakKeyDictionary[
            torch.UntypedStorage, weakref.WeakValueDictionary[Any, Away]
        ] = weakref.WeakKeyDictionary()
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> Offloading:
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Offload from here on."""
        self.stop()
        own = (*self.model.parameters(), *self.model.buffers())
        self._own = {_place(x) for x in own if type(x.data) is Tensor}
        self._devices = {x.device for x in own}
        self._hooks = saved_tensors_hooks(self._leave, _fetch)
        self._hooks.__enter__()

    def stop(self) -> None:
        """End it, where it runs."""
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None

    def _leave(self, tensor: Tensor) -> Here | Kept:
        if not self._goes(tensor):
            # Without its node, which would keep itself for ever where no backward pass
            # comes by.
            own = tensor if tensor.grad_fn is None else tensor.detach()
            return Here(own, tensor._version)
        # Not seen by what counts the tensors of the device.
        with torch.no_grad(), _disable_current_modes():
            piece, offset = self._piece(tensor)
        return Kept(piece, tensor.shape, tensor.stride(), offset)

    def _piece(self, tensor: Tensor) -> tuple[Away, int]:
        """What holds a tensor in the memory of the machine, and where in it."""
        storage, first = tensor.untyped_storage(), tensor.storage_offset()
        pieces = self._pieces.setdefault(storage, weakref.WeakValueDictionary())
        length = storage.nbytes() // tensor.element_size()
        # The version, as what is written in place holds other numbers from then on.
        facts = (tensor.dtype, tensor._version)
        whole = pieces.get((0, length, facts))
        if whole is not None:
            return whole, first
        # Views with gaps, as queries among keys and values, share their storage.
        start, size = (first, tensor.numel()) if _is_dense(tensor) else (0, length)
        away = pieces.get((start, size, facts))
        if away is None:
            away = Away(tensor.detach().as_strided((size,), (1,), start))
            pieces[start, size, facts] = away
            self.held += away.nbytes
            weakref.finalize(away, self._dropped, away.nbytes)
        return away, first - start

    def _goes(self, tensor: Tensor) -> bool:
        """Whether a tensor is worth copying."""
        size = tensor.numel() * tensor.element_size()
        whole = tensor if tensor._base is None else tensor._base
        return (
            # A subclass says by itself where its parts lie; weights of a sharded base
            # are parameters that come and go with their block.
            type(tensor) is Tensor
            and not isinstance(whole, nn.Parameter)
            and tensor.device in self._devices
            and tensor.layout is torch.strided
            # Numbers of another sign than what memory holds.
            and not (tensor.is_conj() or tensor.is_neg())
            and size >= self.least
            # What is expanded would take more room there than here.
            and size <= tensor.untyped_storage().nbytes()
            and _place(tensor) not in self._own
        )

    def _dropped(self, size: int) -> None:
        self.held -= size


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_dense(tensor: Tensor) -> bool:
    """Whether elements fill a piece of memory, in any order."""
    filled = 1
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(axis for axis in axes if axis[1] != 1):
        if stride != filled:
            return False
        filled *= size
    return True


def _fetch(kept: Here | Kept) -> Tensor:
    return kept.back()


def _nothing() -> None:
    return None
