"""What a table's differences are worth, as text and as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmpetl.benchmark.statistics import (
    compare_pairs,
    critical_difference,
    draw_critical_difference,
    friedman,
    mean_ranks,
    shared_tasks,
)
from mmpetl.benchmark.table_parts import Table
from mmpetl.core import PETLError


def compare(table: Table, margin: float = 0.0) -> str:
    """Ranks, the Friedman test and every pair of methods, in Markdown.

    Args:
        table: Its own rows are compared, published ones are not.
        margin: Differences of a task's mean up to this many points are ties.
    """
    scores, runs = table.scores(), table.runs()
    lines = [f'**{table.title}: differences between methods**', '']
    left_out = [label for label in runs if label not in scores]
    if len(scores) > 1:
        ranks = mean_ranks(scores)
        num_tasks = len(shared_tasks(scores))
        gap = critical_difference(len(ranks), num_tasks)
        lines += [
            f'Mean rank over {num_tasks} tasks (1 is best); two methods differ at the '
            f'5 % level where ranks are {gap:.2f} apart (Nemenyi).',
            '',
            '| method | mean rank |',
            '| :--- | ---: |',
            *(f'| {label} | {rank:.2f} |' for label, rank in ranks.items()),
            '',
        ]
        if len(scores) > 2 and num_tasks > 1:
            test = friedman(scores)
            lines += [
                f'Friedman: chi2 = {test.chi2:.2f}, p = {test.p:.2g}; '
                f'Iman-Davenport: F = {test.f:.2f}, p = {test.f_p:.2g}.',
                '',
            ]
    if left_out:
        lines += [f'Not ranked, tasks are missing: {", ".join(left_out)}.', '']
    pairs = compare_pairs(runs, margin)
    if pairs:
        lines += [
            '| a | b | win | tie | loss | a - b | p over runs | p over tasks |',
            '| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |',
        ]
        lines += [
            f'| {p.a} | {p.b} | {p.wins} | {p.ties} | {p.losses} | '
            f'{p.difference:+.2f} | {p.p_runs:.3g} | {p.p_tasks:.3g} |'
            for p in pairs
        ]
        lines += [
            '',
            f'- Win, tie, loss: tasks on which the mean of a over the shared seeds is '
            f'above, within {margin:g} points of, or below that of b.',
            '- p: two-sided Wilcoxon signed-rank tests with the correction of Holm '
            'over all pairs of this table. Over runs, each task and seed is an '
            'observation; seeds of one task are not independent, so trust it less '
            'than the one over tasks.',
        ]
    return '\n'.join(lines) + '\n'


def draw(tables: Sequence[Table], path: str | os.PathLike) -> list[Path]:
    """A critical-difference picture of every table that two methods complete.

    Several tables give several files: ``cd.png``, ``cd_2.png``, ...

    Raises:
        PETLError: No table has two complete rows.
    """
    path = Path(path)
    written = []
    for table in tables:
        scores = table.scores()
        if len(scores) < 2:
            continue
        ranks = mean_ranks(scores)
        gap = critical_difference(len(ranks), len(shared_tasks(scores)))
        number = len(written) + 1
        name = path if number == 1 else path.with_stem(f'{path.stem}_{number}')
        written.append(draw_critical_difference(ranks, gap, name, table.title))
    if not written:
        raise PETLError(
            'no picture of ranks: no table has two methods that did all of its tasks'
        )
    return written
