"""Crowded scatters whose every point can be told by name, and axes that show zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmpetl.analysis.charts import colour_of

COLUMN = 1.03
"""Where names begin, in widths of the axes from their left edge."""

INK = '#222222'

NEAR = 0.012
"""A leader that passes a point at less than this, in heights of the axes, hits it."""


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], moved as little as a least distance asks for.

    What is too close spreads to both sides about its middle: the least squares of the
    moves, by pooling neighbours.
    """
    blocks: list[list[float]] = []  # sums and counts of what was pooled
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1])
        while len(blocks) > 1 and (
            blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]
        ):
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    flat = [total / count for total, count in blocks for _ in range(int(count))]
    room = 1 - (len(flat) - 1) * gap
    return [min(max(z, 0.0), room) + i * gap for i, z in enumerate(flat)]


def named_points(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    families: Sequence[str],
    fontsize: float = 8,
    x_spread: Sequence[float | None] = (),
    y_spread: Sequence[float | None] = (),
) -> None:
    """A point per name; names stand in a column beside, each tied to its point.

    A leader runs from the middle of its name's left edge to the middle of its point.
    Leaders do not cross, and pass by other points as far as there is room. Scales and
    the limits of the x axis must be set before; those of the y axis are set here.

    Args:
        axes: Where.
        x: By name.
        y: By name.
        names: What stands in the column.
        families: By name; they give the colour.
        fontsize: Of the names, in points.
        x_spread: Standard deviations for error bars; None or nothing where unknown.
        y_spread: See ``x_spread``.
    """
    low, high = float(np.min(y)), float(np.max(y))
    bars = [s or 0.0 for s in y_spread] or [0.0] * len(names)
    low = min(low, *(a - b for a, b in zip(y, bars, strict=True)))
    high = max(high, *(a + b for a, b in zip(y, bars, strict=True)))
    span = max(1e-9, high - low)
    axes.set_ylim(low - 0.06 * span, high + 0.06 * span)
    axes.set_xlim(axes.get_xlim())
    width, height = axes.figure.get_figwidth(), 0.8 * axes.figure.get_figheight()
    shape = np.array([0.8 * width / height, 1.0])
    to_axes = axes.transData + axes.transAxes.inverted()
    points = to_axes.transform(np.column_stack([x, y]))
    column = points[:, 1]
    gap = 1.25 * fontsize / 72 / height
    slots = np.array(spaced(sorted(column), gap))
    ends = np.column_stack([np.full(len(slots), COLUMN), slots])
    chosen = assign(points * shape, ends * shape)
    for i, slot in enumerate(chosen):
        colour = colour_of(families[i])
        axes.plot(x[i], y[i], 'o', ms=7, color=colour, mec='white', mew=0.6, zorder=3)
        axes.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(COLUMN, slots[slot]),
            textcoords='axes fraction',
            va='center',
            fontsize=fontsize,
            color=INK,
            annotation_clip=False,
            arrowprops={
                'arrowstyle': '-',
                'lw': 0.6,
                'color': colour,
                'alpha': 0.8,
                # From the middle of the edge that looks at the points: a line towards
                # the middle of the name leaves its box beside another name.
                'relpos': (0, 0.5),
                'shrinkA': 0,
                'shrinkB': 0,
            },
        )
    if any(x_spread) or any(y_spread):
        _error_bars(axes, x, y, families, x_spread, y_spread)


def _error_bars(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    families: Sequence[str],
    x_spread: Sequence[float | None],
    y_spread: Sequence[float | None],
) -> None:
    """One standard deviation to each side, behind the points."""
    wide = list(x_spread) or [None] * len(x)
    tall = list(y_spread) or [None] * len(x)
    for i, family in enumerate(families):
        axes.errorbar(
            x[i],
            y[i],
            xerr=wide[i],
            yerr=tall[i],
            fmt='none',
            ecolor=colour_of(family),
            elinewidth=1,
            capsize=2,
            alpha=0.7,
            zorder=2.5,
        )


def assign(points: np.ndarray, ends: np.ndarray) -> list[int]:
    """Which end of a column is tied to which point.

    The shortest sum of lengths crosses nowhere; from there on, ends are exchanged while
    fewer leaders pass over the point of another, still without a crossing.

    Args:
        points: (N, 2), in units that are alike in both directions.
        ends: (N, 2).

    Returns:
        Place in ``ends`` by point.
    """
    from scipy.optimize import linear_sum_assignment

    length = np.linalg.norm(points[:, None] - ends[None], axis=2)
    chosen = linear_sum_assignment(length)[1]
    cost = _cost(points, ends, chosen)
    better = True
    while better:
        better = False
        for i in range(len(points)):
            for j in range(i):
                other = chosen.copy()
                other[[i, j]] = chosen[[j, i]]
                found = _cost(points, ends, other)
                if found < cost:
                    chosen, cost, better = other, found, True
    return [int(place) for place in chosen]


def _cost(
    points: np.ndarray, ends: np.ndarray, chosen: np.ndarray
) -> tuple[int, int, float]:
    """Crossings, points that foreign leaders pass over, and the sum of lengths."""
    tied = ends[chosen]
    along = tied - points
    length = np.linalg.norm(along, axis=1)
    return (
        crossings(points, tied),
        int(_passes(points, along, length)),
        round(float(length.sum()), 9),
    )


def _passes(points: np.ndarray, along: np.ndarray, length: np.ndarray) -> int:
    offset = points[None] - points[:, None]
    share = (offset * along[:, None]).sum(2) / np.maximum(length, 1e-12)[:, None] ** 2
    share = np.clip(share, 0, 1)
    nearest = offset - share[..., None] * along[:, None]
    distance = np.linalg.norm(nearest, axis=2)
    # Points that lie on one another cannot be passed by.
    apart = np.linalg.norm(offset, axis=2) > NEAR
    return (apart & (distance < NEAR)).sum()


def crossings(starts: np.ndarray, ends: np.ndarray) -> int:
    """How many pairs of segments (N, 2) to (N, 2) cross."""
    a, b = starts[:, None], ends[:, None]
    c, d = starts[None], ends[None]
    apart = _side(a, b, c) * _side(a, b, d) < 0
    return int((apart & (_side(c, d, a) * _side(c, d, b) < 0)).sum()) // 2


def _side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """On which side of the line from a to b a point c lies, by sign."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (
        b[..., 1] - a[..., 1]
    ) * (c[..., 0] - a[..., 0])


def log_with_zero(axes: Any, values: Sequence[float]) -> list[float]:
    """A logarithmic x axis on which zero has a place of its own, behind a break.

    Args:
        axes: Where; the scale, the limits and the ticks of its x axis are set.
        values: What will be drawn, zero or above. Where none is above zero, the axis
            stays as it is.

    Returns:
        The values, zero replaced by its place.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

    positive = [value for value in values if value > 0]
    if not positive:
        return list(values)
    low, high = math.log10(min(positive)), math.log10(max(positive))
    margin = 0.05 * max(high - low, 0.3)
    axes.set_xscale('log')
    if len(positive) == len(values):
        axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
        return list(values)
    place, edge = 10 ** (low - 4 * margin), 10 ** (low - 2 * margin)
    left, right = 10 ** (low - 5.5 * margin), 10 ** (high + margin)
    axes.set_xlim(left, right)
    scaled = LogLocator(10, subs=(1.0,), numticks=20).tick_values(edge, right)
    between = LogLocator(10, subs=range(2, 10), numticks=20).tick_values(edge, right)
    ticks = [tick for tick in scaled if edge < tick <= right]
    axes.xaxis.set_major_locator(FixedLocator([place, *ticks]))
    axes.xaxis.set_minor_locator(FixedLocator([t for t in between if edge < t < right]))
    usual = axes.xaxis.get_major_formatter()
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda tick, at: '0' if tick == place else usual(tick, at))
    )
    # Two strokes on the frame, above and below, and a line between: here it breaks.
    axes.axvline(edge, color='0.6', lw=0.8, ls=(0, (2, 3)), zorder=0.5)
    for shift in (-0.006, 0.006):
        at = math.log10(edge / left) / math.log10(right / left) + shift
        for foot in (0, 1):
            axes.plot(
                [at - 0.006, at + 0.006],
                [foot - 0.012, foot + 0.012],
                transform=axes.transAxes,
                color='black',
                lw=1,
                clip_on=False,
                zorder=5,
            )
    return [value if value > 0 else place for value in values]
