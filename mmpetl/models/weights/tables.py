"""Position tables of a file, fitted to the size of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isqrt

from torch import Tensor, nn

from mmpetl.models.weights.resize import (
    resize_geometric,
    resize_grid,
    resize_line,
    resize_plane,
    resize_window,
    resize_window_3d,
    source_grid,
    square_grid,
)
from mmpetl.models.weights.target import Target

POSITIONS = ('pos_embed', 'absolute_pos_embed', 'position_embeddings')
GRIDS = ('init_out_size', 'grid_size', 'patches_resolution', 'patch_shape', 'pos_shape')
"""Attributes in which packages keep the grid of patches."""
CLASS_ROWS = 3
"""Rows of BEiT's tables for pairs with the class token: to it, from it, with itself."""


TOKEN = re.compile(r'(token|class_embedding)s?$')
"""Last names of tokens that may have rows in front of those of the grid."""


def is_table(name: str) -> bool:
    """Whether a tensor is a table of positions, absolute or relative."""
    *path, last = name.split('.')
    return (
        last in (*POSITIONS, 'relative_position_bias_table', 'rel_pos_h', 'rel_pos_w')
        or path[-1:] == ['position_embedding']
        or last.rstrip('1234567890') == 'pos_embed'
    )


def fit_table(target: Target, name: str, table: Tensor) -> Tensor | None:
    """A table of a file at the size of the model's.

    Absolute tables are bicubic with the rows of class tokens aside, Swin's relative
    tables bicubic, BEiT's (which has rows for a class token) on a geometric grid as
    its authors do, those of SAM and MViT along one axis linear.

    Args:
        target: The model.
        name: Its name of the table.
        table: What the file has.

    Returns:
        The table in the model's shape, ``table`` itself where nothing is to be done,
        None where it is another kind of table.

    Raises:
        ValueError: Its grid is unknown, or the model's is.
    """
    if not is_table(name):
        return None
    goal = target.tensors[name].shape
    if table.dim() != len(goal):
        return None
    if table.shape == goal and not _is_flat(name, table):
        return table
    return _fitted(target, name, table, goal)


def _is_flat(name: str, table: Tensor) -> bool:
    """Absolute positions one behind the other, (N, C) or (1, N, C)."""
    is_row = table.dim() == 2 or (table.dim() == 3 and table.shape[0] == 1)
    return is_row and not name.rpartition('.')[2].startswith('rel')


def _fitted(
    target: Target, name: str, table: Tensor, goal: tuple[int, ...]
) -> Tensor | None:
    last = name.rpartition('.')[2]
    if last == 'relative_position_bias_table':
        return _relative(target.owner(name), table, goal)
    if last in ('rel_pos_h', 'rel_pos_w'):
        return resize_line(table, goal[0]) if table.shape[1] == goal[1] else None
    if len(goal) == 4:
        return _plane(table, goal)
    if table.shape[-1] != goal[-1]:
        return None
    if len(goal) == 2:
        return _absolute(target, name, table[None], goal[0])[0]
    return _absolute(target, name, table, goal[1])


def _plane(table: Tensor, goal: tuple[int, ...]) -> Tensor | None:
    """(1, H, W, C) as SAM has it, or (1, C, H, W)."""
    if table.shape[-1] == goal[-1] and table.shape[1] != goal[1]:
        plane = resize_plane(table.permute(0, 3, 1, 2), tuple(goal[1:3]))
        return plane.permute(0, 2, 3, 1)
    if table.shape[1] == goal[1]:
        return resize_plane(table, tuple(goal[2:]))
    return None


def _relative(owner: nn.Module, table: Tensor, goal: tuple[int, ...]) -> Tensor | None:
    if table.shape[1] != goal[1]:
        return None
    window = getattr(owner, 'window_size', None)
    if isinstance(window, tuple | list) and len(window) == 3:
        return resize_window_3d(table, tuple(window))
    extra = CLASS_ROWS if _is_odd_square(table.shape[0] - CLASS_ROWS) else 0
    if not extra:
        return resize_window(table, goal[0])
    side = isqrt(goal[0] - extra)
    new = (side, side)
    if side * side != goal[0] - extra:
        if not isinstance(window, tuple | list):
            raise ValueError(f'{goal[0]} rows fit no square window')
        new = (2 * window[0] - 1, 2 * window[1] - 1)
    old = isqrt(table.shape[0] - extra)
    return resize_geometric(table, (old, old), new, extra)


def _is_odd_square(count: int) -> bool:
    side = isqrt(max(count, 0))
    return side * side == count and side % 2 == 1


def _absolute(target: Target, name: str, table: Tensor, rows: int) -> Tensor:
    """(1, N, C) to ``rows`` rows; the rows of class tokens come first and stay."""
    new = _grid_of(target, name, rows)
    if new is None:
        if table.shape[1] == rows:
            return table
        new = _squared(target, rows)
    prefix = rows - new[0] * new[1]
    old = source_grid(table[:, prefix:], new)
    if old is None:
        raise ValueError(
            f'{table.shape[1] - prefix} positions are no square grid, nor one of the '
            f"shape of the model's {new[0]} x {new[1]}"
        )
    return table if old == new else resize_grid(table, old, new, prefix)


def _grid_of(target: Target, name: str, rows: int) -> tuple[int, int] | None:
    """The grid that a model states, of at most 16 rows less than ``rows``, or None."""
    for module in _owners(target, name):
        sizes = [getattr(module, attribute, None) for attribute in GRIDS]
        for size in [*sizes, _patches(module)]:
            if isinstance(size, int):
                size = (size, size)
            if (
                isinstance(size, tuple | list)
                and len(size) == 2
                and min(size) > 0
                and 0 <= rows - size[0] * size[1] <= 16
            ):
                return int(size[0]), int(size[1])
    return None


def _owners(target: Target, name: str) -> Iterator[nn.Module | None]:
    """Modules that may state the grid of a table: its owner, and what makes patches.

    Those of transformers state none: they read a table as a square, whatever the shape
    of their pictures.
    """
    owner = target.owner(name)
    embed = getattr(owner, 'patch_embed', None)
    yield from (owner, embed, getattr(embed, 'patch_embed', None))


def _squared(target: Target, rows: int) -> tuple[int, int]:
    """The square grid of ``rows`` rows, behind those of a few tokens."""
    has_tokens = any(TOKEN.search(name) for name in target.tensors)
    for prefix in (0, 1, 2, 5) if has_tokens else (0,):
        grid = square_grid(rows - prefix)
        if grid is not None:
            return grid
    raise ValueError(
        f'the {rows} rows of the model are no square grid, and it states no other'
    )


def _patches(module: nn.Module | None) -> tuple[int, int] | None:
    """Patches along each axis, where a module keeps the sizes of both."""
    sizes = [getattr(module, name, None) for name in ('img_size', 'patch_size')]
    pairs = [(size, size) if isinstance(size, int) else size for size in sizes]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        return None
    return int(pairs[0][0] // pairs[1][0]), int(pairs[0][1] // pairs[1][1])
