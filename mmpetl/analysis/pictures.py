"""Drawing what the other modules of this folder compute, and writing it to disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.core import PETLError

MAP_COLOURS = 'inferno'
BAR_COLOUR, FRAME = '#c2410c', '#22d3ee'


@dataclass(frozen=True)
class Caption:
    """What a page says of a picture.

    Attributes:
        title: A few words.
        caption: One or two sentences: what is shown, of which run, how to read it.
        alt: What a reader who cannot see the picture should know: the figures in it.
        section: Heading of the page under which it stands.
    """

    title: str
    caption: str
    alt: str
    section: str


def save_picture(
    figure: Any, out: str | os.PathLike, caption: Caption, numbers: Mapping[str, Any]
) -> list[Path]:
    """Write ``<out>.png``, ``<out>.json`` (caption) and ``<out>.numbers.json``.

    Every file is whole or as it was before.

    Args:
        figure: A matplotlib figure; it is closed.
        out: Path with or without ``.png``.
        caption: What stands beside it.
        numbers: All figures that the picture shows, plain data.

    Raises:
        PETLError: The place cannot be written, or the name is no picture's.
    """
    from mmpetl.analysis.charts import save_figure, save_numbers

    stem = picture_stem(out)
    numbers_path = stem.with_name(f'{stem.name}.numbers.json')
    picture = stem.with_name(f'{stem.name}.png')
    words = asdict(caption)
    try:
        save_figure(figure, picture, **words)
        save_numbers(numbers_path, plain(numbers))
    except OSError as error:
        raise PETLError(
            f'cannot write {error.filename}: {error.strerror}; choose another place'
        ) from error
    return [picture, stem.with_name(f'{stem.name}.json'), numbers_path]


def picture_stem(out: str | os.PathLike) -> Path:
    """The path without ``.png``.

    Raises:
        PETLError: It has the suffix of another format.
    """
    out = Path(out)
    if out.suffix.lower() in ('.jpg', '.jpeg', '.svg', '.pdf', '.gif', '.webp'):
        raise PETLError(f'{out} cannot be written: pictures are written as .png')
    return out.with_suffix('') if out.suffix.lower() == '.png' else out


def plain(value: Any, digits: int = 6) -> Any:
    """Plain data for a file: arrays as lists, rounded; what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    if isinstance(value, float | np.floating):
        return float(f'{value:.{digits}g}') if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    return plt


def draw_tsne(
    embeddings: Mapping[str, Any],
    labels: np.ndarray,
    classes: Sequence[str] = (),
    k: int = 20,
) -> Any:
    """One panel per model on the same points, scores below each.

    Args:
        embeddings: :class:`mmpetl.analysis.Embedding` by title of the panel.
        labels: (N,) int64.
        classes: Names by label.
        k: Neighbours of the accuracy, for the text.
    """
    plt = _pyplot()
    count = len(embeddings)
    figure, axes = plt.subplots(
        1, count, figsize=(5.2 * count + 1.3, 5.9), layout='constrained', squeeze=False
    )
    found = np.unique(labels)
    colours = _class_colours(len(found))
    for panel, (title, e) in zip(axes[0], embeddings.items(), strict=True):
        for label, colour in zip(found, colours, strict=True):
            at = e.places[labels == label]
            name = str(classes[label]) if label < len(classes) else f'class {label}'
            panel.scatter(*at.T, s=14, color=colour, label=name, linewidths=0)
        panel.set_title(title, fontsize=13)
        panel.set_aspect('equal', adjustable='datalim')
        panel.set(xticks=[], yticks=[])
        panel.set_xlabel(
            f'features:  {k}-NN {e.original.knn:.1f} %   '
            f'silhouette {e.original.silhouette:+.3f}\n'
            f'picture:  {k}-NN {e.flat.knn:.1f} %   '
            f'silhouette {e.flat.silhouette:+.3f}\n'
            f'trustworthiness {e.trustworthiness:.3f}',
            fontsize=10.5,
        )
    if len(found) <= 30:
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc='outside right upper',
            fontsize=9,
            markerscale=1.6,
            ncols=1 if len(found) <= 20 else 2,
            frameon=False,
        )
    return figure


def _class_colours(count: int) -> list[Any]:
    plt = _pyplot()
    if count <= 10:
        return list(plt.get_cmap('tab10').colors[:count])
    if count <= 20:
        return list(plt.get_cmap('tab20').colors[:count])
    return list(plt.get_cmap('turbo')(np.linspace(0.03, 0.97, count)))


def draw_heat_map(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: str,
    low: float,
    high: float,
    form: str,
) -> Any:
    """A heat map with a figure in every cell; nan cells stay empty."""
    shown = axes.imshow(
        values, cmap=colours, vmin=low, vmax=high, aspect='auto', interpolation='none'
    )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_facecolor('#f3f4f6')
    if values.size <= 400:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = shown.cmap(shown.norm(value))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                axes.text(
                    j,
                    i,
                    format(value, form),
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='white' if dark else 'black',
                )
    return shown


def draw_effects(effects: Any, title: str) -> Any:
    """Heat map of sites x blocks."""
    plt = _pyplot()
    rows, columns = effects.values.shape
    size = (max(5.0, 2.8 + 0.62 * columns), max(2.2, 1.5 + 0.42 * rows))
    figure, axes = plt.subplots(figsize=size, layout='constrained')
    high = float(np.nanmax(effects.values)) or 1.0
    shown = draw_heat_map(
        axes,
        effects.values,
        effects.rows,
        effects.columns,
        colours='YlOrRd',
        low=0.0,
        high=high,
        form='.2f',
    )
    axes.set(xlabel='block', ylabel='site')
    axes.set_title(title, fontsize=11)
    figure.colorbar(
        shown, ax=axes, label='relative change, |after - before| / |before|'
    )
    return figure


def draw_cka(
    panels: Mapping[str, np.ndarray],
    names: Sequence[tuple[str, str]],
    layers: Sequence[str],
    title: str,
) -> Any:
    """Heat maps of layers x layers.

    Args:
        panels: (L, L) by title.
        names: What stands in rows and in columns, per panel.
        layers: Names of the L layers.
        title: Of the whole.
    """
    plt = _pyplot()
    side = max(3.4, 1.0 + 0.48 * len(layers))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(side * len(panels) + 1.1, side + 0.7),
        layout='constrained',
        squeeze=False,
    )
    for panel, (name, values), (row, column) in zip(
        axes[0], panels.items(), names, strict=True
    ):
        shown = draw_heat_map(
            panel,
            values,
            layers,
            layers,
            colours='viridis',
            low=0.0,
            high=1.0,
            form='.2f',
        )
        panel.invert_yaxis()
        panel.set(xlabel=f'{column}: block', ylabel=f'{row}: block', title=name)
    figure.colorbar(shown, ax=axes, label='linear CKA', shrink=0.85)
    figure.suptitle(title, fontsize=12)
    return figure


def _overlay(
    axes: Any, picture: np.ndarray, values: np.ndarray | None, high: float
) -> Any:
    """A map over a picture in grey; nan is left dark.

    Args:
        axes: Where.
        picture: (H, W, 3) in [0, 1].
        values: (h, w), None for the picture alone.
        high: Value of the brightest colour.

    Returns:
        What a colour bar is made of; None of the picture alone.
    """
    h, w = picture.shape[:2]
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if values is None:
        axes.imshow(picture, extent=(0, w, h, 0), interpolation='nearest')
        return None
    grey = picture.mean(-1)
    axes.imshow(grey, cmap='gray', vmin=0, vmax=1, extent=(0, w, h, 0))
    plt = _pyplot()
    cmap = plt.get_cmap(MAP_COLOURS).with_extremes(bad=(0, 0, 0, 1))
    shown = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=cmap,
        vmin=0,
        vmax=max(high, 1e-12),
        alpha=0.72,
        extent=(0, w, h, 0),
        interpolation='nearest',
    )
    if np.isnan(values).any():
        _outline(axes, values, picture)
    return shown


def _scale_below(figure: Any, shown: Any, axes: Any, high: float) -> None:
    """The colour bar of maps that share a scale, below one of them."""
    place = axes.inset_axes([0, -0.16, 1, 0.07])
    bar = figure.colorbar(shown, cax=place, orientation='horizontal')
    bar.set_ticks([0, high], labels=['0', f'{100 * high:.2g} %'])
    bar.set_label('attention', fontsize=7, labelpad=-7)
    place.tick_params(labelsize=7, length=2, pad=1)


def _outline(axes: Any, values: np.ndarray, picture: np.ndarray) -> None:
    """Lines around the cells that have a value, where others have none."""
    from matplotlib.collections import LineCollection

    known = np.pad(np.isfinite(values), 1)
    h, w = picture.shape[0] / len(values), picture.shape[1] / values.shape[1]
    lines = []
    for i, j in np.argwhere(known[1:] != known[:-1]):
        lines.append([((j - 1) * w, i * h), (j * w, i * h)])
    for i, j in np.argwhere(known[:, 1:] != known[:, :-1]):
        lines.append([(j * w, (i - 1) * h), (j * w, i * h)])
    axes.add_collection(LineCollection(lines, colors=FRAME, linewidths=1))


def _high(*maps: np.ndarray) -> float:
    """The largest value of maps that share a scale."""
    return max(float(np.nanmax(m)) for m in maps)


def _mark(axes: Any, cell: Sequence[int], grid: Sequence[int], picture: Any) -> None:
    """A frame around a cell."""
    import matplotlib.patches as patches

    h, w = picture.shape[0] / grid[-2], picture.shape[1] / grid[-1]
    place = cell[-1] * w, cell[-2] * h
    axes.add_patch(
        patches.Rectangle(place, w, h, fill=False, edgecolor='white', linewidth=1.3)
    )


@dataclass(frozen=True)
class Column:
    """A column of an attention picture: one map per model.

    Attributes:
        title: Above it.
        maps: (h, w) or (T, h, w) by model; nan is left dark.
        cell: Place of a query on the grid that gets a frame, or None.
    """

    title: str
    maps: Mapping[str, np.ndarray]
    cell: tuple[int, ...] | None = None


def draw_attention(
    picture: np.ndarray,
    blocks: Sequence[Column],
    heads: Sequence[Column],
    shares: Mapping[str, np.ndarray],
    title: str,
    heads_title: str,
) -> Any:
    """Base and tuned side by side: blocks, then the heads of one, then own tokens.

    A column has one scale for both models, so that they can be compared; the bar below
    it says which: the share of attention that a patch gets.

    Args:
        picture: (H, W, 3) in [0, 1].
        blocks: Maps per block and of the rollout.
        heads: Maps per head of one block.
        shares: (blocks, heads) share of attention on the method's own tokens, by model
            where it has any.
        title: Of the whole.
        heads_title: Of the band of heads.
    """
    plt = _pyplot()
    models = list(blocks[0].maps)
    bands = [('', blocks), (heads_title, heads)]
    wide = 1 + max(len(blocks), len(heads))
    bar = 1.9 if shares else 0.0
    rows = len(models)
    band = 1.3 * rows * picture.shape[0] / picture.shape[1] + 0.55 + 0.3
    size = (1.32 * wide + 0.4, 2 * band + bar + 0.45)
    figure = plt.figure(figsize=size, layout='constrained')
    ratios = [band] * 2 + ([bar] if shares else [])
    parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=11)
    for part, (name, columns) in zip(parts, bands, strict=False):
        part.suptitle(name, fontsize=10)
        axes = part.subplots(rows, wide, squeeze=False)
        for i, model in enumerate(models):
            _overlay(axes[i, 0], picture, None, 1)
            axes[i, 0].set_ylabel(model, fontsize=10)
            for j in range(1, wide):
                if j > len(columns):
                    axes[i, j].axis('off')
                    continue
                column = columns[j - 1]
                values = column.maps[model]
                high = _high(*column.maps.values())
                shown = _overlay(axes[i, j], picture, values, high)
                if i == rows - 1:
                    _scale_below(part, shown, axes[i, j], high)
                if column.cell is not None:
                    _mark(axes[i, j], column.cell, values.shape, picture)
                if i == 0:
                    axes[i, j].set_title(column.title, fontsize=9)
    if shares:
        _draw_shares(parts[-1].subplots(), shares)
    return figure


def _draw_shares(axes: Any, shares: Mapping[str, np.ndarray]) -> None:
    """Bars: one group per block, one bar per head."""
    for name, values in shares.items():
        blocks, heads = values.shape
        width = 0.8 / heads
        for head in range(heads):
            at = np.arange(blocks) + (head - (heads - 1) / 2) * width
            axes.bar(
                at,
                100 * values[:, head],
                0.9 * width,
                color=BAR_COLOUR,
                alpha=0.45 + 0.5 * (head % 2),
            )
        axes.set_title(
            f"{name}: attention on the method's own tokens, a bar per head", fontsize=10
        )
        axes.set_xticks(range(blocks), [f'block {i}' for i in range(blocks)])
        axes.set_ylim(0, max(5.0, 110 * float(values.max())))
    axes.set_ylabel('share of attention, %')
    axes.spines[['top', 'right']].set_visible(False)


def draw_filmstrip(
    frames: np.ndarray,
    columns: Sequence[Column],
    shares: Mapping[str, np.ndarray],
    title: str,
) -> Any:
    """A row per step in time; per column base and tuned next to each other.

    A column has one scale over time and models, which the bar below it says.

    Args:
        frames: (T', H, W, 3) in [0, 1], T' a multiple of the maps' steps; the first
            frame of each step is shown.
        columns: Maps (T, h, w).
        shares: See :func:`draw_attention`.
        title: Of the whole.
    """
    plt = _pyplot()
    models = list(columns[0].maps)
    steps = max(len(c.maps[models[0]]) for c in columns)
    wide = 1 + len(columns) * len(models)
    bar = 1.9 if shares else 0.0
    height = 1.25 * steps * frames.shape[1] / frames.shape[2] + 0.9 + 0.3
    figure = plt.figure(figsize=(1.25 * wide + 0.5, height + bar), layout='constrained')
    ratios = [height, *([bar] if shares else [])]
    parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=11)
    axes = parts[0].subplots(steps, wide, squeeze=False)
    for t in range(steps):
        at = t * len(frames) // steps
        frame = frames[at]
        _overlay(axes[t, 0], frame, None, 1)
        axes[t, 0].set_ylabel(f'frame {at}', fontsize=9)
        for j, column in enumerate(columns):
            high = _high(*column.maps.values())
            for m, model in enumerate(models):
                here = axes[t, 1 + j * len(models) + m]
                maps = column.maps[model]
                step = t * len(maps) // steps
                shown = _overlay(here, frame, maps[step], high)
                if column.cell is not None and column.cell[0] == step:
                    _mark(here, column.cell, maps.shape, frame)
                if t == 0:
                    here.set_title(f'{column.title}\n{model}', fontsize=8.5)
                if t == steps - 1 and m == 0:
                    _scale_below(parts[0], shown, here, high)
    axes[0, 0].set_title('input', fontsize=8.5)
    if shares:
        _draw_shares(parts[-1].subplots(), shares)
    return figure
