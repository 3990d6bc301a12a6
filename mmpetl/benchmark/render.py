"""A table as text: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

from mmpetl.benchmark.latex import latex
from mmpetl.benchmark.table_parts import Cell, Column, Mean, Row, Table
from mmpetl.core import PETLError, suggest

By = Literal['task', 'group']
Format = Literal['md', 'csv', 'tex']

FORMATS: tuple[Format, ...] = ('md', 'csv', 'tex')


def render(
    table: Table,
    form: Format = 'md',
    by: By = 'task',
    columns: Sequence[str] | None = None,
    label: str | None = None,
    caption: str | None = None,
    wide: bool = False,
) -> str:
    """A table as text.

    Args:
        table: What :func:`build_tables` gives.
        form: ``md``, ``csv`` or ``tex``.
        by: Columns per ``task``, or per ``group`` of tasks only.
        columns: Only these, in this order: ``method``, ``family``, ``trainable``,
            ``tasks`` or names of tasks, ``means`` or ``plain``, ``group`` and names of
            groups, ``ppt``, ``rank``, ``verified``. Overrides ``by``.
        label: What LaTeX refers to the table by; made of its title by default.
        caption: Of LaTeX; the title by default.
        wide: Whether LaTeX's table spans both columns of a page.

    Raises:
        PETLError: Another format, or another kind of columns.
    """
    if form not in FORMATS:
        raise PETLError(f'no table format {form!r}; there are {", ".join(FORMATS)}')
    if by not in ('task', 'group'):
        raise PETLError(f'columns are by task or by group, not by {by!r}')
    if form == 'csv':
        if columns is not None:
            raise PETLError('csv holds every column; columns are chosen for md and tex')
        return _csv(table, by)
    chosen = columns_of(table, by, columns)
    if form == 'tex':
        return latex(table, chosen, label, caption, wide)
    return _markdown(table, chosen)


def columns_of(
    table: Table, by: By = 'task', keys: Sequence[str] | None = None
) -> list[Column]:
    """The columns of a table, or those asked for.

    Raises:
        PETLError: The table has no such column.
    """
    first = [
        Column('method', 'method', _label, 'words'),
        Column('family', 'family', lambda row: row.family, 'words'),
        Column('trainable', 'trainable', _range_text),
    ]
    tasks = [Column(t, t, partial(_task_text, t), 'task') for t in table.tasks]
    means = [
        Column(name, table.rows[0].means[name].label, partial(_mean_of, name), 'mean')
        for name in _mean_columns(table)
    ]
    last = [
        Column('ppt', 'PPT', _ppt_text),
        Column('rank', 'mean rank', _rank_text),
    ]
    if any(row.verified for row in table.rows):
        last.append(Column('verified', 'verified', lambda row: row.verified or '–'))
    if keys is None:
        with_tasks = by == 'task' or len(table.tasks) == 1
        with_means = len(table.tasks) > 1
        return [
            *first,
            *(tasks if with_tasks else ()),
            *(means if with_means else ()),
            *last,
        ]
    known: dict[str, list[Column]] = {'tasks': tasks, 'means': means}
    for column in [*first, *means, *last, *tasks]:
        known.setdefault(column.key, [column])
    chosen = []
    for key in keys:
        if key not in known:
            raise PETLError(
                f'{table.title} has no column {key!r}.{suggest(key, known)} '
                f'There are {", ".join(known)}'
            )
        chosen += known[key]
    return chosen


def _mean_columns(table: Table) -> list[str]:
    return list(table.rows[0].means) if table.rows else []


def _label(row: Row) -> str:
    return f'{row.label} ‡' if row.marks else row.label


def _task_text(task: str, row: Row) -> str:
    return _cell_text(row.cells[task])


def _mean_of(name: str, row: Row) -> str:
    return _mean_text(row.means[name])


def _ppt_text(row: Row) -> str:
    value = '–' if row.ppt is None else f'{row.ppt:.3f}'
    return f'{value} ({row.printed_ppt})' if row.printed_ppt else value


def _rank_text(row: Row) -> str:
    return '–' if row.rank is None else f'{row.rank:.2f}'


def _range_text(row: Row) -> str:
    if row.trainable is None:
        return '–'
    low, high = row.trainable
    return f'{low:,}' if low == high else f'{low:,} to {high:,}'


def _cell_text(cell: Cell) -> str:
    if cell.mean is None:
        return 'failed' if cell.state == 'failed' else '–'
    text = f'{cell.mean:.2f}'
    if cell.spread is not None:
        text += f' ± {cell.spread:.2f}'
    if cell.spread is None and cell.state != 'partial':
        return text
    return f'{text} (n={len(cell.scores)})'


def _mean_text(mean: Mean) -> str:
    if mean.value is None:
        return '–'
    text = f'{mean.value:.2f}'
    if mean.spread is not None:
        text += f' ± {mean.spread:.2f} (n={mean.seeds})'
    return text if mean.complete else f'{text} ({mean.tasks}/{mean.of})'


def _markdown(table: Table, columns: Sequence[Column]) -> str:
    lines = [
        f'**{markdown(table.title)}**',
        '',
        _md_line(markdown(column.head) for column in columns),
        _md_line(':---' if column.kind == 'words' else '---:' for column in columns),
        *(
            _md_line(markdown(column.text(row)) for column in columns)
            for row in table.rows
        ),
        '',
        *(f'- {markdown(note)}' for note in table.notes),
    ]
    return '\n'.join(lines) + '\n'


def _md_line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def markdown(text: str) -> str:
    """A text in a line of Markdown, or in a cell of a table, and nothing but a text."""
    text = re.sub(r'([\\|`*\[\]])', r'\\\1', ' '.join(text.split()))
    # A sign before a number is none that begins an element of HTML.
    return re.sub(r'<(?=[A-Za-z/!?])', '&lt;', text.replace('&', '&amp;'))


def _csv(table: Table, by: By) -> str:
    """One line per row; a score, its spread, its seeds and its state in own columns."""
    head = ['protocol', 'suite', 'backbone', 'metric', 'method', 'family', 'source']
    head += ['trainable_min', 'trainable_max']
    tasks = list(table.tasks) if by == 'task' or len(table.tasks) == 1 else []
    for task in tasks:
        head += [task, f'{task} spread', f'{task} seeds', f'{task} state']
    names = _mean_columns(table) if len(table.tasks) > 1 else []
    for name in names:
        label = table.rows[0].means[name].label
        head += [label, f'{label} spread', f'{label} tasks']
    head += ['ppt', 'printed_ppt', 'mean_rank', 'verified', 'notes']
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(head)
    for row in table.rows:
        line: list[object] = [table.protocol, table.suite, table.backbone]
        line += [table.metric.label, row.label, row.family, row.source]
        line += list(row.trainable or ('', ''))
        for task in tasks:
            cell = row.cells[task]
            line += [_number(cell.mean), _number(cell.spread)]
            line += [len(cell.scores), cell.state]
        for name in names:
            mean = row.means[name]
            line += [_number(mean.value), _number(mean.spread)]
            line.append(f'{mean.tasks}/{mean.of}')
        line += [_number(row.ppt), row.printed_ppt, _number(row.rank), row.verified]
        writer.writerow([*line, '; '.join(row.notes)])
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.6g}'
