"""A table for a paper: LaTeX that fits a column, with booktabs and graphicx alone.

Every text of a record is escaped, so that no name of a method or task ends a cell, a
line or a run of LaTeX.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmpetl.benchmark.table_parts import Cell, Column, Mean, Row, Table
from mmpetl.core import PETLError

NARROW = 6
"""With more columns of scores than these, their heads stand upright, scores have one
decimal, and only means keep their spread."""


MOST, MOST_WIDE = 10, 24
"""Columns that can be read at the width of a column of a page, and of both."""

SCORES = ('task', 'mean')
"""Kinds of columns that hold scores."""

TEX = {
    '\\': '\\textbackslash{}',
    '~': '\\textasciitilde{}',
    '^': '\\textasciicircum{}',
    '|': '\\textbar{}',
    '"': "''",
    '±': '$\\pm$',
    '×': '$\\times$',
    '†': '$^\\dagger$',
    '‡': '$^\\ddagger$',
    '–': '--',
    '—': '---',
    '‘': '`',
    '’': "'",
    '“': '``',
    '”': "''",
    '…': '\\dots{}',
    '<': '$<$',
    '>': '$>$',
    '≤': '$\\le$',
    '≥': '$\\ge$',
    # A bracket at the start of a line would be an argument of the line break before it.
    '[': '{[}',
    ']': '{]}',
    **{c: f'\\{c}' for c in '&%$#_{}'},
}


def escape(text: str) -> str:
    """A text as LaTeX prints it, and nothing but a text.

    Letters of Latin scripts stay, as every LaTeX of today reads UTF-8. Another letter,
    which the fonts of a paper may lack, becomes its code: ``[U+4E2D]``.
    """
    return ''.join(map(_char, ' '.join(text.split())))


def _char(char: str) -> str:
    if char in TEX:
        return TEX[char]
    # Latin-1 and Latin Extended-A, the letters of the T1 encoding.
    if char.isascii() or (char.isalpha() and ord(char) < 0x180):
        return char if char.isprintable() else ''
    plain = unicodedata.normalize('NFKC', char)
    if plain.isascii() and plain.isprintable():
        return ''.join(TEX.get(c, c) for c in plain)
    return f'{{[}}U+{ord(char):04X}{{]}}'


def latex(
    table: Table,
    columns: Sequence[Column],
    label: str | None = None,
    caption: str | None = None,
    wide: bool = False,
) -> str:
    r"""A floating table, as wide as its column at most.

    The best of a column is bold, and so is what prints like it; a published row never
    is, nor one that is not to be compared. A bold number is the highest, which is no
    test.

    Args:
        table: What :func:`mmpetl.benchmark.tables.build_tables` gives.
        columns: What to print; see :func:`mmpetl.benchmark.render.columns_of`.
        label: Of ``\label``; made of suite, backbone and metric by default.
        caption: A plain text; the title by default.
        wide: Whether it spans both columns of a page.

    Raises:
        PETLError: The label is none that LaTeX can refer to.
    """
    label = label or _slug(table)
    if not re.fullmatch(r'[A-Za-z0-9:._+/-]+', label):
        raise PETLError(
            f'{label!r} is no label for LaTeX: letters, digits and :._+/- make one'
        )
    narrow = sum(column.kind in SCORES for column in columns) > NARROW
    usual = _usual(table)
    cells = [
        [_cell(column, row, narrow, usual) for column in columns] for row in table.rows
    ]
    for place, column in enumerate(columns):
        for number in _best(table, column, [line[place] for line in cells]):
            cells[number][place] = _bold(cells[number][place])
    name = 'table*' if wide else 'table'
    heads = [_head(column, narrow) for column in columns]
    spec = ''.join('l' if column.kind == 'words' else 'r' for column in columns)
    lines = [
        '% needs \\usepackage{booktabs} and \\usepackage{graphicx}',
        *_advice(len(columns), wide),
        f'\\begin{{{name}}}[t]',
        '\\centering',
        f'\\caption{{{escape(caption or table.title)}}}',
        f'\\label{{{label}}}',
        '\\footnotesize',
        '\\setlength{\\tabcolsep}{3pt}',
        # Wider than the column, it is scaled down to it; never up.
        '\\sbox0{%',
        f'\\begin{{tabular}}{{@{{}}{spec}@{{}}}}',
        '\\toprule',
        ' & '.join(heads) + ' \\\\',
        '\\midrule',
        *(' & '.join(line) + ' \\\\' for line in cells),
        '\\bottomrule',
        '\\end{tabular}}%',
        '\\ifdim\\wd0>\\linewidth',
        '\\resizebox{\\linewidth}{!}{\\usebox0}%',
        '\\else',
        '\\usebox0 %',
        '\\fi',
        '',
        '\\smallskip',
        '\\parbox{\\linewidth}{\\scriptsize\\raggedright',
        *(f'{escape(note)}\\par' for note in _notes(table, columns, narrow)),
        '}',
        f'\\end{{{name}}}',
    ]
    return '\n'.join(lines) + '\n'


def _advice(num: int, wide: bool) -> list[str]:
    """What to do where a table gets too small to read."""
    most = MOST_WIDE if wide else MOST
    if num <= most:
        return []
    return [
        f'% {num} columns get small print: --columns, --by group or --wide make less'
    ]


def _slug(table: Table) -> str:
    text = f'{table.suite} {table.backbone} {table.metric.key}'.lower()
    return 'tab:' + re.sub(r'[^a-z0-9]+', '-', text).strip('-')


HEADS = {
    'method': 'Method',
    'family': 'Family',
    'trainable': 'Params (M)',
    'ppt': 'PPT',
    'rank': 'Rank',
    'verified': 'Verified',
    'plain': 'Mean',
    'group': 'Group mean',
}


def _head(column: Column, narrow: bool) -> str:
    known = column.kind != 'task'
    text = escape(HEADS.get(column.key, column.key) if known else column.key)
    if narrow and column.kind in SCORES:
        return f'\\rotatebox{{90}}{{{text}}}'
    return text


def _usual(table: Table) -> int:
    """Seeds of a cell that lacks none."""
    own = [row for row in table.rows if not row.source]
    return max((len(c.scores) for row in own for c in row.cells.values()), default=0)


def _cell(column: Column, row: Row, narrow: bool, usual: int) -> str:
    if column.kind == 'task':
        # Of a printed row nobody says over how many seeds it is.
        return _score(row.cells[column.key], narrow, 0 if row.source else usual)
    if column.kind == 'mean':
        return _mean(row.means[column.key], narrow, usual)
    if column.key == 'trainable':
        return _millions(row)
    return escape(column.text(row))


def _millions(row: Row) -> str:
    if row.trainable is None:
        return '--'
    texts = dict.fromkeys(_million(count) for count in row.trainable)
    return '--'.join(texts)


def _million(count: int) -> str:
    """Three digits that count: 0.295, 85.8, 0.00077."""
    value = count / 1e6
    if value == 0:
        return '0'
    if value >= 10:
        return f'{value:.1f}'
    return f'{float(f"{value:.3g}"):f}'.rstrip('0').rstrip('.')


def _score(cell: Cell, narrow: bool, usual: int) -> str:
    if cell.mean is None:
        return 'failed' if cell.state == 'failed' else '--'
    text = _number(cell.mean, None if narrow else cell.spread, narrow)
    count = len(cell.scores)
    return text + (_small(f'n={count}') if usual and count != usual else '')


def _mean(mean: Mean, narrow: bool, usual: int) -> str:
    if mean.value is None:
        return '--'
    text = _number(mean.value, mean.spread, narrow)
    if mean.spread is not None and mean.seeds != usual:
        text += _small(f'n={mean.seeds}')
    return text if mean.complete else text + _small(f'{mean.tasks}/{mean.of}')


def _number(value: float, spread: float | None, narrow: bool) -> str:
    digits = 1 if narrow else 2
    text = f'{value:.{digits}f}'
    if spread is not None:
        text += f'{{\\tiny$\\pm${spread:.{digits}f}}}'
    return text


def _small(text: str) -> str:
    return f'\\textsuperscript{{\\tiny {text}}}'


def _bold(text: str) -> str:
    """The number in bold, what stands behind it as it is."""
    number, mark, rest = re.match(r'([^{\\(]*)([{\\(]?)(.*)', text, re.DOTALL).groups()
    return f'\\textbf{{{number.rstrip()}}}{mark}{rest}'


def _best(table: Table, column: Column, texts: Sequence[str]) -> list[int]:
    """Places of the rows to be bold: ours that print the best number."""
    if column.kind == 'words' or column.key in ('trainable', 'verified'):
        return []
    numbers = {}
    for place, (row, text) in enumerate(zip(table.rows, texts, strict=True)):
        found = re.match(r'-?\d+(\.\d+)?', text)
        ours = not row.source and not row.marks
        if found and ours and _whole(column, row):
            numbers[place] = float(found.group())
    if len(numbers) < 2:
        return []
    best = (min if column.key == 'rank' else max)(numbers.values())
    return [place for place, number in numbers.items() if number == best]


def _whole(column: Column, row: Row) -> bool:
    """Whether a cell lacks no seed and no task."""
    if column.kind == 'task':
        return row.cells[column.key].state == 'done'
    return row.complete


def _notes(table: Table, columns: Sequence[Column], narrow: bool) -> list[str]:
    notes = list(table.notes)
    if _usual(table) > 1:
        notes.append(f'Where no n is given it is {_usual(table)}.')
    if narrow and any(column.kind == 'task' for column in columns):
        notes.append('Spreads of single tasks are left out.')
    notes.append('Bold: the best number of a column as printed, which is no test.')
    return notes
