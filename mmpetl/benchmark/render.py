"""A table as text: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Literal

from mmpetl.benchmark.table_parts import Cell, Mean, Row, Table
from mmpetl.core import PETLError

By = Literal['task', 'group']
Format = Literal['md', 'csv', 'tex']

FORMATS: tuple[Format, ...] = ('md', 'csv', 'tex')


def render(table: Table, form: Format = 'md', by: By = 'task') -> str:
    """A table as text.

    Args:
        table: What :func:`build_tables` gives.
        form: ``md``, ``csv`` or ``tex``.
        by: Columns per ``task``, or per ``group`` of tasks only.

    Raises:
        PETLError: Another format, or another kind of columns.
    """
    if form not in FORMATS:
        raise PETLError(f'no table format {form!r}; there are {", ".join(FORMATS)}')
    if by not in ('task', 'group'):
        raise PETLError(f'columns are by task or by group, not by {by!r}')
    return {'md': _markdown, 'csv': _csv, 'tex': _latex}[form](table, by)


def _mean_columns(table: Table) -> list[str]:
    return list(table.rows[0].means) if table.rows else []


def _header(table: Table, by: By) -> list[str]:
    head = ['method', 'family', 'trainable']
    if by == 'task':
        head += list(table.tasks)
    if len(table.tasks) > 1:
        head += [table.rows[0].means[name].label for name in _mean_columns(table)]
    elif by == 'group':
        head += list(table.tasks)
    return [*head, 'PPT', 'mean rank', *(['verified'] if _asked(table) else [])]


def _asked(table: Table) -> bool:
    """Whether somebody asked what of the table is verified."""
    return any(row.verified for row in table.rows)


def _texts(table: Table, row: Row, by: By) -> list[str]:
    texts = [f'{row.label} ‡' if row.marks else row.label, row.family, _range_text(row)]
    if by == 'task' or len(table.tasks) == 1:
        texts += [_cell_text(row.cells[task]) for task in table.tasks]
    if len(table.tasks) > 1:
        texts += [_mean_text(row.means[name]) for name in _mean_columns(table)]
    value = '–' if row.ppt is None else f'{row.ppt:.3f}'
    if row.printed_ppt:
        value += f' ({row.printed_ppt})'
    texts += [value, '–' if row.rank is None else f'{row.rank:.2f}']
    return [*texts, *([row.verified or '–'] if _asked(table) else [])]


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
    return f'{text} (n={len(cell.scores)})' if cell.state == 'partial' else text


def _mean_text(mean: Mean) -> str:
    if mean.value is None:
        return '–'
    text = f'{mean.value:.2f}'
    if mean.spread is not None:
        text += f' ± {mean.spread:.2f}'
    return text if mean.complete else f'{text} ({mean.tasks}/{mean.of})'


def _markdown(table: Table, by: By) -> str:
    head = _header(table, by)
    lines = [
        f'**{_md(table.title)}**',
        '',
        _md_line(head),
        _md_line([':---', ':---', *['---:'] * (len(head) - 2)]),
        *(_md_line(map(_md, _texts(table, row, by))) for row in table.rows),
        '',
        *(f'- {_md(note)}' for note in table.notes),
    ]
    return '\n'.join(lines) + '\n'


def _md_line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _md(text: str) -> str:
    text = re.sub(r'([\\|`*\[\]])', r'\\\1', ' '.join(text.split()))
    return text.replace('&', '&amp;').replace('<', '&lt;')


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


def _latex(table: Table, by: By) -> str:
    """A ``tabular`` for booktabs; notes below as a paragraph."""
    head = _header(table, by)
    columns = 'll' + 'r' * (len(head) - 2)
    lines = [
        '% needs \\usepackage{booktabs}',
        '\\begin{table}',
        '\\centering',
        f'\\caption{{{_tex(table.title)}}}',
        f'\\begin{{tabular}}{{{columns}}}',
        '\\toprule',
        ' & '.join(map(_tex, head)) + ' \\\\',
        '\\midrule',
        *(
            ' & '.join(map(_tex, _texts(table, row, by))) + ' \\\\'
            for row in table.rows
        ),
        '\\bottomrule',
        '\\end{tabular}',
        *(f'\\par\\footnotesize {_tex(note)}' for note in table.notes),
        '\\end{table}',
    ]
    return '\n'.join(lines) + '\n'


TEX = {
    '\\': '\\textbackslash{}',
    '~': '\\textasciitilde{}',
    '^': '\\textasciicircum{}',
    '±': '$\\pm$',
    '†': '$^\\dagger$',
    '‡': '$^\\ddagger$',
    '–': '--',
    '<': '$<$',
    '>': '$>$',
    # A bracket at the start of a line would be an argument of the line break before it.
    '[': '{[}',
    ']': '{]}',
    **{c: f'\\{c}' for c in '&%$#_{}'},
}


def _tex(text: str) -> str:
    return ''.join(TEX.get(char, char) for char in ' '.join(text.split()))
