"""Tables from records: Markdown, CSV and LaTeX.

A table holds one protocol, one backbone, one suite and one metric; whatever differs in
one of these goes to a table of its own. Means over tasks say what they are: *plain* is
the mean over tasks, *group* the mean over the means of the groups; the two differ by
points, so none stands without its name. A mean over fewer tasks than the table has says
so and gives neither PPT nor rank.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal

from mmpetl.benchmark import published as printed
from mmpetl.benchmark.records import Job, Record
from mmpetl.benchmark.statistics import mean_ranks
from mmpetl.core import PETLError
from mmpetl.evaluation.ppt import ppt

State = Literal['done', 'partial', 'failed', 'missing']
By = Literal['task', 'group']
Format = Literal['md', 'csv', 'tex']

FORMATS: tuple[Format, ...] = ('md', 'csv', 'tex')


@dataclass(frozen=True)
class Metric:
    """A metric as evaluators name it.

    Attributes:
        key: Its name in the published tables.
        label: Its name in ours.
        scale: What turns the evaluator's number into percent.
    """

    key: str
    label: str
    scale: float


METRICS: Mapping[str, Metric] = {
    'accuracy/top1': Metric('top1', 'top-1 accuracy', 1),
    'acc/top1': Metric('top1', 'top-1 accuracy', 100),
    'coco/bbox_mAP': Metric('ap_box', 'box AP', 100),
    'coco/segm_mAP': Metric('ap_mask', 'mask AP', 100),
    'pascal_voc/mAP': Metric('ap_box', 'box AP at IoU 0.5', 100),
    'pascal_voc/AP50': Metric('ap_box', 'box AP at IoU 0.5', 100),
    'mIoU': Metric('miou', 'mIoU', 1),
}
"""MMPretrain and MMSegmentation report percent, the others parts of one."""

VTAB_ORDER = ('natural', 'specialised', 'structured')


def metric_of(name: str) -> Metric:
    """What a metric's name means; unknown ones are taken as percent, under their name.

    ``segmentation/mIoU``, with a prefix of the config, is ``mIoU``.
    """
    short = name.rpartition('/')[2]
    return METRICS.get(name) or METRICS.get(short) or Metric(name, name, 1)


def percent(record: Record) -> float | None:
    """The score of a record in percent; None of a failed run."""
    if record.status != 'done' or record.score is None:
        return None
    if not math.isfinite(record.score):
        return None
    return record.score * metric_of(record.primary).scale


def suite_of(record: Record) -> str:
    """The set of tasks a record belongs to: ``vtab`` of ``vtab/cifar100``.

    Recipes without a folder belong to the benchmark of their data set.
    """
    from mmpetl.datasets.catalog import CATALOG

    suite, slash, _ = record.job.recipe.partition('/')
    if slash:
        return suite
    facts = CATALOG.get(record.task)
    return facts.benchmark if facts else record.group or suite


def with_facts(records: Iterable[Record]) -> list[Record]:
    """Records of failed runs, which may know nothing but their job, with its facts.

    Task, group and backbone come from other runs of the recipe, first of those with the
    same options; the family from other runs of the method. What no run knows stays the
    recipe's own name, or empty.
    """
    records = list(records)
    known: dict[tuple[str, ...], Record] = {}
    families = {r.job.method: r.family for r in records if r.family}
    for record in records:
        if record.task and record.backbone:
            known.setdefault((record.job.recipe, _options(record.job)), record)
            known.setdefault((record.job.recipe,), record)
    result = []
    for record in records:
        if not (record.task and record.backbone and record.family):
            recipe = record.job.recipe
            like = known.get((recipe, _options(record.job))) or known.get((recipe,))
            record = replace(
                record,
                task=record.task or (like.task if like else recipe.rpartition('/')[2]),
                group=record.group or (like.group if like else ''),
                backbone=record.backbone or (like.backbone if like else ''),
                family=record.family or families.get(record.job.method, ''),
            )
        result.append(record)
    return result


def _options(job: Job) -> str:
    return json.dumps(dict(job.options), sort_keys=True, default=str)


def labels_of(records: Iterable[Record]) -> dict[str, str]:
    """Names of rows, by the id of the job.

    A row is a method and a variant. Its options may differ from task to task, as after
    a search. Where one task was run with several options, each is a row, and the
    options that differ are in its name: ``LoRA (rank=4)``.
    """
    groups: dict[tuple[str, ...], dict[str, list[Job]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        job = record.job
        key = job.protocol, suite_of(record), record.backbone, job.method, job.variant
        groups[key][record.task].append(job)
    labels = {}
    for (*_, method, variant), tasks in groups.items():
        differ = sorted(set().union(*map(_differing, tasks.values())))
        for job in (job for jobs in tasks.values() for job in jobs):
            parts = [variant] if variant else []
            parts += [
                f'{key.rpartition(".")[2]}={options[key]}'
                for options in (_options_of(job),)
                for key in differ
                if key in options
            ]
            labels[job.id] = f'{method} ({", ".join(parts)})' if parts else method
    return labels


def _options_of(job: Job) -> dict[str, Any]:
    return {**job.options, 'leaf': True} if job.leaf else dict(job.options)


def _differing(jobs: Sequence[Job]) -> set[str]:
    """Options that are not the same in all jobs."""
    texts = [
        {k: json.dumps(v, default=str) for k, v in _options_of(job).items()}
        for job in jobs
    ]
    keys = set().union(*texts)
    return {key for key in keys if len({text.get(key) for text in texts}) > 1}


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        scores: Seed to score, in percent.
        failed: Seeds whose run failed.
        expected: Seeds that the table has on this task.
    """

    scores: Mapping[int, float] = field(default_factory=dict)
    failed: tuple[int, ...] = ()
    expected: int = 0

    @property
    def state(self) -> State:
        """What there is: all seeds, some, only failures, or nothing."""
        if not self.scores:
            return 'failed' if self.failed else 'missing'
        return 'done' if len(self.scores) >= self.expected else 'partial'

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without a run."""
        return fmean(self.scores.values()) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None below two."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Mean:
    """A mean over tasks that knows its name and how many tasks it lacks.

    Attributes:
        label: ``plain mean (19 tasks)``.
        value: In percent, over the tasks that are there; None of none.
        spread: Sample standard deviation over the seeds that all tasks share.
        tasks: How many tasks it is over.
        of: How many it should be over.
    """

    label: str
    value: float | None
    spread: float | None
    tasks: int
    of: int

    @property
    def complete(self) -> bool:
        """Whether no task is missing."""
        return self.tasks == self.of


@dataclass(frozen=True)
class Row:
    """A method, ours or published, over the tasks of a table.

    Attributes:
        label: Name of the row.
        method: Our name of the method.
        family: Family of the method.
        source: Who published it; empty for ours.
        trainable: Smallest and largest count over tasks, head excluded; None unknown.
        mean_trainable: Mean of the counts over tasks, exact; the P of PPT.
        cells: One per task.
        means: By short name: a group, ``plain``, ``group``.
        ppt: PPT of the plain mean, in [0, 1]; None of incomplete rows.
        rank: Mean rank over the tasks among the complete rows of ours, 1 is best.
        printed_ppt: PPT as published, with the mark that leads to a note.
        notes: What a reader must know of this row.
    """

    label: str
    method: str
    family: str
    source: str
    trainable: tuple[int, int] | None
    mean_trainable: float | None
    cells: Mapping[str, Cell]
    means: Mapping[str, Mean]
    ppt: float | None
    rank: float | None = None
    printed_ppt: str = ''
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every task has a score."""
        return all(cell.scores for cell in self.cells.values())


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one protocol, suite, backbone and metric.

    Attributes:
        protocol: ``honest`` or ``published``.
        suite: Name of the set of tasks.
        backbone: Name of the backbone.
        metric: What the scores are.
        tasks: Task to its group, in the order of the columns.
        rows: Best plain mean first, published rows below ours.
        notes: What a reader must know.
        warnings: Those of the notes that cast doubt on a comparison.
    """

    protocol: str
    suite: str
    backbone: str
    metric: Metric
    tasks: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the table holds, protocol and metric included."""
        known = {metric.key for metric in METRICS.values()}
        unit = ', percent' if self.metric.key in known else ''
        backbone = self.backbone or 'unknown backbone'
        return (
            f'{self.suite}, {backbone}: {self.metric.label}{unit}, '
            f'{self.protocol} protocol'
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of tasks, in the order of the columns."""
        return tuple(dict.fromkeys(self.tasks.values()))

    def runs(self) -> dict[str, dict[str, dict[int, float]]]:
        """Scores of our rows by label, task and seed, for the statistics."""
        return {
            row.label: {t: dict(c.scores) for t, c in row.cells.items() if c.scores}
            for row in self.rows
            if not row.source
        }

    def scores(self) -> dict[str, dict[str, float]]:
        """Means over seeds of our complete rows, by label and task."""
        return {
            row.label: {t: c.mean for t, c in row.cells.items() if c.mean is not None}
            for row in self.rows
            if row.complete and not row.source
        }


def build_tables(
    records: Iterable[Record],
    published: bool = False,
    protocol: str | None = None,
    suites: Sequence[str] | None = None,
) -> list[Table]:
    """Tables of all final runs, separated by what must not be mixed.

    Args:
        records: Any records; those of tuning runs are left out.
        published: Put the figures that others printed below each of our rows.
        protocol: Only this protocol.
        suites: Only these suites.

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
            tables.append(build_table(part, suite, backbone, metric, labels, published))
    return tables


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
    rows = [_row(label, found, tasks, expected) for label, found in cells.items()]
    ranks = mean_ranks(
        {
            row.label: {t: c.mean for t, c in row.cells.items() if c.mean is not None}
            for row in rows
            if row.complete
        }
    )
    rows = [replace(row, rank=ranks.get(row.label)) for row in rows]
    rows.sort(key=lambda row: (not row.complete, -(row.means['plain'].value or -1)))
    warnings = _warnings(records)
    notes = [*_notes(records, rows, tasks), *warnings]
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
    counts: dict[str, float] = {}
    for task in tasks:
        runs = found.get(task, {})
        scores = {seed: percent(record) for seed, record in sorted(runs.items())}
        cells[task] = Cell(
            {seed: score for seed, score in scores.items() if score is not None},
            tuple(seed for seed, score in scores.items() if score is None),
            expected[task],
        )
        known = [
            r.trainable for r in runs.values() if r.counts and percent(r) is not None
        ]
        if known:
            counts[task] = fmean(known)
    any_record = next(r for runs in found.values() for r in runs.values())
    means = _means(cells, tasks)
    every = [
        r.trainable
        for runs in found.values()
        for r in runs.values()
        if r.counts and percent(r) is not None
    ]
    mean_count = fmean(counts.values()) if counts else None
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
        (min(every), max(every)) if every else None,
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
    return Mean(label, value, spread, len(done), len(cells))


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
        f'± is the sample standard deviation over seeds.'
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
    if 'missing' in states:
        notes.append('–: not run.')
    if 'partial' in states:
        notes.append('(n=1): seeds behind a cell that has fewer than the others.')
    if any(not row.complete for row in rows):
        notes.append(
            'Means marked k/K are over k of K tasks, and not to be compared with '
            'means over other tasks; such rows have no PPT and no rank.'
        )
    if any(row.trainable and row.trainable[0] != row.trainable[1] for row in rows):
        notes.append('Where counts differ between tasks, PPT takes their mean.')
    return notes


def _warnings(records: Sequence[Record]) -> list[str]:
    """What a reader must know before comparing."""
    warnings = []
    bases = {str(r.base.get('file') or '') for r in records} - {''}
    prints = {str(r.base.get('fingerprint') or '') for r in records} - {''}
    if len(prints) > 1 or len(bases) > 1:
        warnings.append(
            'Not like for like: the rows start from different base weights '
            f'({", ".join(sorted(bases) or sorted(prints))}).'
        )
    budgets = sorted({search_budget(record) for record in records})
    if len(budgets) > 1:
        spent = [_count(n, 'trial') if n else 'none' for n in budgets]
        warnings.append(
            'Not like for like: settings were searched with different budgets '
            f'({", ".join(spent)}).'
        )
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


def search_budget(record: Record) -> int:
    """Trials that the settings of a run were allowed to cost; 0 without a search."""
    return int((record.search or {}).get('budget', 0))


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
    counts = [item.params[t] for t in tasks if t in item.params]
    means = _means(cells, tasks)
    plain, notes = means['plain'], []
    count = fmean(counts) if counts else None
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
        (min(counts), max(counts)) if counts else None,
        count,
        cells,
        means,
        value,
        None,
        text,
        tuple(notes),
    )


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
    return [*head, 'PPT', 'mean rank']


def _texts(table: Table, row: Row, by: By) -> list[str]:
    texts = [row.label, row.family, _range_text(row)]
    if by == 'task' or len(table.tasks) == 1:
        texts += [_cell_text(row.cells[task]) for task in table.tasks]
    if len(table.tasks) > 1:
        texts += [_mean_text(row.means[name]) for name in _mean_columns(table)]
    value = '–' if row.ppt is None else f'{row.ppt:.3f}'
    if row.printed_ppt:
        value += f' ({row.printed_ppt})'
    return [*texts, value, '–' if row.rank is None else f'{row.rank:.2f}']


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
    head += ['ppt', 'printed_ppt', 'mean_rank', 'notes']
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
        line += [_number(row.ppt), row.printed_ppt, _number(row.rank)]
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
