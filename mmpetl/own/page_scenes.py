"""What the page says of boxes and masks: classes, the worst pictures, the training."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmpetl.own.boxes import BoxClass, BoxResults
from mmpetl.own.masks import MaskResults
from mmpetl.own.page_parts import EMPTY, interval, percent, picture_data, table
from mmpetl.own.results import Share

SceneResults = BoxResults | MaskResults

MOST_WORST = 12
"""Pictures on the page, each twice."""
SIDE = 480
"""Longer side of a picture, px."""
WIDE, HIGH = 640, 220
"""Of the drawing of a curve, in its own units."""
MOST_POINTS = 200
"""Of a curve; of more, means are drawn."""


def scene_facts(found: SceneResults) -> list[tuple[str, str, str]]:
    """Values of the head of the page: what each is, and more of that."""
    spread = interval(found.interval) if found.interval else 'mean of the classes'
    first = (f'{percent(found.score)} %', found.metric, spread)
    of = (f'{len(found.pictures):,}', 'test pictures', '')
    classes = (f'{len(found.classes):,}', 'classes', '')
    if isinstance(found, BoxResults):
        second = (f'{percent(found.ap50)} %', 'AP50', 'at an overlap of 0.5')
        return [first, second, of, (f'{found.boxes:,}', 'test boxes', ''), classes]
    second = (f'{percent(found.accuracy)} %', 'of the pixels', 'called what they are')
    return [first, second, of, classes]


def scene_summary(found: SceneResults) -> str:
    """What the values mean, in a sentence or two."""
    if isinstance(found, BoxResults):
        text = (
            'mAP is the mean over classes and over overlaps from 0.5 to 0.95 of the '
            'average precision, as COCO counts it.'
        )
    else:
        text = (
            'mIoU is the mean over classes of the pixels that are of a class and were '
            'called so, over those that are or were.'
        )
    if found.interval:
        text += (
            f' The 95 % interval is that of drawing other test pictures, by '
            f'{found.interval.resamples:,} resamples of these; of few pictures it is '
            'too narrow.'
        )
    absent = sum(one.value is None for one in found.classes)
    if absent:
        text += f' {absent} of the classes are in no test picture, and left out of it.'
    return text


def scene_sections(
    found: SceneResults, root: Path, curves: Mapping[str, Sequence[Sequence[float]]]
) -> list[tuple[str, str, str]]:
    """Name, title and body of the sections of their own.

    Args:
        found: What the test pictures say.
        root: The folder that paths are below.
        curves: Of the training, by name: steps and values.
    """
    return [
        ('classes', 'Classes', _classes(found)),
        ('worst', 'Worst pictures', _worst(found, root)),
        ('training', 'Training', _training(curves)),
    ]


def _classes(found: SceneResults) -> str:
    ranked = sorted(found.classes, key=lambda one: -(one.value or 0))
    if isinstance(found, BoxResults):
        return (
            '<p class="lead">The bar is the average precision of a class. <b>Found</b> '
            'is the share of its boxes that were found, <b>right</b> the share of what '
            'was found that is there, each at a score of 0.3 and an overlap of 0.5, '
            'with its 95&nbsp;% interval.</p>'
            + table(
                ('class', 'AP, %', 'AP50, %', 'found, %', 'right, %', 'boxes trained')
                + ('tested',),
                [_box_row(one) for one in ranked],
                'Results by class',
            )
        )
    rows = [
        (
            html.escape(one.name),
            _bar(one.iou),
            _share(one.found),
            _share(one.right),
            f'{html.escape(one.taken_for[0])} <small>{percent(one.taken_for[1])}'
            '&nbsp;%</small>'
            if one.taken_for
            else '–',
            f'{one.tested:,}',
        )
        for one in ranked
    ]
    return (
        '<p class="lead">The bar is the intersection over union of a class. '
        '<b>Found</b> is the share of its pixels that were called so, <b>right</b> the '
        'share of the pixels called so that are.</p>'
        + table(
            ('class', 'IoU, %', 'found, %', 'right, %', 'taken for', 'pixels tested'),
            rows,
            'Results by class',
        )
    )


def _box_row(one: BoxClass) -> tuple[str, ...]:
    return (
        html.escape(one.name),
        _bar(one.ap),
        _share(one.ap50),
        _counted(one.found),
        _counted(one.right),
        f'{one.trained:,}',
        f'{one.tested:,}',
    )


def _bar(value: float | None) -> str:
    if value is None:
        return '–'
    return (
        f'<span class="bar" style="--part:{value:.3f}"><span>{percent(value)}</span>'
        '</span>'
    )


def _share(value: float | None) -> str:
    return '–' if value is None else percent(value)


def _counted(found: Share | None) -> str:
    if found is None:
        return '–'
    return f'{percent(found.value)} <small>{interval(found)}</small>'


def _worst(found: SceneResults, root: Path) -> str:
    worst = found.worst
    if not worst:
        return EMPTY.format('No test picture has a mistake.')
    figures = []
    for one in worst[:MOST_WORST]:
        name = html.escape(one.path)
        truth, said = found.drawn(root, one, SIDE)
        pictures = ''.join(
            f'<div><img src="{picture_data(picture, SIDE)}" alt="{name}: {what}" '
            f'decoding="async"><span>{what}</span></div>'
            for picture, what in ((truth, 'is there'), (said, 'was found'))
        )
        figures.append(
            f'<figure class="pair"><div class="sides">{pictures}</div>'
            f'<figcaption><strong>{one.words}</strong><br><code>{name}</code>'
            '</figcaption></figure>'
        )
    return (
        f'<p class="lead">{len(figures)} of {len(worst):,} test pictures with '
        'mistakes, the most of them first. Look for what was annotated wrongly: it '
        f'ends up here.</p>{_legend(found)}<div class="pairs">{"".join(figures)}</div>'
    )


def _legend(found: SceneResults) -> str:
    items = ''.join(
        f'<li><i style="background:rgb({r} {g} {b})"></i>{html.escape(one.name)}</li>'
        for one, (r, g, b) in zip(found.classes, found.palette, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _training(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    points = curves.get('loss', [])
    if len(points) < 2:
        return EMPTY.format('The run is too short for a curve.')
    return (
        '<p class="lead">The loss on training pictures by step. Where it still falls '
        'at the end, more epochs may help; the test pictures say whether they do.</p>'
        f'<figure class="curve">{_curve(points)}</figure>'
    )


def _curve(points: Sequence[Sequence[float]]) -> str:
    """A curve as SVG, its ends in numbers; of many points means of neighbours."""
    each = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    means = [(g[-1][0], sum(p[1] for p in g) / len(g)) for g in groups]
    low, high = 0.0, max(value for _, value in means) or 1.0
    first, last = means[0][0], means[-1][0]
    left, right, top, bottom = 48, WIDE - 8, 10, HIGH - 26
    drawn = ' '.join(
        f'{left + (right - left) * (step - first) / max(1, last - first):.1f},'
        f'{bottom - (bottom - top) * (value - low) / (high - low):.1f}'
        for step, value in means
    )
    ticks = ''.join(
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" class="rule"/>'
        f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'
        for y, value in ((top, high), ((top + bottom) / 2, high / 2), (bottom, low))
    )
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="Loss from '
        f'{means[0][1]:.3g} at step {first:g} to {means[-1][1]:.3g} at step {last:g}">'
        f'{ticks}<polyline points="{drawn}"/>'
        f'<text x="{left}" y="{HIGH - 8}">step {first:g}</text>'
        f'<text x="{right}" y="{HIGH - 8}" text-anchor="end">{last:g}</text></svg>'
    )
