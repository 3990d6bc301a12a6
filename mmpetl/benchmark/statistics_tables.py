"""What a table's differences are worth, as text and as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import stdev

from mmpetl.benchmark.designs import (
    ALPHA,
    POWER,
    Design,
    counted,
    least_p_friedman,
    num_for_effect,
)
from mmpetl.benchmark.paired import EXACT_BELOW, PairOfModels
from mmpetl.benchmark.render import markdown
from mmpetl.benchmark.resampling import RUN_RESAMPLES, SEED, Uncertain, uncertainty
from mmpetl.benchmark.samples import Pictures, pairs_of
from mmpetl.benchmark.statistics import (
    Pair,
    compare_pairs,
    critical_difference,
    draw_critical_difference,
    friedman,
    mean_ranks,
    rounded,
    shared_seeds,
    shared_tasks,
)
from mmpetl.benchmark.table_parts import Table
from mmpetl.core import PETLError, suggest


def design_of(table: Table) -> Design:
    """What a table's complete rows can show, with the seeds that all of them have."""
    whole = _whole(table)
    return Design(table.suite, len(whole), len(table.tasks), shared_seeds(whole))


def _whole(table: Table) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by label, task and seed of the rows that are ranked."""
    runs = table.runs()
    return {label: runs[label] for label in table.scores()}


def ranks_uncertain(table: Table) -> Mapping[str, Uncertain] | None:
    """Intervals of the complete rows; None where nothing can be drawn anew."""
    whole = _whole(table)
    return uncertainty(whole) if len(whole) > 1 and shared_seeds(whole) else None


def check_rows(tables: Sequence[Table], rows: Collection[str]) -> None:
    """Raise PETLError where no table has a row of some name that may be compared."""
    known = {label: None for table in tables for label in table.runs()}
    for row in rows:
        if row not in known:
            raise PETLError(
                f'no row {row!r} can be compared.{suggest(row, known)} There are '
                f'{", ".join(sorted(known)) or "none"}'
            )


def compare(
    table: Table,
    margin: float = 0.0,
    pictures: Pictures | None = None,
    rows: Collection[str] | None = None,
) -> str:
    """Ranks, the Friedman test and every pair of methods, in Markdown.

    Args:
        table: Its own rows are compared, published ones are not.
        margin: Differences of a task's mean up to this many points are ties.
        pictures: For tests picture by picture, beside those over tasks and seeds.
        rows: Pairs of these rows alone, every test of them; see :func:`check_rows`.
            Corrections are over the pairs that are shown.
    """
    scores, runs = table.scores(), table.runs()
    lines = [f'**{markdown(table.title)}: differences between methods**', '']
    left_out = [label for label in runs if label not in scores]
    lines += [*(f'- {markdown(line)}' for line in design_of(table).sentences()), '']
    if len(scores) > 1:
        lines += _ranks(table, scores)
    if left_out:
        lines += [
            f'Not ranked, tasks are missing: {", ".join(map(markdown, left_out))}.',
            '',
        ]
    marked = [f'{row.label} ‡' for row in table.rows if row.marks]
    if marked:
        names = ', '.join(map(markdown, marked))
        lines += [f'Not compared, which the table says why: {names}.', '']
    if rows is not None:
        runs = {label: runs[label] for label in runs if label in rows}
    pairs = compare_pairs(runs, margin)
    if pairs:
        lines += _pairs(pairs, margin)
    if pictures is not None:
        lines += ['', *_pictures(pictures, rows is not None)]
    return '\n'.join(lines) + '\n'


def _ranks(table: Table, scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    ranks = mean_ranks(scores)
    num_tasks = len(shared_tasks(scores))
    tasks = '1 task' if num_tasks == 1 else f'{num_tasks} tasks'
    gap = critical_difference(len(ranks), num_tasks)
    uncertain = ranks_uncertain(table)
    lines = [
        f'Mean rank over {tasks} (1 is best); two methods differ at the 5 % '
        f'level where ranks are {gap:.2f} apart (Nemenyi). Nearer ones are not '
        'shown to differ, which does not make them equal.',
        '',
    ]
    if uncertain is None:
        lines += ['| method | mean rank |', '| :--- | ---: |']
        lines += [
            f'| {markdown(label)} | {rank:.2f} |' for label, rank in ranks.items()
        ]
        why = (
            'One task with one seed gives no interval of a rank.'
            if design_of(table).num_seeds
            else 'No interval of a rank: on some task the methods have no seed in '
            'common.'
        )
        lines += ['', why, '']
    else:
        lines += [
            '| method | mean rank | 95 % interval | best in |',
            '| :--- | ---: | ---: | ---: |',
        ]
        for label, rank in ranks.items():
            one = uncertain[label]
            lines.append(
                _line(
                    label,
                    f'{rank:.2f}',
                    f'{one.rank.low:.2f} to {one.rank.high:.2f}',
                    f'{100 * one.best:.0f} %',
                )
            )
        lines += ['', resampled(table), '']
    if len(scores) > 2 and num_tasks > 1:
        test = friedman(scores)
        least = least_p_friedman(test.num_methods, test.num_tasks)
        text = f'Friedman: chi2 = {test.chi2:.2f}, p = {test.p:.2g}'
        if math.isfinite(test.f):
            text += f'; Iman-Davenport: F = {test.f:.2f}, p = {test.f_p:.2g}'
        else:
            text += '; Iman-Davenport has no F, as every task ranks the methods alike'
        lines += [f'{text}. By counting, no p is below {least:.2g}.', '']
    return [*lines, *_needed(scores, ranks)]


def resampled(table: Table) -> str:
    """How intervals over tasks and seeds were made."""
    design = design_of(table)
    text = (
        f'Intervals and shares of being best: percentile bootstrap over '
        f'{counted(design.num_tasks, "task")} and {counted(design.num_seeds, "seed")}, '
        f'{RUN_RESAMPLES:,} resamples, seed {SEED}.'
    )
    if design.num_tasks < 10:
        text += (
            ' From so few tasks a bootstrap gives intervals that are too narrow; the '
            'tests decide.'
        )
    return text


def _needed(
    scores: Mapping[str, Mapping[str, float]], ranks: Mapping[str, float]
) -> list[str]:
    """How many tasks would tell the first of the ranks from the second."""
    tasks = shared_tasks(scores)
    a, b = list(ranks)[:2]
    gaps = rounded(scores[a][task] - scores[b][task] for task in tasks)
    if len(gaps) < 2:
        return []
    mean, spread = sum(gaps) / len(gaps), stdev(gaps)
    needed = num_for_effect(mean, spread)
    count = 'no number of' if needed is None else f'about {needed:,}'
    return [
        markdown(
            f'First and second: {a} is {mean:+.2f} points from {b}, with a standard '
            f'deviation of {spread:.2f} (n={len(gaps)} tasks). If this is how they '
            f'differ, {count} tasks find it with p < {ALPHA:g} four times in five '
            f'(power {POWER:g}).'
        ),
        '',
    ]


def _pairs(pairs: Sequence[Pair], margin: float) -> list[str]:
    return [
        '| a | b | win | tie | loss | a - b | p over runs | p over tasks |',
        '| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |',
        *(
            _line(
                *(p.a, p.b, p.wins, p.ties, p.losses, f'{p.difference:+.2f}'),
                *(f'{p.p_runs:.3g}', f'{p.p_tasks:.3g}'),
            )
            for p in pairs
        ),
        '',
        f'- Win, tie, loss: tasks on which the mean of a over the shared seeds is '
        f'above, within {margin:g} points of, or below that of b.',
        '- p: two-sided Wilcoxon signed-rank tests with the correction of Holm '
        f'over the {counted(len(pairs), "pair")} shown. Over runs, each task and seed '
        'is an observation; seeds of one task are not independent, so trust it less '
        'than the one over tasks.',
    ]


def _pictures(pictures: Pictures, every: bool) -> list[str]:
    """Tests picture by picture; every single one of them where asked for."""
    pairs = pairs_of(pictures)
    if not pairs:
        return [
            '**Picture by picture**: no two rows have predictions of the same runs.',
            *(f'- {note}' for note in pictures.notes),
        ]
    tests = [test for pair in pairs for test in pair.tests.values()]
    exact = sum(test.exact for test in tests)
    lines = [
        '**Picture by picture**',
        '',
        '| a | b | pictures | a - b | 95 % interval | a better | b better | tests |',
        '| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for pair in pairs:
        for_a, for_b = pair.found(ALPHA)
        ends = f'{pair.interval.low:+.2f} to {pair.interval.high:+.2f}'
        count = f'{sum(pair.pictures.values()):,}'
        gap = f'{pair.difference:+.2f}'
        lines.append(
            _line(pair.a, pair.b, count, gap, ends, for_a, for_b, len(pair.tests))
        )
    lines += [
        '',
        '- a - b: mean over tasks and shared seeds, in points. Interval: paired '
        f'percentile bootstrap over the pictures of each task, '
        f'{pairs[0].interval.resamples:,} resamples, seed {SEED}; tasks and trained '
        'models are held.',
        '- a better, b better: of the tests of single runs (a task and a seed), those '
        f'with p < {ALPHA:g}. McNemar, two-sided, exact (binomial) below {EXACT_BELOW} '
        'discordant pictures, else chi-squared with the correction for continuity: '
        f'{exact} exact and {len(tests) - exact} with the correction; Holm over the '
        f'{counted(len(tests), "test")} shown.',
        '- This is about these trained models and pictures like these. Another seed is '
        'another model: what holds for methods is said by the tests over tasks.',
        *(f'- {note}' for note in pictures.notes),
    ]
    return [*lines, *(_every(pairs) if every else [])]


def _every(pairs: Sequence[PairOfModels]) -> list[str]:
    lines = [
        '',
        '| a | b | task | seed | only a right | only b right | p | p corrected '
        '| least p | test |',
        '| :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | :--- |',
    ]
    for pair in pairs:
        for (task, seed), test in pair.tests.items():
            kind = 'exact' if test.exact else 'continuity'
            lines.append(
                _line(
                    *(pair.a, pair.b, task, seed, test.only_a, test.only_b),
                    f'{test.p:.3g}',
                    f'{pair.corrected[task, seed]:.3g}',
                    f'{test.least_p:.2g}',
                    kind,
                )
            )
    return lines


def _line(*cells: object) -> str:
    return f'| {" | ".join(markdown(str(cell)) for cell in cells)} |'


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
        ranks, num_tasks = mean_ranks(scores), len(shared_tasks(scores))
        uncertain = ranks_uncertain(table)
        number = len(written) + 1
        written.append(
            draw_critical_difference(
                ranks,
                critical_difference(len(ranks), num_tasks),
                path if number == 1 else path.with_stem(f'{path.stem}_{number}'),
                table.title,
                num_tasks,
                {k: (u.rank.low, u.rank.high) for k, u in uncertain.items()}
                if uncertain
                else None,
            )
        )
    if not written:
        raise PETLError(
            'no picture of ranks: no table has two methods that did all of its tasks'
        )
    return written
