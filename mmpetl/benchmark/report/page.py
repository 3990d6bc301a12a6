"""Template, style, script, data: one file."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from mmpetl.benchmark.cards import Measured, read_cards
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.report.cards import Card, make_cards
from mmpetl.benchmark.report.data import page_data, summary, to_script
from mmpetl.benchmark.report.pictures import Picture, read_pictures
from mmpetl.benchmark.report.searches import searches
from mmpetl.benchmark.verdicts import standings
from mmpetl.compat.extras import pip_line
from mmpetl.core import PETLError

HERE = Path(__file__).parent

SCRIPTS = (
    'board.js',
    'address.js',
    'download.js',
    'runs.js',
    'plots.js',
    'pairs.js',
    'choose.js',
    'page.js',
)
"""The page's own script, in this order: the last one starts it."""


def write_report(
    out: str | os.PathLike,
    to: str | os.PathLike | None = None,
    title: str = '',
    store: RecordStore | None = None,
) -> Path:
    """Write the report of a benchmark folder.

    Args:
        out: The folder, with ``runs`` and maybe ``pictures`` and ``analysis``.
        to: File to write; ``<out>/report.html`` by default.
        title: Heading; the folder's name by default.
        store: The records of ``out``; it knows afterwards what could not be read.

    Raises:
        PETLError: The folder has no record of a final run, or a picture lacks its
            words, or plotly or markdown-it-py is missing.
    """
    out = Path(out)
    store = store or RecordStore(out)
    records = store.all()
    if not records:
        store.check_all_read()
        raise PETLError(f'{out} holds no record; run a plan into it first')
    page = build_page(
        records,
        read_pictures(out),
        title or out.resolve().name,
        standings(out, (record.job for record in records)),
        read_cards(out, records),
    )
    path = Path(to) if to else out / 'report.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(page, encoding='utf-8')
    part.replace(path)
    return path


def build_page(
    records: Sequence[Record],
    pictures: Sequence[Picture] = (),
    title: str = '',
    verdicts: Mapping[str, str] | None = None,
    cards: Mapping[str, Measured] | None = None,
) -> str:
    """The page as text.

    Args:
        records: All that it should show.
        pictures: Panels, by section.
        title: Heading.
        verdicts: Standing of runs by their ids; see
            :func:`mmpetl.benchmark.verdicts.standings`.
        cards: What the scorecard has measured of runs, by their ids.
    """
    looked_at = verdicts and any(x != 'not looked at' for x in verdicts.values())
    data = page_data(records, verdicts if looked_at else None, cards)
    names = sorted({r.job.method for r in records}, key=str.lower)
    parts = {
        'title': html.escape(title or 'Benchmark'),
        'style': _asset('page.css'),
        'script': _in_script(_script()),
        'plotly': _in_script(plotly_source()),
        'data': to_script(data['main']),
        'curves': to_script(data['curves']),
        'details': to_script(data['details']),
        'facts': _facts(records),
        'cards': '\n'.join(map(_card, make_cards(names))),
        'pictures': _pictures(pictures),
        'searches': searches(records),
    }
    template = _asset('page.html')
    # One pass, so that nothing which is put in is taken for a place to fill.
    return re.sub(r'@@(\w+)@@', lambda match: parts[match[1]], template)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding='utf-8')


def _script() -> str:
    """The page's own script: its files in one scope, the one that starts it last."""
    parts = '\n'.join(map(_asset, SCRIPTS))
    return f"(() => {{\n'use strict';\n\n{parts}}})();\n"


def plotly_source() -> str:
    """plotly.js as the plotly package carries it.

    Raises:
        PETLError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise PETLError(
            f'the report page needs plotly: {pip_line("benchmark")}'
        ) from None
    return get_plotlyjs()


def _in_script(text: str) -> str:
    """JavaScript that may stand inside a script element."""
    return re.sub(r'</(?=script)', r'<\\/', text, flags=re.IGNORECASE).replace(
        '<!--', '<\\!--'
    )


def _facts(records: Sequence[Record]) -> str:
    facts = summary(records)
    items = [
        (f'{facts["runs"]:,}', 'runs'),
        (f'{facts["failed"]:,}', 'failed'),
        (f'{facts["methods"]:,}', 'methods'),
        (f'{facts["tasks"]:,}', 'tasks'),
        (f'{facts["seeds"]:,}', 'seeds'),
        (f'{facts["hours"]:,.1f}', 'hours of runs'),
    ]
    tiles = ''.join(
        f'<div><dt>{label}</dt><dd>{value}</dd></div>' for value, label in items
    )
    words = []
    if facts['finished']:
        words.append(f'last run {facts["finished"][:10]}')
    if facts['devices']:
        more = len(facts['devices']) - 2
        words.append(
            'on ' + ', '.join(facts['devices'][:2]) + (f' and {more} more' * (more > 0))
        )
    if facts['commits']:
        short = [_short_commit(c) for c in facts['commits']]
        words.append(f'mmpetl {", ".join(short[:3])}' + ', …' * (len(short) > 3))
    line = html.escape(' · '.join(words))
    return f'<dl class="facts">{tiles}</dl><p class="where">{line}</p>'


def _short_commit(commit: str) -> str:
    name, dash, dirty = commit.partition('-')
    return name[:8] + dash + dirty


def _card(card: Card) -> str:
    name, family = html.escape(card.method), html.escape(card.family)
    return (
        f'<details class="card" id="{card.anchor}" data-method="{name}">'
        f'<summary><span>{name}</span><small>{family}</small></summary>'
        f'<div class="text">{card.body}'
        f'<p class="source">{html.escape(card.source)}</p></div></details>'
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return (
            '<p class="empty">No pictures yet: a PNG with a JSON of title, caption, '
            'alt and section in <code>pictures/</code> appears here.</p>'
        )
    blocks = []
    for section, group in groupby(pictures, key=lambda picture: picture.section):
        blocks.append(f'<h3>{html.escape(section)}</h3><div class="pictures">')
        blocks += [
            '<figure class="picture"><button type="button" class="enlarge" '
            f'aria-label="Enlarge: {html.escape(p.title)}">'
            f'<img src="{p.uri}" alt="{html.escape(p.alt)}" '
            f'width="{p.width}" height="{p.height}" decoding="async"></button>'
            f'<figcaption><strong>{html.escape(p.title)}</strong> '
            f'{html.escape(p.caption)}</figcaption></figure>'
            for p in group
        ]
        blocks.append('</div>')
    return '\n'.join(blocks)
