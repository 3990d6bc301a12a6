"""Position tables for another input or window size.

The rule is one for all: bicubic, ``align_corners=False``, no anti-aliasing, class
token aside. timm anti-aliases and DINOv2's own code shifts the scale a little, so
features of a resized table differ from theirs; at the native size nothing is touched.
"""

from __future__ import annotations

from math import gcd, inf, isqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def resize_grid(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int
) -> Tensor:
    """(1, num_prefix + h*w, C) from grid ``old`` to grid ``new``, both (h, w)."""
    prefix, grid = table[:, :num_prefix], table[:, num_prefix:]
    channels = table.shape[-1]
    plane = grid.float().reshape(1, *old, channels).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=new, mode='bicubic', align_corners=False)
    grid = plane.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([prefix, grid], dim=1)


def resize_window(table: Tensor, length: int) -> Tensor:
    """Swin's (L, heads) table to ``length`` rows; both counts are odd squares.

    Raises:
        ValueError: A count of rows that no square window has.
    """
    old, new = _side(table.shape[0]), _side(length)
    plane = table.float().t().reshape(1, -1, old, old)
    plane = F.interpolate(plane, size=(new, new), mode='bicubic', align_corners=False)
    return plane.flatten(2)[0].t().to(table.dtype)


def resize_window_3d(table: Tensor, window: tuple[int, int, int]) -> Tensor:
    """Video Swin's (L, heads) table to a (T, H, W) window.

    The plane is bicubic, time linear. The old window is read off L, assuming it is
    square in the plane and longer than one step.

    Raises:
        ValueError: L fits no or several such windows.
    """
    old = _windows_3d(table.shape[0])
    if len(old) != 1:
        raise ValueError(f'{table.shape[0]} rows fit the windows {old}')
    depth, side, _ = (2 * n - 1 for n in old[0])
    new_depth, *new_plane = (2 * n - 1 for n in window)
    heads = table.shape[1]
    cube = table.float().t().reshape(heads, depth, side, side)
    cube = F.interpolate(cube, size=new_plane, mode='bicubic', align_corners=False)
    lines = cube.flatten(2).transpose(1, 2)
    lines = F.interpolate(lines, size=new_depth, mode='linear', align_corners=False)
    return lines.transpose(1, 2).flatten(1).t().to(table.dtype)


def resize_plane(table: Tensor, new: tuple[int, int]) -> Tensor:
    """(1, C, h, w) to (1, C, *new), bicubic."""
    plane = F.interpolate(table.float(), size=new, mode='bicubic', align_corners=False)
    return plane.to(table.dtype)


def resize_line(table: Tensor, length: int) -> Tensor:
    """(L, C) to (length, C), linear: relative positions along one axis."""
    line = table.float().t()[None]
    line = F.interpolate(line, size=length, mode='linear', align_corners=False)
    return line[0].t().to(table.dtype)


def resize_geometric(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], num_extra: int
) -> Tensor:
    """BEiT's (h*w + num_extra, heads) table, rows of the class token behind.

    Bao et al., https://arxiv.org/abs/2106.08254, and its released code: the old
    distances are set at 0, 1, 1 + q, 1 + q + q^2, ..., so that the last one meets the
    new largest distance; a bicubic spline through them is read at 0, 1, 2, ... The
    centre of a table so keeps its resolution, and its rim is stretched.

    Args:
        table: The table.
        old: Distances along each axis in it, odd numbers.
        new: Those that are wanted.
        num_extra: Rows behind them, which stay.
    """
    # SciPy takes a second to import.
    from scipy.interpolate import RectBivariateSpline

    rows = table.shape[0] - num_extra
    places = [_geometric(n, m) for n, m in zip(old, new, strict=True)]
    asked = [np.arange(-(m // 2), m // 2 + 1.0) for m in new]
    planes = table[:rows].double().cpu().numpy().reshape(*old, -1)
    degrees = [min(3, n - 1) for n in old]
    fitted = [
        RectBivariateSpline(*places, planes[..., head], kx=degrees[0], ky=degrees[1])(
            *asked
        )
        for head in range(planes.shape[-1])
    ]
    fitted = torch.from_numpy(np.stack(fitted, axis=-1)).flatten(0, 1)
    return torch.cat([fitted.to(table), table[rows:]])


def _geometric(old: int, new: int) -> np.ndarray:
    """Where ``old`` distances stand among ``new`` ones, both odd counts."""
    steps = np.arange(old // 2)
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (ratio**steps).sum() > new // 2:
            high = ratio
        else:
            low = ratio
    right = np.cumsum(ratio**steps)
    return np.concatenate([-right[::-1], [0.0], right])


def inflate_patches(kernel: Tensor, steps: int) -> Tensor:
    """(C, 3, h, w) to (C, 3, steps, h, w): a clip that stands still gives the same."""
    return kernel.unsqueeze(2).repeat(1, 1, steps, 1, 1) / steps


def inflate_window(table: Tensor, window: tuple[int, int, int]) -> Tensor:
    """Swin's (L, heads) table to a (T, H, W) window: the plane's, at every distance.

    Raises:
        ValueError: L is not the count of a square window, or H is not W.
    """
    steps, height, width = (2 * n - 1 for n in window)
    if height != width:
        raise ValueError(f'the window {window} is not square in the plane')
    if table.shape[0] != height * width:
        table = resize_window(table, height * width)
    return table.repeat(steps, 1)


def square_grid(count: int) -> tuple[int, int] | None:
    """(h, h) if ``count`` is a square, else None."""
    side = isqrt(count)
    return (side, side) if side * side == count else None


def source_grid(table: Tensor, new: tuple[int, int]) -> tuple[int, int] | None:
    """The grid (h, w) of positions that are to be laid on the grid ``new``.

    A table does not say its grid. Published ones are squares, those that a model saves
    have its shape; where several grids have as many positions (24 x 24, 18 x 32), it is
    the one on which neighbours down a column are closest, as training leaves them. What
    training has not touched counts as the model's own.

    Args:
        table: (1, N, C), positions alone.
        new: The model's grid.

    Returns:
        The grid, ``new`` where nothing is to be done, None where N is neither square
        nor has a grid of the model's shape.
    """
    count = table.shape[1]
    if not count:
        return None
    square = square_grid(count)
    shape = new[0] // gcd(*new), new[1] // gcd(*new)
    factor = isqrt(count // (shape[0] * shape[1]))
    own = shape[0] * factor, shape[1] * factor
    if own[0] * own[1] != count:
        return square
    grids = {own, own[::-1], square or own}
    if len(grids) == 1:
        return own
    rough = {grid: _roughness(table, grid[1]) for grid in grids}
    best = min(grids, key=lambda grid: (rough[grid], grid != own))
    return best if rough[best] < CLEARLY * rough[own] else own


CLEARLY = 0.6
"""Ratio of roughness that noise does not reach, nor a table stretched along an axis."""


def _roughness(table: Tensor, width: int) -> float:
    """Mean square of the steps down the columns of a grid ``width`` wide."""
    table = table.float()
    if width >= table.shape[1]:
        return inf
    return float((table[:, width:] - table[:, :-width]).square().mean())


def _side(rows: int) -> int:
    side = isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise ValueError(f'{rows} rows fit no square window')
    return side


def _windows_3d(rows: int) -> list[tuple[int, int, int]]:
    windows = []
    for size in range(2, isqrt(rows) // 2 + 2):
        depth, rest = divmod(rows, (2 * size - 1) ** 2)
        if rest == 0 and depth % 2 == 1:
            windows.append(((depth + 1) // 2, size, size))
    return windows
