"""The scorecard as files: Markdown, CSV, JSON, and the reliability pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpetl.analysis import charts
from mmpetl.benchmark.records import write_json
from mmpetl.benchmark.scorecard import Line, Settings

SECTION = 'Trust'

WORDS: Mapping[str, tuple[str, str]] = {
    'accuracy': ('accuracy, %', '.1f'),
    'ece': ('calibration error, %', '.1f'),
    'temperature': ('temperature', '.2f'),
    'ece_scaled': ('calibration error at it, %', '.1f'),
    'nll': ('likelihood, nats', '.3f'),
    'brier': ('Brier', '.3f'),
    'auroc_softmax': ('strange: AUROC by confidence, %', '.1f'),
    'fpr95_softmax': ('strange: FPR at 95 by confidence, %', '.1f'),
    'auroc_energy': ('strange: AUROC by energy, %', '.1f'),
    'fpr95_energy': ('strange: FPR at 95 by energy, %', '.1f'),
    'shifted': ('corrupted: accuracy, %', '.1f'),
    'kept_of_clean': ('corrupted: of clean, %', '.1f'),
    'base_back': ('base after ejecting', ''),
    'upstream': ('forgetting, points', '.1f'),
    'kappa_seeds': ('kappa between seeds', '.2f'),
    'kappa_methods': ('kappa with other methods', '.2f'),
    'folds': ('folds', ''),
    'gflops': ('GFLOPs', '.4g'),
    'gflops_base': ('GFLOPs of the base', '.4g'),
    'joules': ('joules', '.3g'),
    'train_s': ('training, s', '.1f'),
    'step_ms': ('step, ms', '.1f'),
    'memory_mb': ('peak memory, MB', '.0f'),
    'delta_kb': ('delta, KB', '.0f'),
    'trainable': ('trainable', ',.0f'),
}
"""What a column is called, and how its numbers are written."""


def words_of(name: str) -> tuple[str, str]:
    """The words and the number format of a value."""
    if name in WORDS:
        return WORDS[name]
    what, _, batch = name.rpartition('_')
    said = {
        'latency_ms': ('latency, ms', '.2f'),
        'latency_of_base': ('latency / base', '.2f'),
        'latency_folded_of_base': ('folded / base', '.2f'),
    }[what]
    return f'{said[0]}, batch {batch}', said[1]


def text_of(name: str, value: Any) -> str:
    """A value as the table has it."""
    if value is None:
        return '–'
    return value if isinstance(value, str) else format(value, words_of(name)[1])


PARTS: Mapping[str, tuple[str, ...]] = {
    'Calibration': ('accuracy', 'ece', 'temperature', 'ece_scaled', 'nll', 'brier'),
    'Strange and corrupted pictures': (
        'auroc_softmax',
        'fpr95_softmax',
        'auroc_energy',
        'fpr95_energy',
        'shifted',
        'kept_of_clean',
    ),
    'What is left of the base, and agreement': (
        'base_back',
        'upstream',
        'kappa_seeds',
        'kappa_methods',
    ),
    'To run': ('folds', 'gflops', 'gflops_base', 'latency', 'joules'),
    'To train and to keep': (
        'train_s',
        'step_ms',
        'memory_mb',
        'delta_kb',
        'trainable',
    ),
}
"""Tables of the Markdown file; ``latency`` stands for all columns that begin so."""


def write_files(
    out: str | os.PathLike, lines: Sequence[Line], settings: Settings
) -> list[Path]:
    """Write ``scorecard.md``, ``.csv`` and ``.json`` below ``<out>/scorecard``."""
    folder = Path(out) / 'scorecard'
    names = list(dict.fromkeys(name for line in lines for name in line.values))
    data = [
        {
            'task': line.task,
            'method': line.method,
            'family': line.family,
            'seeds': line.seeds,
            'values': dict(line.values),
            'bins': dict(line.bins),
        }
        for line in lines
    ]
    write_json(folder / 'scorecard.json', {'settings': vars(settings), 'lines': data})
    charts.save_rows(
        folder / 'scorecard.csv',
        ('task', 'method', 'family', 'seeds', *names),
        [
            (
                line.task,
                line.method,
                line.family,
                line.seeds,
                *('' if (v := line.values.get(n)) is None else v for n in names),
            )
            for line in lines
        ],
    )
    path = folder / 'scorecard.md'
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    part.write_text(markdown(lines, names), encoding='utf-8')
    part.replace(path)
    return [folder / f'scorecard.{end}' for end in ('md', 'csv', 'json')]


def markdown(lines: Sequence[Line], names: Sequence[str]) -> str:
    """One part per task, one table per question; long reasons stand below it."""
    texts = []
    for task in dict.fromkeys(line.task for line in lines):
        rows = [line for line in lines if line.task == task]
        texts.append(f'# {task}\n')
        for title, wanted in PARTS.items():
            columns = [
                n
                for n in names
                if n in wanted or ('latency' in wanted and n.startswith('latency'))
            ]
            texts += [f'## {title}\n', _table(rows, columns)]
    return '\n'.join(texts)


def _table(rows: Sequence[Line], columns: Sequence[str]) -> str:
    notes: dict[str, int] = {}
    body = []
    for row in rows:
        cells = [row.method]
        for name in columns:
            text = text_of(name, row.values.get(name))
            if len(text) > 16:
                text = f'[{notes.setdefault(text, len(notes) + 1)}]'
            cells.append(text)
        body.append(cells)
    head = ['method', *(words_of(name)[0] for name in columns)]
    rule = [':---', *['---:'] * len(columns)]
    table = [f'| {" | ".join(cells)} |' for cells in (head, rule, *body)]
    below = [f'[{number}] {text}.' for text, number in notes.items()]
    return '\n'.join([*table, '', *(line + '\n' for line in below)])


ACROSS = 4
"""Panels of a row."""


def draw(out: str | os.PathLike, lines: Sequence[Line]) -> list[Path]:
    """A reliability picture per task, a panel per method."""
    found = []
    for task in dict.fromkeys(line.task for line in lines):
        rows = [line for line in lines if line.task == task]
        found.append(_reliability(Path(out), task, rows))
    return found


def _reliability(out: Path, task: str, rows: Sequence[Line]) -> Path:
    across = min(ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    figure, axes = charts.new_figure(2.5 * across, 2.6 * down + 0.5, down, across)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, line in zip(axes.flat, rows, strict=False):
        _panel(axis, line)
    for axis in axes[:, 0]:
        axis.set_ylabel('share that is right')
    for column in range(across):
        below = [axis for axis in axes[:, column] if axis.get_visible()]
        below[-1].set_xlabel('confidence')
    errors = {line.method: line.values['ece'] for line in rows}
    best, worst = min(errors, key=errors.get), max(errors, key=errors.get)
    return charts.save_figure(
        figure,
        out / 'analysis' / 'scorecard' / f'{task}-reliability.png',
        title=f'Confidence and accuracy on {task}',
        caption=(
            'Bars: the share of test pictures that is right, by confidence; the line '
            'is where both are equal. Bars below it are too sure of themselves. The '
            'width of a bar grows with the pictures in it. All seeds together; the '
            'error is the mean over seeds.'
        ),
        alt=(
            f'{len(rows)} reliability pictures. Least calibration error: {best} with '
            f'{errors[best]:.1f} %; most: {worst} with {errors[worst]:.1f} %.'
        ),
        section=SECTION,
    )


def _panel(axis: Any, line: Line) -> None:
    count = line.bins['count']
    size, most = 1 / len(count), max(count)
    for place, (n, right) in enumerate(zip(count, line.bins['accuracy'], strict=True)):
        if n:
            width = size * (0.25 + 0.7 * math.sqrt(n / most))
            axis.bar(
                (place + 0.5) * size,
                right,
                width,
                color=charts.colour_of(line.family),
            )
    axis.plot([0, 1], [0, 1], color='#555555', lw=1, ls='--')
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xticks([0, 0.5, 1])
    axis.set_yticks([0, 0.5, 1])
    axis.set_aspect('equal')
    axis.set_title(f'{line.method}\nerror {line.values["ece"]:.1f} %', fontsize=10)
