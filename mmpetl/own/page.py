"""The page about a run on a person's own pictures: one HTML file without a script."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageOps

from mmpetl.compat.pictures import eight_bits
from mmpetl.datasets.own.find import PARTS
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.own.auto import Choice
from mmpetl.own.page_parts import (
    EMPTY,
    bytes_text,
    interval,
    listing,
    percent,
    picture_data,
    seconds_text,
    table,
)
from mmpetl.own.page_scenes import scene_facts, scene_sections, scene_summary
from mmpetl.own.results import Results, Share
from mmpetl.own.train import OwnRun

MOST_MISTAKES = 24
"""Pictures of mistakes on the page."""
MOST_CLASSES = 40
"""Up to so many classes the confusions are a matrix, and a list above."""
MOST_PAIRS = 20
"""Confusions of such a list."""
SIDE = 192
"""Longer side of a picture on the page, px."""


def write_page(run: OwnRun, choice: Choice | None = None) -> Path:
    """Write the page of a run beside its delta, whole or not at all.

    Args:
        run: Of :func:`mmpetl.own.train_own`.
        choice: How its method was chosen, where it was.

    Raises:
        OSError: It cannot be written, or a picture is gone.
    """
    AtomicLocalBackend().put_text(build_page(run, choice), run.page)
    return run.page


def build_page(run: OwnRun, choice: Choice | None = None) -> str:
    """The page as text."""
    found = run.results
    if isinstance(found, Results):
        facts, summary = _facts(run, found), _summary(found)
        own = [
            ('classes', 'Classes', _classes(found)),
            ('confusion', 'Confusion', _confusion(found)),
            ('mistakes', 'Mistakes', _mistakes(run, found)),
        ]
    else:
        facts, summary = scene_facts(found), scene_summary(found)
        own = scene_sections(found, run.task.root, run.record.curves)
    sections = [
        *own,
        *([('choice', 'Choice of the method', _choice(choice))] if choice else []),
        ('cost', 'Cost', _cost(run)),
        ('made', 'How it was made', _made(run)),
        ('use', 'How to use it', _use(run)),
    ]
    parts = {
        'title': html.escape(f'{run.task.data.resolve().name} by {run.method}'),
        'style': _style(),
        'facts': _tiles([*facts, *_costs(run)]),
        'where': html.escape(summary + _reads(run)),
        'links': '\n'.join(
            f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections
        ),
        'sections': '\n'.join(
            f'<section id="{name}" aria-labelledby="h-{name}">'
            f'<h2 id="h-{name}">{title}</h2>\n{body}</section>'
            for name, title, body in sections
        ),
    }
    # One pass, so that nothing which is put in is taken for a place to fill.
    template = (files('mmpetl.own') / 'page.html').read_text(encoding='utf-8')
    return re.sub(r'@@(\w+)@@', lambda match: parts[match[1]], template)


def _style() -> str:
    """That of the benchmark's report, and what this page has of its own."""
    report = files('mmpetl.benchmark.report') / 'page.css'
    own = files('mmpetl.own') / 'page.css'
    return '\n'.join(part.read_text(encoding='utf-8') for part in (report, own))


# ---- words and numbers ---------------------------------------------------------------
Fact = tuple[str, str, str]
"""A value, what it is, and more of that."""


def _facts(run: OwnRun, found: Results) -> list[Fact]:
    accuracy = found.accuracy
    return [
        (f'{percent(accuracy.value)} %', 'accuracy', interval(accuracy)),
        (f'{accuracy.of:,}', 'test pictures', ''),
        (f'{len(found.classes):,}', 'classes', ''),
    ]


def _costs(run: OwnRun) -> list[Fact]:
    record = run.record
    return [
        (f'{record.trainable:,}', 'trained parameters', 'and the head'),
        (bytes_text(record.delta_bytes), 'the delta’s file', ''),
        (seconds_text(record.seconds), 'of training', ''),
    ]


def _tiles(items: Iterable[Fact]) -> str:
    tiles = ''.join(
        f'<div><dt>{label}'
        + (f'<small>{more}</small>' if more else '')
        + f'</dt><dd>{value}</dd></div>'
        for value, label, more in items
    )
    return f'<dl class="facts">{tiles}</dl>'


def _summary(found: Results) -> str:
    accuracy = found.accuracy
    return (
        f'{accuracy.right:,} of {accuracy.of:,} test pictures are called what they '
        f'are; the 95 % interval (Wilson) is that of drawing other test pictures. '
        f'Always naming the commonest class would have {percent(found.commonest)} %.'
    )


def _reads(run: OwnRun) -> str:
    reads = _test_reads(run)
    if reads < 2:
        return ''
    return (
        f' Runs in this folder have scored the test pictures {reads} times: who keeps '
        'the best of them reads too high a figure.'
    )


def _test_reads(run: OwnRun) -> int:
    return sum(record.test_reads for record in run.task.store.all(curves=False))


# ---- sections ------------------------------------------------------------------------
def _classes(found: Results) -> str:
    def cell(part: Share | None) -> str:
        if part is None:
            return '–'
        return f'{percent(part.value)} <small>{interval(part)}</small>'

    rows = [
        (
            html.escape(one.name),
            cell(one.found),
            cell(one.sure),
            f'{html.escape(one.taken_for[0])} <small>{one.taken_for[1]} ×</small>'
            if one.taken_for
            else '–',
            f'{one.trained:,}',
            f'{one.found.of:,}' if one.found else '0',
        )
        for one in found.classes
    ]
    head = ('class', 'found, %', 'right, %', 'taken for', 'trained on', 'tested on')
    return (
        '<p class="lead"><b>Found</b> is the share of a class’s test pictures that are '
        'called so (recall), <b>right</b> the share of pictures called so that are '
        '(precision), each with its 95&nbsp;% interval; of few pictures it is wide.</p>'
        + table(head, rows, 'Results by class')
    )


def _confusion(found: Results) -> str:
    names = [one.name for one in found.classes]
    if len(names) > MOST_CLASSES:
        return _confused_pairs(found, names)
    head = ''.join(
        f'<th scope="col"><span>{html.escape(name)}</span></th>' for name in names
    )
    body = []
    for i, (name, row) in enumerate(zip(names, found.confusion, strict=True)):
        total = max(1, int(row.sum()))
        cells = ''.join(
            f'<td class="{"hit" if i == j else "miss"}" style="--part:{n / total:.3f}">'
            f'{n}</td>'
            if n
            else '<td class="none" style="--part:0">·</td>'
            for j, n in enumerate(row.tolist())
        )
        body.append(
            f'<tr><th scope="row" class="stay">{html.escape(name)}</th>{cells}</tr>'
        )
    return (
        '<p class="lead">Rows are what a picture is, columns what it was called. The '
        'tint is the share of the row.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        '<table class="confusion"><thead><tr><th class="l stay" scope="col">'
        f'is \\ called</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        '</table></div>'
    )


def _confused_pairs(found: Results, names: list[str]) -> str:
    pairs = [
        (int(n), names[i], names[j])
        for i, row in enumerate(found.confusion)
        for j, n in enumerate(row)
        if n and i != j
    ]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
    rows = [
        (html.escape(name), html.escape(said), f'{n}')
        for n, name, said in pairs[:MOST_PAIRS]
    ]
    if not rows:
        return EMPTY.format('No picture was mistaken.')
    return (
        f'<p class="lead">The {len(rows)} commonest of {len(pairs)} confusions; a '
        f'matrix of {len(names)} classes would not be read.</p>'
        + table(('is', 'called', 'pictures'), rows, 'Commonest confusions', 2)
    )


def _mistakes(run: OwnRun, found: Results) -> str:
    if not found.mistakes:
        return EMPTY.format('No test picture was mistaken.')
    shown = found.mistakes[:MOST_MISTAKES]
    figures = []
    for one in shown:
        words = f'{one.name}, called {one.called}'
        figures.append(
            '<figure class="picture">'
            f'<img src="{_thumbnail(run.task.root / one.path)}" alt="A picture of '
            f'{html.escape(words)}" decoding="async">'
            f'<figcaption><strong>{html.escape(one.called)} '
            f'{100 * one.score:.0f}&nbsp;%</strong> is {html.escape(one.name)}<br>'
            f'<code>{html.escape(one.path)}</code></figcaption></figure>'
        )
    return (
        f'<p class="lead">{_count_shown(len(shown), len(found.mistakes))}, the surest '
        'first. Look for wrong labels: they end up here.</p>'
        f'<div class="pictures mistakes">{"".join(figures)}</div>'
    )


def _count_shown(shown: int, count: int) -> str:
    if shown < count:
        return f'{shown} of {count:,} mistakes'
    return 'The one mistake' if count == 1 else f'All {count} mistakes'


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(eight_bits(picture))
    return picture_data(upright, SIDE)


def _choice(choice: Choice) -> str:
    rows = [
        (
            html.escape(one.method) + (' ✓' if one.method == choice.method else ''),
            f'{percent(one.best.value)} <small>{interval(one.best)}</small>',
            percent(one.default),
            f'{one.trials}',
            f'{one.trained:,}',
            seconds_text(one.seconds),
            html.escape(one.settings) or 'its defaults',
        )
        for one in choice.tried
    ]
    head = (
        'method',
        'best on validation, %',
        'defaults, %',
        'trials',
        'trained parameters',
        'took',
        'settings of the best',
    )
    left = ''.join(
        f'<li>{html.escape(name)}: {html.escape(reason)}</li>'
        for name, reason in choice.left_out.items()
    )
    return (
        f'<p class="lead">{html.escape(choice.why)}</p>'
        + table(head, rows, 'Methods that were tried')
        + f'<p class="note">{html.escape(choice.how)}</p>'
        + (f'<ul class="note">{left}</ul>' if left else '')
    )


def _cost(run: OwnRun) -> str:
    record, counts = run.record, run.record.counts
    base = counts.get('base', 0) + counts.get('selected', 0)
    share = record.trainable / max(1, base + counts.get('delta', 0))
    kind = 'allocated on the device' if record.cuda else 'of this run’s process'
    return listing(
        [
            ('parameters of the trunk', f'{base:,}'),
            ('added by the method', f'{counts.get("delta", 0):,}'),
            ('of the trunk, trained', f'{counts.get("selected", 0):,}'),
            ('of the head, trained', f'{counts.get("head", 0):,}'),
            ('trained share of the trunk', f'{100 * share:.3g} %'),
            ('file of the delta and the head', bytes_text(record.delta_bytes)),
            ('the trunk in 32 bits, for comparison', bytes_text(4 * base)),
            ('training', seconds_text(record.seconds)),
            ('a step', seconds_text(record.step_seconds)),
            (f'most memory, {kind}', bytes_text(record.peak_memory_bytes)),
            ('device', record.device),
        ]
    )


def _made(run: OwnRun) -> str:
    task, record = run.task, run.record
    splits, trunk, settings = task.splits, task.trunk, task.settings
    drawn = ' and '.join(splits.drawn)
    divided = f'{drawn} drawn with seed {splits.seed}' if drawn else 'as the data say'
    height, width = trunk.size
    order = 'RGB' if trunk.rgb else 'BGR'
    items = [
        ('pictures', f'{task.data} ({splits.layout})'),
        *((f'pictures of {part}', f'{len(splits.parts[part]):,}') for part in PARTS),
        ('division', divided),
        ('digest of the division', splits.digest[:16]),
        ('trunk', trunk.name),
        ('its weights', trunk.weights),
        ('input', f'{height} x {width} px, {trunk.interpolation}, {order}'),
        ('method', f'{run.method} {_arguments(record.settings)}'.strip()),
        ('epochs', f'{record.epochs}'),
        ('steps', 'not known' if record.steps is None else f'{record.steps:,}'),
        ('batch', f'{record.batch}'),
        ('peak rate', f'{run.rate:g}'),
        ('augmentation', settings.augmentation),
        ('seed', f'{task.seed}'),
        ('run', record.job.id),
        ('finished', record.finished),
        ('mmpetl', record.versions.get('mmpetl', '')),
    ]
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in splits.notes)
    return (
        '<p class="lead">Training and validation pictures were trained on together, '
        'and the test pictures scored after the last epoch.</p>'
        + listing(items)
        + (f'<ul class="note">{notes}</ul>' if notes else '')
    )


def _arguments(settings: dict[str, object]) -> str:
    return ', '.join(f'{key}={value}' for key, value in settings.items())


def _use(run: OwnRun) -> str:
    top = ' --topk 3' if isinstance(run.results, Results) else ''
    command = f'mmpetl predict {shlex.quote(str(run.delta))} PICTURE{top}'
    return (
        '<p class="lead">The delta names its classes. It needs the trunk that it was '
        'made on, which the config beside it names.</p>'
        f'<pre tabindex="0"><code>{html.escape(command)}</code></pre>'
    )
