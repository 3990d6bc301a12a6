"""LaTeX of tables: whole by an independent reader, and compiled where that can be."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import synthetic

from mmpetl.benchmark.latex import escape
from mmpetl.benchmark.records import Job, Record
from mmpetl.benchmark.render import render
from mmpetl.benchmark.tables import build_tables
from mmpetl.core import PETLError

EVIL = r'a|b & c_d% [x] <i> #1 $2 {3} ~^ \end{tabular} \\ "q" é 中 ±'


def record(method, task, score, seed=1, group='natural', variant='', count=294_912):
    return Record(
        Job(f'vtab/{task}', method, seed, variant=variant),
        'done',
        family='side & more',
        task=task,
        group=group,
        backbone='ViT-B/16',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        counts={'delta': count},
    )


def small(variant=''):
    found = []
    for task, group in (('svhn', 'natural'), ('dtd', 'natural'), ('dmlab', 'x_y')):
        for seed in (1, 2):
            found += [
                record('LoRA', task, 70.0 + seed, seed, group, variant),
                record('SSF', task, 70.0 + seed, seed, group, count=85_798_656),
                record('BitFit', task, 60.0 + seed, seed, group),
            ]
    found.append(record('GPS', 'svhn', 99.0, 1))
    (table,) = build_tables(found)
    return table


def wide():
    records = [r for r in synthetic.records(1500) if r.job.recipe.startswith('vtab')]
    keep = ('LoRA', 'BitFit', 'LinearProbe', 'Full')
    (table,) = build_tables([r for r in records if r.job.method in keep])
    return table


# ------------------------------------------------------------------ a reader

TOKEN = re.compile(r'\\[A-Za-z]+\*?|\\.|%[^\n]*|[{}&$#_^~]|[^\\%{}&$#_^~]+', re.DOTALL)


def read(tex):
    """Tokens of LaTeX, after holding braces, environments and mathematics to it."""
    tokens = [t for t in TOKEN.findall(tex) if not t.startswith('%')]
    assert ''.join(TOKEN.findall(tex)) == tex
    stack, in_math, place = [], False, 0
    while place < len(tokens):
        token = tokens[place]
        if token in ('\\begin', '\\end'):
            assert tokens[place + 1] == '{'
            name = tokens[place + 2]
            assert tokens[place + 3] == '}'
            if token == '\\begin':
                stack.append(name)
            else:
                assert stack.pop() == name
            place += 4
            continue
        if token == '{':
            stack.append('{')
        elif token == '}':
            assert stack.pop() == '{'
        elif token == '$':
            in_math = not in_math
        elif token == '^':
            assert in_math
        else:
            # An underscore, a hash or a tilde that is not escaped is none of ours.
            assert token not in ('_', '#', '~')
        place += 1
    assert stack == []
    assert not in_math
    return tokens


def lines_of(tex):
    """Cells of the rows of the only tabular, split at its own level of braces."""
    spec = re.search(r'\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}', tex).group(1)
    body = tex.split('\\toprule')[1].split('\\bottomrule')[0].replace('\\midrule', '')
    rows, cell, depth = [[]], '', 0
    for token in TOKEN.findall(body):
        depth += {'{': 1, '}': -1}.get(token, 0)
        if token == '&' and depth == 0:
            rows[-1].append(cell.strip())
            cell = ''
        elif token == '\\\\' and depth == 0:
            rows[-1].append(cell.strip())
            cell = ''
            rows.append([])
        else:
            cell += token
    assert cell.strip() == ''
    assert rows.pop() == []
    assert all(len(row) == len(spec) for row in rows)
    return rows


TABLES = {
    'small': lambda: render(small(), 'tex'),
    'evil': lambda: render(small(EVIL), 'tex', caption=EVIL, label='tab:a-1'),
    'chosen': lambda: render(
        small(), 'tex', columns=['method', 'plain', 'dmlab', 'ppt'], wide=True
    ),
    'wide': lambda: render(wide(), 'tex'),
    'group': lambda: render(wide(), 'tex', by='group'),
}


@pytest.mark.parametrize('name', TABLES)
def test_it_is_whole(name):
    tex = TABLES[name]()
    read(tex)
    lines_of(tex)
    assert '\\caption{' in tex
    assert '\\label{tab:' in tex


@pytest.mark.parametrize(
    'broken',
    ['{', '}', '$', '\\end{x}', '\\begin{x}', 'a_b', 'a^b', '#', '\\begin{x}}'],
)
def test_the_reader_finds_what_is_broken(broken):
    with pytest.raises((AssertionError, IndexError)):
        read(f'\\begin{{table}}{broken}\\end{{table}}')


def test_the_reader_finds_a_cell_too_many():
    tex = render(small(), 'tex').replace('\\midrule\n', '\\midrule\n& ')
    with pytest.raises(AssertionError):
        lines_of(tex)


def test_texts_are_printed_as_they_are():
    assert escape('100% & #1_a') == r'100\% \& \#1\_a'
    assert escape('a\\b^c~d') == r'a\textbackslash{}b\textasciicircum{}c' + (
        r'\textasciitilde{}d'
    )
    # Letters of Latin scripts stay; others become their codes, or what they stand for.
    assert escape('é中²') == 'é{[}U+4E2D{]}2'
    assert escape('a\n\x07b') == 'a b'


def test_the_best_are_bold_ties_too_and_published_ones_never():
    keys = ['method', 'family', 'trainable', 'svhn', 'plain', 'ppt', 'rank']
    head, *rows = lines_of(render(small(), 'tex', columns=keys))
    assert head[:3] == ['Method', 'Family', 'Params (M)']
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for name in ('LoRA', 'SSF'):
        assert by_name[name]['svhn'] == '\\textbf{71.50}{\\tiny$\\pm$0.71}'
        assert by_name[name]['Mean'] == '\\textbf{71.50}{\\tiny$\\pm$0.71}'
        assert by_name[name]['Rank'] == '\\textbf{1.50}'
    assert by_name['BitFit']['svhn'] == '61.50{\\tiny$\\pm$0.71}'
    # 99.00 is the highest, of one seed of two, and its mean is of one task of three.
    assert by_name['GPS']['svhn'] == '99.00\\textsuperscript{\\tiny n=1}'
    assert by_name['GPS']['Mean'] == '99.00\\textsuperscript{\\tiny 1/3}'
    # Fewer parameters are no score; PPT is, and is of the small one.
    assert 'textbf' not in by_name['LoRA']['Params (M)']
    assert by_name['LoRA']['PPT'].startswith('\\textbf')
    assert 'textbf' not in by_name['SSF']['PPT']
    assert (by_name['LoRA']['Params (M)'], by_name['SSF']['Params (M)']) == (
        '0.295',
        '85.8',
    )


def test_a_spread_over_fewer_seeds_says_over_how_many():
    found = [record('LoRA', t, 70.0 + s, s) for t in ('svhn', 'dtd') for s in (1, 2, 3)]
    lost = [record('SSF', t, 60.0 + s, s) for t in ('svhn', 'dtd') for s in (1, 2, 3)]
    (table,) = build_tables([*found, *lost[:-1]])
    tex = render(table, 'tex', columns=['method', 'dtd', 'plain'])
    head, first, last = lines_of(tex)
    # Bold is the best of several; the other score of this task lacks a seed.
    whole = '72.00{\\tiny$\\pm$1.00}'
    assert first == ['LoRA', whole, f'\\textbf{{72.00}}{whole[5:]}']
    few = '\\textsuperscript{\\tiny n=2}'
    assert last[1] == f'61.50{{\\tiny$\\pm$0.71}}{few}'
    assert last[2] == f'61.75{{\\tiny$\\pm$0.71}}{few}'
    assert 'Where no n is given it is 3.' in tex


def test_a_task_that_all_ran_with_fewer_seeds_says_over_how_many():
    found = [
        record(method, task, 70.0 + seed, seed)
        for method in ('LoRA', 'SSF')
        for task, seeds in (('svhn', (1, 2, 3)), ('dtd', (1, 2)))
        for seed in seeds
    ]
    (table,) = build_tables(found)
    tex = render(table, 'tex', columns=['method', 'svhn', 'dtd'])
    few = '{\\tiny$\\pm$0.71}\\textsuperscript{\\tiny n=2}'
    for line in lines_of(tex)[1:]:
        assert 'n=' not in line[1]
        assert line[2].endswith(few)
    assert 'Where no n is given it is 3.' in tex


def test_a_published_row_is_never_bold():
    table = small()
    best = max(table.rows, key=lambda row: row.means['plain'].value or 0)
    better = replace(
        best,
        label='[LoRA, a paper]',
        source='a paper',
        rank=None,
        cells={
            t: replace(c, scores={0: 99.9}, expected=1) for t, c in best.cells.items()
        },
    )
    keys = ['method', 'svhn', 'dtd']
    tex = render(replace(table, rows=(*table.rows, better)), 'tex', columns=keys)
    assert '{[}LoRA, a paper{]}' in tex
    assert '99.90' in tex
    assert '\\textbf{99.90}' not in tex


def test_columns_are_those_asked_for_in_their_order():
    table = small()
    head = lines_of(render(table, 'tex', columns=['method', 'ppt', 'means', 'svhn']))[0]
    assert head == ['Method', 'PPT', 'natural', 'x\\_y', 'Mean', 'Group mean', 'svhn']
    md = render(table, 'md', columns=['method', 'tasks'])
    assert md.splitlines()[2] == '| method | dtd | svhn | dmlab |'
    with pytest.raises(PETLError, match="no column 'svnh'. Did you mean 'svhn'"):
        render(table, 'tex', columns=['svnh'])
    with pytest.raises(PETLError, match='csv holds every column'):
        render(table, 'csv', columns=['method'])
    with pytest.raises(PETLError, match='no label for LaTeX'):
        render(table, 'tex', label='a b')


def test_many_columns_are_narrow():
    tex = render(wide(), 'tex')
    head, *rows = lines_of(tex)
    assert sum(cell.startswith('\\rotatebox{90}') for cell in head) >= 19
    score = re.compile(r'(\\textbf\{)?\d+\.\d\}?(\\textsuperscript\{\\tiny n=\d\})?')
    assert all(score.fullmatch(row[3]) for row in rows)
    assert 'Spreads of single tasks are left out.' in tex
    assert '\\resizebox{\\linewidth}' in tex


# ------------------------------------------------------------------ compiled

COMPILERS = {
    'pdflatex': ['-interaction=nonstopmode', '-halt-on-error'],
    'lualatex': ['-interaction=nonstopmode', '-halt-on-error'],
    'xelatex': ['-interaction=nonstopmode', '-halt-on-error'],
    'tectonic': [],
}
FOUND = next((name for name in COMPILERS if shutil.which(name)), None)


@pytest.mark.skipif(FOUND is None, reason='no LaTeX compiler is installed')
def test_a_paper_of_two_columns_compiles(tmp_path):
    body = '\n'.join(make() for make in TABLES.values())
    paper = (
        '\\documentclass[twocolumn]{article}\n'
        # Outlines where there are some: small installations cannot draw fonts.
        '\\IfFileExists{lmodern.sty}{\\usepackage[T1]{fontenc}\\usepackage{lmodern}}{}\n'
        '\\usepackage{booktabs}\n\\usepackage{graphicx}\n\\begin{document}\n'
        f'{body}\n\\end{{document}}\n'
    )
    (tmp_path / 'paper.tex').write_text(paper, encoding='utf-8')
    done = subprocess.run(
        [FOUND, *COMPILERS[FOUND], 'paper.tex'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors='replace',
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert (tmp_path / 'paper.pdf').read_bytes().startswith(b'%PDF')
    # Nothing is wider than its column.
    assert 'Overfull \\hbox' not in said
