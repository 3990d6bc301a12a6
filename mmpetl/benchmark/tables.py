"""Tables from records.

A table holds one protocol, one backbone, one suite and one metric; whatever differs in
one of these goes to a table of its own. Means over tasks say what they are: *plain* is
the mean over tasks, *group* the mean over the means of the groups; the two differ by
points, so none stands without its name. A mean over fewer tasks than the table has says
so and gives neither PPT nor rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from mmpetl.benchmark import published as printed
from mmpetl.benchmark.comparable import compare
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.scores import (
    Metric,
    labels_of,
    metric_of,
    percent,
    search_budget,
    suite_of,
    with_facts,
)
from mmpetl.benchmark.statistics import mean_ranks
from mmpetl.benchmark.table_parts import Cell, Mean, Row, Table
from mmpetl.benchmark.verdicts import note_of
from mmpetl.core import PETLError
from mmpetl.core.errors import shorten
from mmpetl.evaluation.ppt import ppt
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'FORMATS': 'mmpetl.benchmark.render',
        'METRICS': 'mmpetl.benchmark.scores',
        'render': 'mmpetl.benchmark.render',
    },
)

VTAB_ORDER = ('natural', 'specialised', 'structured')


def build_tables(
    records: Iterable[Record],
    published: bool = False,
    protocol: str | None = None,
    suites: Sequence[str] | None = None,
    verdicts: Mapping[str, str] | None = None,
) -> list[Table]:
    """Tables of all final runs, separated by what must not be mixed.

    Args:
        records: Any records; those of tuning runs are left out.
        published: Put the figures that others printed below each of our rows.
        protocol: Only this protocol.
        suites: Only these suites.
        verdicts: What became of the verification of runs, by id, as
            :func:`mmpetl.benchmark.verdicts.standings` gives it.

    Raises:
        PETLError: No record is left, or two records claim the same cell and seed.
    """
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    seen = 0
    for record in with_facts(records):
        seen += 1
        if record.job.stage != 'final':
            continue
        suite = suite_of(record)
        if protocol not in (None, record.job.protocol):
            continue
        if suites and suite not in suites:
            continue
        groups[record.job.protocol, suite, record.backbone].append(record)
    if not groups:
        raise PETLError(
            f'no table: none of {seen} records is a final run'
            + (f' of the {protocol} protocol' if protocol else '')
            + (f' of {", ".join(suites)}' if suites else '')
        )
    tables = []
    for (_, suite, backbone), group in sorted(groups.items()):
        labels = labels_of(group)
        for metric, part in _by_metric(group).items():
            table = build_table(part, suite, backbone, metric, labels, published)
            if verdicts is not None:
                table = with_verdicts(table, part, labels, verdicts)
            tables.append(table)
    return tables


def runs_of(table: Table, records: Iterable[Record]) -> list[tuple[Record, str]]:
    """The runs behind a table that have a score, each with the label of its row.

    Args:
        table: What :func:`build_tables` gave.
        records: Those that it was built from.
    """
    mine = [
        r
        for r in with_facts(records)
        if r.job.stage == 'final'
        and (r.job.protocol, suite_of(r), r.backbone)
        == (table.protocol, table.suite, table.backbone)
    ]
    labels = labels_of(mine)
    return [
        (r, labels[r.job.id])
        for r in mine
        if percent(r) is not None
        and r.task in table.tasks
        and metric_of(r.primary).key == table.metric.key
    ]


def with_verdicts(
    table: Table,
    records: Sequence[Record],
    labels: Mapping[str, str],
    verdicts: Mapping[str, str],
) -> Table:
    """A table that says which of its runs are verified."""
    found: dict[str, list[bool]] = defaultdict(list)
    done = [r for r in records if r.status == 'done']
    for record in done:
        state = verdicts.get(record.job.id, '')
        found[labels[record.job.id]].append(state.startswith('verified'))
    rows = tuple(
        replace(row, verified=f'{sum(found[row.label])}/{len(found[row.label])}')
        if not row.source and row.label in found
        else row
        for row in table.rows
    )
    note = note_of(verdicts, [r.job.id for r in done])
    bad = [r.job.id for r in done if verdicts.get(r.job.id) in ('falsified', 'stale')]
    warnings = (*table.warnings, note) if bad else table.warnings
    return replace(table, rows=rows, notes=(*table.notes, note), warnings=warnings)


def _by_metric(records: Sequence[Record]) -> dict[Metric, list[Record]]:
    """Records by metric. A failed one has none and goes where its task or suite is."""
    of_task: dict[str, Metric] = {}
    for record in records:
        if record.primary:
            of_task.setdefault(record.task, metric_of(record.primary))
    default = next(iter(of_task.values()), Metric('', 'score', 1))
    parts: dict[Metric, list[Record]] = defaultdict(list)
    for record in records:
        name = record.primary
        found = metric_of(name) if name else of_task.get(record.task, default)
        # The same quantity by two evaluators is one metric.
        parts[Metric(found.key, found.label, 1)].append(record)
    return dict(parts)


def build_table(
    records: Sequence[Record],
    suite: str,
    backbone: str,
    metric: Metric,
    labels: Mapping[str, str],
    published: bool = False,
) -> Table:
    """One table.

    Args:
        records: Final runs of one protocol.
        suite: Name of the set of tasks.
        backbone: Name of the backbone.
        metric: What the scores are.
        labels: Names of rows, by the id of the job.
        published: Put the figures that others printed below each of our rows.

    Raises:
        PETLError: The records mix protocols or backbones, or two of them claim the same
            cell and seed.
    """
    for what, found in (
        ('protocols', {r.job.protocol for r in records}),
        ('backbones', {r.backbone for r in records}),
    ):
        if len(found) != 1:
            raise PETLError(
                f'a table holds one of its {what}, not {len(found)} '
                f'({", ".join(sorted(found))}); build one table for each'
            )
    tasks = _tasks(records)
    cells: dict[str, dict[str, dict[int, Record]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for record in records:
        label, seed = labels[record.job.id], record.job.seed
        other = cells[label][record.task].setdefault(seed, record)
        if other is not record:
            raise PETLError(
                f'two records are {label} on {record.task} with seed {seed}: '
                f'{other.job.id} and {record.job.id}; give one of them another variant'
            )
    expected = {
        task: len({r.job.seed for r in records if r.task == task}) for task in tasks
    }
    found = compare(records, labels)
    rows = [
        _marked(_row(label, runs, tasks, expected), found.marks.get(label, ()))
        for label, runs in cells.items()
    ]
    ranks = mean_ranks(
        {
            row.label: {t: c.mean for t, c in row.cells.items() if c.mean is not None}
            for row in rows
            if row.complete and not row.marks
        }
    )
    rows = [replace(row, rank=ranks.get(row.label)) for row in rows]
    rows.sort(
        key=lambda row: (
            not row.complete,
            bool(row.marks),
            _none_last(row.means['plain'].value),
        )
    )
    warnings = [*_warnings(records), *_fewer_seeds(rows), *found.warnings]
    notes = [*_notes(records, rows, tasks), *warnings, *found.unknown]
    if published:
        rows, more = _with_published(rows, tasks, backbone, metric)
        notes += more
    return Table(
        records[0].job.protocol,
        suite,
        backbone,
        metric,
        tasks,
        tuple(rows),
        tuple(notes),
        tuple(warnings),
    )


def _none_last(value: float | None) -> float:
    """What sorts scores from high to low."""
    return math.inf if value is None else -value


def _marked(row: Row, reasons: tuple[str, ...]) -> Row:
    """A row that is not to be compared has no PPT, and no rank either."""
    if not reasons:
        return row
    return replace(row, ppt=None, marks=reasons, notes=(*row.notes, *reasons))


def _tasks(records: Sequence[Record]) -> dict[str, str]:
    """Task to group: in the order of the catalogue, others after it by name."""
    from mmpetl.datasets.catalog import CATALOG

    found = {r.task: r.group for r in records if r.group}
    found = {**{r.task: '' for r in records}, **found}
    usual = {name: i for i, name in enumerate(CATALOG)}
    groups = {name: i for i, name in enumerate(VTAB_ORDER)}
    order = sorted(
        found,
        key=lambda t: (
            groups.get(found[t], len(groups)),
            found[t],
            usual.get(t, len(usual)),
            t,
        ),
    )
    return {task: found[task] for task in order}


def _row(
    label: str,
    found: Mapping[str, Mapping[int, Record]],
    tasks: Mapping[str, str],
    expected: Mapping[str, int],
) -> Row:
    cells: dict[str, Cell] = {}
    counts: list[float] = []
    every: list[int] = []
    all_known = True
    for task in tasks:
        runs = found.get(task, {})
        scores = {seed: percent(record) for seed, record in sorted(runs.items())}
        cells[task] = Cell(
            {seed: score for seed, score in scores.items() if score is not None},
            tuple(seed for seed, score in scores.items() if score is None),
            expected[task],
        )
        done = [r for r in runs.values() if percent(r) is not None]
        all_known &= all(r.counts for r in done)
        if done:
            counts.append(fmean(r.trainable for r in done))
            every += [r.trainable for r in done]
    any_record = next(r for runs in found.values() for r in runs.values())
    means = _means(cells, tasks)
    # A mean over the runs that tell would be of other tasks than the score.
    mean_count = fmean(counts) if counts and all_known else None
    plain = means['plain']
    value = None
    if plain.complete and plain.value is not None and mean_count is not None:
        # Metrics that are no part of a whole (an error, a loss) have no PPT.
        if 0 <= plain.value <= 100:
            value = ppt(plain.value / 100, mean_count)
    return Row(
        label,
        any_record.job.method,
        any_record.family,
        '',
        None if mean_count is None else (min(every), max(every)),
        mean_count,
        cells,
        means,
        value,
    )


def _means(cells: Mapping[str, Cell], tasks: Mapping[str, str]) -> dict[str, Mean]:
    """Per group, plain, and over groups where a group has several tasks."""
    groups = list(dict.fromkeys(tasks.values()))
    means: dict[str, Mean] = {}
    # Groups of one task each would say everything twice.
    grouped = 1 < len(groups) < len(tasks)
    for group in groups if grouped else ():
        part = {t: cells[t] for t in tasks if tasks[t] == group}
        means[group or 'other'] = _mean(f'{group or "other"} ({len(part)})', [part])
    means['plain'] = _mean(f'plain mean ({_count(len(tasks), "task")})', [cells])
    if grouped:
        parts = [{t: cells[t] for t in tasks if tasks[t] == g} for g in groups]
        means['group'] = _mean(f'group mean ({len(groups)} groups)', parts)
    return means


def _mean(label: str, parts: Sequence[Mapping[str, Cell]]) -> Mean:
    """Mean over parts of the mean over their tasks; one part gives the plain mean."""
    cells = [cell for part in parts for cell in part.values()]
    done = [cell for cell in cells if cell.scores]
    inner = [[c.mean for c in part.values() if c.mean is not None] for part in parts]
    value = fmean(fmean(i) for i in inner if i) if done else None
    # Spread of the whole: one mean per seed, where all tasks have that seed.
    seeds = set.intersection(*(set(c.scores) for c in cells)) if cells else set()
    by_seed = [
        fmean(fmean(c.scores[seed] for c in part.values()) for part in parts)
        for seed in seeds
    ]
    spread = stdev(by_seed) if len(by_seed) > 1 else None
    return Mean(label, value, spread, len(done), len(cells), len(by_seed))


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _notes(
    records: Sequence[Record], rows: Sequence[Row], tasks: Mapping[str, str]
) -> list[str]:
    """What must stand below the table."""
    notes = []
    seeds = sorted({r.job.seed for r in records})
    notes.append(
        f'Mean over {_count(len(seeds), "seed")} ({", ".join(map(str, seeds))}); '
        f'± is the sample standard deviation over n seeds.'
    )
    if len(tasks) > 1:
        text = 'Plain mean: over tasks.'
        if 1 < len(set(tasks.values())) < len(tasks):
            text += ' Group mean: over the means of the groups.'
        notes.append(text)
    notes.append(
        'Trainable: parameters of the backbone, head excluded. '
        'PPT: of the plain mean and these exact counts.'
    )
    budgets = {search_budget(record) for record in records}
    if len(budgets) == 1 and max(budgets):
        notes.append(
            'Settings: of each row the best of '
            f'{_count(max(budgets), "trial")} on validation data.'
        )
    states = {c.state for row in rows for c in row.cells.values()}
    if 'failed' in states:
        notes.append('failed: every run of this cell failed.')
    blank = [r for r in records if r.status == 'done' and r.metrics and not r.primary]
    if blank:
        notes.append(
            f'{_count(len(blank), "run")} ended well with no score that is ranked: '
            f'which of {", ".join(blank[0].metrics)} it is was not said in `primary`.'
        )
    if 'missing' in states:
        notes.append('–: not run.')
    if 'partial' in states:
        notes.append('A cell with a smaller n than others has fewer seeds than they.')
    if any(not row.complete for row in rows):
        notes.append(
            'Means marked k/K are over k of K tasks, and not to be compared with '
            'means over other tasks; such rows have no PPT and no rank.'
        )
    if any(row.marks for row in rows):
        notes.append(
            '‡: not to be compared with the other rows, and why stands below; such '
            'rows have no PPT and no rank, and take part in no statistics.'
        )
    if any(row.trainable and row.trainable[0] != row.trainable[1] for row in rows):
        notes.append('Where counts differ between tasks, PPT takes their mean.')
    return notes


def _fewer_seeds(rows: Sequence[Row]) -> list[str]:
    """Which of the rows that are ranked lack seeds, and where."""
    found = []
    for row in rows:
        few = [
            f'{task} {len(cell.scores)} of {cell.expected}'
            for task, cell in row.cells.items()
            if cell.state == 'partial'
        ]
        if few and row.complete and not row.marks:
            found.append(f'{row.label} ({shorten(few, 3)})')
    if not found:
        return []
    return [
        'Means and ranks of some rows are over fewer seeds than the table has: '
        f'{shorten(found, 3)}.'
    ]


def _warnings(records: Sequence[Record]) -> list[str]:
    """What a reader must know before comparing."""
    warnings = []
    wrong = sum(not _ppt_fits(record) for record in records)
    if wrong:
        warnings.append(
            f'{_count(wrong, "record")} with a stored PPT that does not follow from '
            'score and counts; it is recomputed here.'
        )
    again = sum(r.job.protocol == 'honest' and r.test_reads > 1 for r in records)
    if again:
        warnings.append(
            f'{_count(again, "run")} of the honest protocol scored the test set more '
            'than once.'
        )
    return warnings


def _ppt_fits(record: Record) -> bool:
    score = percent(record)
    if record.ppt is None or score is None or not 0 <= score <= 100:
        return True
    return math.isclose(ppt(score / 100, record.trainable), record.ppt, abs_tol=1e-6)


def _with_published(
    rows: Sequence[Row], tasks: Mapping[str, str], backbone: str, metric: Metric
) -> tuple[list[Row], list[str]]:
    """Our rows with the printed ones below them, and the notes of these."""
    found = printed.rows_for(
        tasks, backbone, metric.key, dict.fromkeys(r.method for r in rows)
    )
    if not found:
        return list(rows), ['No published figure matches these tasks and backbone.']
    by_method: dict[str, list[printed.PublishedRow]] = defaultdict(list)
    for item in found:
        by_method[item.method].append(item)
    result: list[Row] = []
    notes: dict[str, None] = {}
    last = {row.method: row.label for row in rows}
    for row in rows:
        result.append(row)
        if last[row.method] != row.label:
            continue
        for item in by_method[row.method]:
            result.append(_published_row(item, row.family, tasks))
            notes.update(dict.fromkeys(result[-1].notes))
    sources = ', '.join(dict.fromkeys(item.source for item in found))
    head = (
        f'Rows in brackets are printed figures ({sources}): other protocols, '
        'checkpoints and preprocessing, one run each; their PPT is recomputed from '
        'what is printed, the printed PPT follows in parentheses.'
    )
    return result, [head, *(f'† {note}' for note in notes)]


def _published_row(
    item: printed.PublishedRow, family: str, tasks: Mapping[str, str]
) -> Row:
    cells = {
        task: Cell({0: float(item.scores[task])}, (), 1)
        if task in item.scores
        else Cell()
        for task in tasks
    }
    counts = [item.params.get(t) for t in tasks if t in item.scores]
    means = _means(cells, tasks)
    plain, notes = means['plain'], []
    count = fmean(counts) if counts and None not in counts else None
    value = None
    if plain.complete and plain.value is not None and count is not None:
        value = ppt(plain.value / 100, count)
    only = next(iter(tasks)) if len(tasks) == 1 else 'mean'
    check = item.ppt.get(only)
    text = ''
    if check is not None and (only != 'mean' or plain.complete):
        text = check.figure.value + ('' if check.agrees else '†')
        if not check.agrees:
            notes.append(check.note)
    if item.mean is not None and plain.complete and plain.value is not None:
        gap = abs(plain.value - float(item.mean))
        covers = len(tasks) == len(item.scores)
        if covers and gap > printed.half_digit(item.mean) + 1e-9 and len(tasks) > 1:
            notes.append(
                f'{item.printed_method}: printed mean {item.mean}, but its tasks '
                f'here give {plain.value:.2f}'
            )
    return Row(
        f'[{item.printed_method}, {item.source}]',
        item.method,
        family,
        item.source,
        None if count is None else (min(counts), max(counts)),
        count,
        cells,
        means,
        value,
        None,
        text,
        tuple(notes),
    )
