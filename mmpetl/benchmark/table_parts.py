"""A table as data: cells, means, rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal

from mmpetl.benchmark.scores import METRICS, Metric

State = Literal['done', 'partial', 'failed', 'missing']


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
        seeds: How many seeds the spread is over; 0 where no seed has all tasks.
    """

    label: str
    value: float | None
    spread: float | None
    tasks: int
    of: int
    seeds: int = 0

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
        trainable: Smallest and largest count over tasks, head excluded; None where a
            run does not tell.
        mean_trainable: Mean of the counts over tasks, exact; the P of PPT. None where
            a run does not tell.
        cells: One per task.
        means: By short name: a group, ``plain``, ``group``.
        ppt: PPT of the plain mean, in [0, 1]; None of incomplete rows.
        rank: Mean rank over the tasks among the complete rows of ours, 1 is best.
        printed_ppt: PPT as published, with the mark that leads to a note.
        notes: What a reader must know of this row.
        marks: Why it is not to be compared with the others; empty where it is.
        verified: How many of its runs are verified, as ``5/6``; empty where nobody
            asked.
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
    marks: tuple[str, ...] = ()
    verified: str = ''

    @property
    def complete(self) -> bool:
        """Whether every task has a score."""
        return all(cell.scores for cell in self.cells.values())


@dataclass(frozen=True)
class Column:
    """A column of a table as text.

    Attributes:
        key: What it is asked for by: ``method``, a task, ``plain``, ``ppt``.
        head: Its name.
        text: A row's cell.
        kind: ``words``, ``task`` of a score, ``mean`` over tasks, or another number.
    """

    key: str
    head: str
    text: Callable[[Row], str]
    kind: Literal['words', 'task', 'mean', 'number'] = 'number'


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
        """Scores by label, task and seed of our rows that may be compared."""
        return {
            row.label: {t: dict(c.scores) for t, c in row.cells.items() if c.scores}
            for row in self.rows
            if not row.source and not row.marks
        }

    def scores(self) -> dict[str, dict[str, float]]:
        """Means over seeds of our complete rows that may be compared, by task."""
        return {
            row.label: {t: c.mean for t, c in row.cells.items() if c.mean is not None}
            for row in self.rows
            if row.complete and not row.source and not row.marks
        }
