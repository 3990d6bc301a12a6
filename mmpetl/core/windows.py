"""Windows on a grid of any number of axes, as functions of tensors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpetl.core.context import Context

CACHE_BYTES = 16 * 2**20
"""What either cache below holds at most: 27 tables of an 8 x 7 x 7 window (0.59 MiB),
or the regions of 160 grids of 16 x 56 x 56 (98 KiB)."""


class ByteCache:
    """A function of arrays that remembers what it gave, the least used leaving first.

    Args:
        make: From what can be hashed to an array, which nobody writes to.
        limit_bytes: What the arrays may take together; a larger one is not kept.
    """

    def __init__(self, make: Callable[..., np.ndarray], limit_bytes: int) -> None:
        self.make, self.limit_bytes = make, limit_bytes
        self.arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self.held_bytes = 0
        self.lock = Lock()

    def __call__(self, *key: tuple[int, ...]) -> np.ndarray:
        with self.lock:
            if key in self.arrays:
                self.arrays.move_to_end(key)
                return self.arrays[key]
        array = self.make(*key)
        with self.lock:
            if array.nbytes <= self.limit_bytes and key not in self.arrays:
                self.arrays[key] = array
                self.held_bytes += array.nbytes
            while self.held_bytes > self.limit_bytes:
                self.held_bytes -= self.arrays.popitem(last=False)[1].nbytes
        return array


remembered = partial(ByteCache, limit_bytes=CACHE_BYTES)


def padded_grid(grid: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest grid of whole windows that holds ``grid``."""
    return tuple(-(-g // w) * w for g, w in zip(grid, window, strict=True))


def to_windows(
    x: Tensor,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    roll_first: bool = False,
) -> Tensor:
    """Pad with zeros at the far ends, shift, and cut into windows.

    Args:
        x: (B, N, C) with N = prod(grid).
        grid: Extents of the grid.
        window: Extents of a window.
        shift: How far the grid is rolled towards the origin, per axis.
        roll_first: Whether the shift comes in front of the padding.

    Returns:
        (B * windows, prod(window), C), image-major.
    """
    b, _, c = x.shape
    x = x.view(b, *grid, c)
    full = padded_grid(grid, window)
    back, axes = tuple(-s for s in shift), tuple(range(1, len(grid) + 1))
    if any(shift) and roll_first:
        x = torch.roll(x, back, axes)
    if full != grid:
        pads = [p for g, f in zip(grid, full, strict=True) for p in (f - g, 0)]
        x = F.pad(x, (0, 0, *reversed(pads)))
    if any(shift) and not roll_first:
        x = torch.roll(x, back, axes)
    cut = [n for f, w in zip(full, window, strict=True) for n in (f // w, w)]
    x = x.view(b, *cut, c)
    outer = [2 * i + 1 for i in range(len(grid))]
    inner = [2 * i + 2 for i in range(len(grid))]
    x = x.permute(0, *outer, *inner, x.ndim - 1)
    return x.reshape(-1, math.prod(window), c)


def from_windows(
    x: Tensor,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    roll_first: bool = False,
) -> Tensor:
    """Undo :func:`to_windows`: (B * windows, prod(window), C) -> (B, N, C)."""
    c = x.shape[-1]
    full = padded_grid(grid, window)
    counts = [f // w for f, w in zip(full, window, strict=True)]
    x = x.view(-1, *counts, *window, c)
    n = len(grid)
    order = [a for i in range(n) for a in (1 + i, 1 + n + i)]
    x = x.permute(0, *order, 2 * n + 1).reshape(-1, *full, c)
    axes = tuple(range(1, n + 1))
    if any(shift) and not roll_first:
        x = torch.roll(x, shift, axes)
    if full != grid:
        x = x[(slice(None), *(slice(g) for g in grid))]
    if any(shift) and roll_first:
        x = torch.roll(x, shift, axes)
    return x.flatten(1, -2)


@remembered
def _region_array(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> np.ndarray:
    """Number of the region that each token of each window comes from.

    Returns:
        (windows, N) in int16: a few bytes per token, whatever the window.
    """
    full = padded_grid(grid, window)
    region = np.zeros(full, dtype=np.int16)
    for axis, (f, w, s) in enumerate(zip(full, window, shift, strict=True)):
        at = np.arange(f)
        part = (at >= f - w).astype(np.int16) + (at >= f - s) if s else 0 * at
        shape = [1] * len(full)
        shape[axis] = f
        region = region * 3 + part.reshape(shape)
    cut = [n for f, w in zip(full, window, strict=True) for n in (f // w, w)]
    axes = range(2 * len(full))
    region = region.reshape(cut).transpose(*axes[::2], *axes[1::2])
    return np.ascontiguousarray(region.reshape(-1, math.prod(window)), dtype=np.int16)


@remembered
def _row_array(window: tuple[int, ...], table: tuple[int, ...]) -> np.ndarray:
    """Row of a relative position table for each pair of tokens of a window.

    Args:
        window: Extents of the window at hand.
        table: Extents of the window that the table was made for, at least as large.

    Returns:
        (N, N) with N = prod(window), row-major over the axes, in int32.
    """
    at = np.indices(window, dtype=np.int32).reshape(len(window), -1)
    rows = np.zeros((at.shape[1],) * 2, dtype=np.int32)
    for place, w in zip(at, table, strict=True):
        rows = rows * (2 * w - 1) + place[:, None] - place[None, :] + w - 1
    return rows


def _regions(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> Tensor:
    """:func:`_region_array` as a new tensor."""
    return torch.tensor(_region_array(grid, window, shift))


def _table_rows(window: tuple[int, ...], table: tuple[int, ...]) -> Tensor:
    """:func:`_row_array` as a new tensor."""
    return torch.tensor(_row_array(window, table))


# A compiled pass keeps what these two give as constants, and looks into no cache. The
# mark is that of torch.compiler.assume_constant_result, which imports the compiler.
_regions._dynamo_marked_constant = True
_table_rows._dynamo_marked_constant = True


def relative_index(window: tuple[int, ...]) -> Tensor:
    """Row of the relative position table for each pair of tokens of a window.

    Returns:
        (N, N) with values in [0, prod(2 * w - 1)), row-major over the axes.
    """
    return _table_rows(window, window).long()


@dataclass(frozen=True)
class Partition:
    """How a grid is cut into (shifted) windows.

    What is remembered between passes are small arrays of numpy, never tensors: those
    of a traced pass, of a fake one or of inference mode would poison the next.

    Attributes:
        grid: Extents of the grid.
        window: Extents of a window.
        shift: How far the grid is rolled towards the origin, per axis.
        roll_first: Whether the shift comes in front of the padding, so that zeros lie
            at the far ends of the windows and not inside of the map. The mask is the
            same.
    """

    grid: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    roll_first: bool = False

    @classmethod
    def shrunk(
        cls, grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
    ) -> Partition:
        """An axis that is no longer than the window is one window, unshifted."""
        axes = list(zip(grid, window, shift, strict=True))
        return cls(
            tuple(grid),
            tuple(min(n, w) for n, w, _ in axes),
            tuple(0 if n <= w else s for n, w, s in axes),
        )

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return math.prod(self.window)

    @property
    def count(self) -> int:
        """Windows of one image."""
        full = padded_grid(self.grid, self.window)
        return math.prod(full) // self.tokens

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B * windows, tokens, C), image-major."""
        return to_windows(x, self.grid, self.window, self.shift, self.roll_first)

    def join(self, x: Tensor) -> Tensor:
        """(B * windows, tokens, C) -> (B, N, C)."""
        return from_windows(x, self.grid, self.window, self.shift, self.roll_first)

    def mask(self, device: torch.device) -> Tensor | None:
        """What keeps tokens apart that only the cyclic shift brought together.

        Returns:
            (windows, tokens, tokens), 0 within a region and -100 across, or None
            without a shift.
        """
        if not any(self.shift):
            return None
        regions = _regions(self.grid, self.window, self.shift).to(device)
        across = regions.unsqueeze(1) != regions.unsqueeze(2)
        return across * -100.0

    def mask_in(self, ctx: Context, device: torch.device) -> Tensor | None:
        """:meth:`mask`, made once in a forward pass."""
        if self not in ctx.masks:
            ctx.masks[self] = self.mask(device)
        return ctx.masks[self]

    def table_rows(self, table: tuple[int, ...], device: torch.device) -> Tensor:
        """Rows of a relative position table that was made for windows ``table``.

        Returns:
            (tokens * tokens,).
        """
        return _table_rows(self.window, tuple(table)).to(device).long().flatten()


def shift_mask(
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
) -> Tensor | None:
    """The :meth:`Partition.mask` of a grid."""
    return Partition(tuple(grid), tuple(window), tuple(shift)).mask(device)
