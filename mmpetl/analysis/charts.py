"""Charts of agreement, ensembles, spread, curves; and the files beside them.

Every chart is a PNG with a JSON of the same name beside it, which holds ``title``,
``caption``, ``alt`` (what a reader who cannot see it should know) and ``section``.
matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.benchmark.records import write_json

COLOURS = {
    'baseline': '#171317',
    'specification': '#8a5f17',
    'adapter': '#2f6c81',
    'prompt': '#ba8210',
    'prefix': '#ec06e4',
    'side': '#149c8a',
    'reparameterisation': '#6b1da3',
    'multi_task': '#0a470a',
}
"""One colour per family, each 3:1 or more against white.

Any two are 0.12 apart in OKLab, seen with protan, deutan or tritan eyes too (the
simulation of Machado, Oliveira and Fernandes, 2009).
"""

MARKERS = 'osD^vP*X<>hd'


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """A figure and its axes, in inches."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    return plt.subplots(
        rows, columns, figsize=(width, height), layout='constrained', squeeze=False
    )


def save_figure(
    figure: Any,
    path: str | os.PathLike,
    *,
    title: str,
    caption: str,
    alt: str,
    section: str,
    dpi: int = 130,
) -> Path:
    """Write a picture and the JSON beside it, each whole or not at all."""
    import matplotlib.pyplot as plt

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    # Squares and circles leave room in a figure of another shape.
    figure.savefig(part, dpi=dpi, format='png', bbox_inches='tight', pad_inches=0.1)
    plt.close(figure)
    part.replace(path)
    words = {'title': title, 'caption': caption, 'alt': alt, 'section': section}
    write_json(path.with_suffix('.json'), words)
    return path


def as_data(value: Any) -> Any:
    """Arrays, tuples and numbers as JSON knows them; what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(k): as_data(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return as_data(value.tolist())
    if isinstance(value, list | tuple):
        return [as_data(v) for v in value]
    if isinstance(value, np.generic):
        return as_data(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_numbers(path: str | os.PathLike, data: Any) -> Path:
    """The numbers behind a picture, as JSON."""
    path = Path(path)
    write_json(path, as_data(data))
    return path


def save_rows(
    path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Path:
    """A CSV, written whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            [f'{v:.6g}' if isinstance(v, float | np.floating) else v for v in row]
        )
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    part.write_text(text.getvalue(), encoding='utf-8')
    part.replace(path)
    return path


def colour_of(family: str) -> str:
    """Colour of a family."""
    return COLOURS.get(family, '#767676')


def text_colour_of(family: str) -> str:
    """The colour of a family, darkened until it can be read: 4.5:1 against white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour_of(family))
    while 1.05 / (_luminance(red, green, blue) + 0.05) < 4.5:
        red, green, blue = 0.95 * red, 0.95 * green, 0.95 * blue
    return to_hex((red, green, blue))


def _luminance(*rgb: float) -> float:
    """Relative luminance of WCAG 2 of a colour in sRGB, each part in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def heat_map(
    axes: Any,
    matrix: np.ndarray,
    names: Sequence[str],
    families: Sequence[str],
    title: str,
    low: float | None = None,
    high: float | None = None,
    label: str = '',
) -> None:
    """A square matrix; lines part the families, cells have numbers while they fit."""
    count = len(names)
    shown = np.array(matrix, np.float64)
    apart = ~np.eye(count, dtype=bool) & np.isfinite(shown)
    if apart.any():
        low = float(shown[apart].min()) if low is None else low
        high = float(shown[apart].max()) if high is None else high
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(shown, cmap='cividis', vmin=low, vmax=high)
    axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, label=label or title)
    size = 9 if count <= 16 else 7
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, family in zip(ticks, families, strict=True):
            tick.set_color(text_colour_of(family))
    for i in range(1, count):
        if families[i] != families[i - 1]:
            axes.axhline(i - 0.5, color='white', lw=1)
            axes.axvline(i - 0.5, color='white', lw=1)
    if count <= 16:
        middle = ((low or 0) + (high or 1)) / 2
        for i, j in zip(*np.nonzero(apart), strict=True):
            axes.text(
                j,
                i,
                f'{shown[i, j]:.2f}'.replace('0.', '.'),
                ha='center',
                va='center',
                fontsize=6.5,
                color='black' if shown[i, j] > middle else 'white',
            )
    axes.set_title(title, fontsize=11)


CENTRES = ((-0.55, 0.35), (0.55, 0.35), (0.0, -0.6))
"""Where the circles of three sets stand; their radius is one."""

THREE = ('#0072b2', '#d55e00', '#009e73')
"""Colours of three sets."""

PLACES = {
    '100': (-1.0, 0.62),
    '010': (1.0, 0.62),
    '001': (0.0, -1.2),
    '110': (0.0, 0.82),
    '101': (-0.72, -0.38),
    '011': (0.72, -0.38),
    '111': (0.0, 0.02),
}


def venn(
    axes: Any, counts: Mapping[str, int], names: Sequence[str], title: str
) -> None:
    """Three circles of one size with the counts of their seven regions."""
    from matplotlib.patches import Circle

    total = max(1, sum(counts.values()))
    for centre, colour in zip(CENTRES, THREE, strict=True):
        axes.add_patch(Circle(centre, 1, color=colour, alpha=0.2))
        axes.add_patch(Circle(centre, 1, fill=False, color=colour, lw=1.5))
    for key, place in PLACES.items():
        share = f'{counts[key]:,}\n{100 * counts[key] / total:.0f} %'
        axes.text(*place, share, ha='center', va='center', fontsize=9)
    words = {'ha': 'center', 'va': 'center', 'fontsize': 11, 'weight': 'bold'}
    outside = ((-1.0, 1.45), (1.0, 1.45), (0.0, -1.75))
    for name, colour, place in zip(names, THREE, outside, strict=True):
        axes.text(*place, name, color=colour, **words)
    axes.set_xlim(-1.9, 1.9)
    axes.set_ylim(-1.95, 1.7)
    axes.set_aspect('equal')
    axes.axis('off')
    axes.set_title(title, fontsize=11)


def family_legend(axes: Any, families: Iterable[str], **kwargs: Any) -> None:
    """A legend of the families that are shown."""
    from matplotlib.lines import Line2D

    shown = set(families)
    handles = [
        Line2D([], [], marker='o', ls='', color=colour, label=family.replace('_', ' '))
        for family, colour in COLOURS.items()
        if family in shown
    ]
    axes.legend(handles=handles, fontsize=8, **kwargs)


def distinct(count: int) -> list[tuple[Any, str]]:
    """Colour and marker for lines that are told apart one by one."""
    colours = list(COLOURS.values())
    return [
        (colours[i % 8], MARKERS[(i + i // 8) % len(MARKERS)]) for i in range(count)
    ]
