"""Which method to take: what fits some limits, ranked with its uncertainty.

From records alone, and from what the scorecard has measured of their runs. A limit of
which these say nothing excludes nobody, and that is said; so is whoever was left out,
and why. Methods that are not shown to differ from the first share the first place: of
them, take the one that costs least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from mmpetl.benchmark.cards import Measured
from mmpetl.benchmark.designs import ALPHA, Design
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.resampling import Interval, uncertainty
from mmpetl.benchmark.scores import percent, suite_of, with_facts
from mmpetl.benchmark.statistics import (
    DECIMALS,
    holm,
    mean_ranks,
    shared_seeds,
    wilcoxon_p,
)
from mmpetl.benchmark.table_parts import Table
from mmpetl.benchmark.tables import build_tables, runs_of
from mmpetl.core import Method, PETLError, check_range, registered_methods, suggest
from mmpetl.core.several import written_out
from mmpetl.evaluation.metric_names import meant

KINDS: Mapping[str, str] = {
    'accuracy/top1': 'images',
    'acc/top1': 'videos',
    'coco/bbox_mAP': 'detection',
    'coco/segm_mAP': 'detection',
    'pascal_voc/mAP': 'detection',
    'pascal_voc/AP50': 'detection',
    'mIoU': 'segmentation',
}
"""The kind of a task, by the metric that its table ranks by."""

AROUND = 3
"""Tasks with a third to three times as many training pictures are like one's own."""


@dataclass(frozen=True)
class Limits:
    """What a method must keep to.

    Attributes:
        memory_bytes: Peak memory of training, at most.
        trainable: Trainable parameters of the backbone, at most.
        step_seconds: Median time of a training step, at most.
        latency_seconds: Time of a prediction of one sample, not folded, at most.
        folds: Whether what was trained must go into the base's own weights, so that a
            prediction costs what it costs without it.
        kind: Kind of the tasks: one of :data:`KINDS`.
        pictures: Training pictures; tasks with about as many count.
        backbone: Only runs of this backbone.
        protocol: ``honest`` or ``published``.
        suites: Only these sets of tasks.
        strict: Whether a method is left out where its records do not tell of a limit.
    """

    memory_bytes: float | None = None
    trainable: int | None = None
    step_seconds: float | None = None
    latency_seconds: float | None = None
    folds: bool = False
    kind: str | None = None
    pictures: int | None = None
    backbone: str | None = None
    protocol: str | None = 'honest'
    suites: Sequence[str] | None = None
    strict: bool = False

    def check(self) -> None:
        """Raise PETLError where a limit is none."""
        for name in ('memory_bytes', 'step_seconds', 'latency_seconds', 'pictures'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise PETLError(f'a limit of {name} is above 0, not {value}')
        if self.trainable is not None:
            check_range('the choice', 'trainable', self.trainable, 0)
        kinds = sorted(set(KINDS.values()))
        if self.kind is not None and self.kind not in kinds:
            raise PETLError(
                f'there is no kind of task {self.kind!r}.{suggest(self.kind, kinds)} '
                f'Kinds: {", ".join(kinds)}'
            )


@dataclass(frozen=True)
class Facts:
    """What the runs of a row cost; None where a record does not tell.

    Attributes:
        memory_bytes: Highest peak over the runs.
        trainable: Largest count over the runs.
        step_seconds: Median over the runs.
        latency_seconds: Median over the runs; None where a run has no card of the
            scorecard.
        folds: Whether every run was folded for its card; without cards, whether the
            method says that it folds, or adds nothing that could.
    """

    memory_bytes: int | None
    trainable: int | None
    step_seconds: float | None
    latency_seconds: float | None
    folds: bool | None


@dataclass(frozen=True)
class Candidate:
    """A row that fits.

    Attributes:
        label: Its name.
        method: Its method.
        facts: What it costs.
        unknown: Limits of which its records do not tell.
        mean: Plain mean over the tasks.
        rank: Mean rank among the candidates, 1 is best.
        mean_interval: Of other tasks and seeds; None where nothing can be drawn.
        rank_interval: The same, of the rank.
        best: Share of the resamples in which its mean rank is best.
        p: Of the signed-rank test against the first over tasks, corrected; None of the
            first.
        tied: Whether it is not shown to differ from the first.
    """

    label: str
    method: str
    facts: Facts
    unknown: tuple[str, ...]
    mean: float
    rank: float
    mean_interval: Interval | None = None
    rank_interval: Interval | None = None
    best: float | None = None
    p: float | None = None
    tied: bool = True


@dataclass(frozen=True)
class Choice:
    """The answer for one table.

    Attributes:
        title: Of the table.
        tasks: Task to its training pictures; None where records do not tell.
        design: What tasks and seeds can show.
        candidates: Best mean rank first.
        excluded: Rows that do not fit, with the reasons.
        incomplete: Rows that lack tasks, with these.
        unknown: What the records do not tell, in sentences.
        warnings: What casts doubt on any comparison in this table.
    """

    title: str
    tasks: Mapping[str, int | None]
    design: Design
    candidates: tuple[Candidate, ...]
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    incomplete: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tied(self) -> tuple[Candidate, ...]:
        """The first, and those that are not shown to differ from it."""
        return tuple(c for c in self.candidates if c.tied)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        data = dataclasses.asdict(self)
        data['design'] = self.design.to_json()
        data['tied'] = [c.label for c in self.tied]
        return data


def choose(
    records: Iterable[Record],
    limits: Limits | None = None,
    cards: Mapping[str, Measured] | None = None,
) -> list[Choice]:
    """Which methods fit, and how they rank: one answer for each table.

    Args:
        records: Any records; final runs count.
        limits: What a method must keep to.
        cards: What the scorecard has measured of runs, by id, as
            :func:`mmpetl.benchmark.cards.read_cards` gives it.

    Raises:
        PETLError: A limit is none, or no run is of the tasks that were asked for.
    """
    limits = limits or Limits()
    limits.check()
    final = [r for r in with_facts(records) if r.job.stage == 'final']
    mine = _asked(final, limits)
    return [
        _choice(table, runs_of(table, mine), limits, cards or {})
        for table in build_tables(mine, protocol=limits.protocol, suites=limits.suites)
    ]


def _asked(records: Sequence[Record], limits: Limits) -> list[Record]:
    """The runs on tasks that were asked for; unknown ones stay."""
    kinds = {r.task: kind_of(r) for r in records if kind_of(r)}
    counts = {task: count for task, count in pictures_of(records).items() if count}
    kept = records
    if limits.backbone is not None:
        kept = [r for r in kept if r.backbone == limits.backbone]
        _some(kept, f'of backbone {limits.backbone!r}', {r.backbone for r in records})
    if limits.kind is not None:
        kept = [r for r in kept if kinds.get(r.task, limits.kind) == limits.kind]
        _some(kept, f'of kind {limits.kind}', set(kinds.values()))
    if limits.pictures is not None:
        low, high = limits.pictures / AROUND, limits.pictures * AROUND
        kept = [r for r in kept if low <= counts.get(r.task, low) <= high]
        _some(
            kept,
            f'with {low:,.0f} to {high:,.0f} training pictures',
            {f'{task} with {count:,}' for task, count in counts.items()},
        )
    if limits.suites:
        _some(
            [r for r in kept if suite_of(r) in limits.suites],
            f'of {", ".join(limits.suites)}',
            {suite_of(r) for r in kept},
        )
    return list(kept)


def _some(kept: Sequence[Record], what: str, there: Iterable[str]) -> None:
    if not kept:
        raise PETLError(
            f'no run is {what}; there are {", ".join(sorted(there)) or "none"}'
        )


def kind_of(record: Record) -> str | None:
    """The kind of a record's task; None where its metric does not tell."""
    return KINDS.get(meant(record.primary))


def pictures_of(records: Iterable[Record]) -> dict[str, int | None]:
    """Training pictures of each task; None where its records do not tell, or differ."""
    found: dict[str, set[int]] = {}
    for record in records:
        seen = found.setdefault(record.task, set())
        if 'train' in record.data and record.data['train'].count:
            seen.add(record.data['train'].count)
    return {
        task: seen.pop() if len(seen) == 1 else None for task, seen in found.items()
    }


def _choice(
    table: Table,
    runs: Sequence[tuple[Record, str]],
    limits: Limits,
    cards: Mapping[str, Measured],
) -> Choice:
    by_label: dict[str, list[Record]] = {}
    for record, label in runs:
        by_label.setdefault(label, []).append(record)
    excluded, incomplete = {}, {}
    fit: dict[str, tuple[Facts, tuple[str, ...]]] = {}
    for row in table.rows:
        facts = facts_of(by_label.get(row.label, ()), cards)
        reasons, unknown = _against(facts, limits)
        if row.marks:
            reasons.insert(0, 'is not to be compared ‡')
        if limits.strict:
            reasons += [f'{name} is not known' for name in unknown]
        if reasons:
            excluded[row.label] = tuple(reasons)
        elif not row.complete:
            missing = [t for t, c in row.cells.items() if not c.scores]
            incomplete[row.label] = tuple(missing)
        else:
            fit[row.label] = facts, tuple(unknown)
    candidates = _ranked(table, fit)
    tasks = pictures_of(record for record, _ in runs)
    cells = table.runs()
    seeds = shared_seeds({label: cells[label] for label in fit})
    return Choice(
        table.title,
        tasks,
        Design(table.suite, len(fit), len(table.tasks), seeds),
        candidates,
        excluded,
        incomplete,
        tuple(
            _unknown(
                candidates,
                tasks,
                limits,
                [r for r, _ in runs],
                all(r.job.id in cards for r, _ in runs),
            )
        ),
        table.warnings,
    )


def facts_of(
    records: Sequence[Record], cards: Mapping[str, Measured] | None = None
) -> Facts:
    """What the runs of a row cost."""
    done = [r for r in records if percent(r) is not None]
    memory = [r.peak_memory_bytes for r in done]
    counts = [r.trainable if r.counts else None for r in done]
    steps = [r.step_seconds for r in done]
    measured = [(cards or {}).get(r.job.id) for r in done]
    latency = [m.latency_seconds if m else None for m in measured]
    folded = _whole(all, [m.folds if m else None for m in measured])
    return Facts(
        _whole(max, memory),
        _whole(max, counts),
        _whole(median, steps),
        _whole(median, latency),
        _folds(done) if folded is None else folded,
    )


def _whole(merge: Any, values: Sequence[Any]) -> Any:
    """One of all values; None where some run does not tell."""
    return merge(values) if values and None not in values else None


def _folds(records: Sequence[Record]) -> bool | None:
    if not records:
        return None
    if all(r.counts and not r.counts.get('delta', 0) for r in records):
        return True  # nothing was added
    known = registered_methods()
    classes = [known.get(name) for name in written_out(records[0].job.method)]
    if None in classes:
        return None
    return all(cls.fold is not Method.fold for cls in classes)


def _against(facts: Facts, limits: Limits) -> tuple[list[str], list[str]]:
    """Why a row does not fit, and the limits of which its records do not tell."""
    reasons, unknown = [], []
    for name, key, show in LIMITS:
        limit, value = getattr(limits, key), getattr(facts, key)
        if limit is None:
            continue
        if value is None:
            unknown.append(name)
        elif value > limit:
            reasons.append(f'{name} {show(value)}')
    if limits.folds:
        if facts.folds is None:
            unknown.append('folding')
        elif not facts.folds:
            reasons.append('does not fold')
    return reasons, unknown


def show_bytes(value: float) -> str:
    """A size in GB or MB."""
    return f'{value / 2**30:.2f} GB' if value >= 2**30 else f'{value / 2**20:.0f} MB'


def show_seconds(value: float) -> str:
    """A time in milliseconds."""
    return f'{1000 * value:.3g} ms'


def _show_count(value: float) -> str:
    return f'{value:,.0f}'


LIMITS = (
    ('memory', 'memory_bytes', show_bytes),
    ('trainable parameters', 'trainable', _show_count),
    ('step', 'step_seconds', show_seconds),
    ('latency', 'latency_seconds', show_seconds),
)


def _ranked(
    table: Table, fit: Mapping[str, tuple[Facts, tuple[str, ...]]]
) -> tuple[Candidate, ...]:
    """Rows that fit, ranked among themselves."""
    rows = {row.label: row for row in table.rows if row.label in fit}
    scores = {
        label: {t: c.mean for t, c in row.cells.items() if c.mean is not None}
        for label, row in rows.items()
    }
    means = {label: fmean(row.values()) for label, row in scores.items()}
    ranks = mean_ranks(scores)
    order = sorted(ranks, key=lambda x: (ranks[x], -round(means[x], DECIMALS)))
    if not order:
        return ()
    runs = {
        label: {t: dict(c.scores) for t, c in rows[label].cells.items()}
        for label in order
    }
    uncertain = (uncertainty(runs) if shared_seeds(runs) else None) or {}
    first, *others = order
    p_values = dict(
        zip(
            others,
            holm(
                [
                    wilcoxon_p([scores[first][t] - scores[x][t] for t in table.tasks])
                    for x in others
                ]
            ),
            strict=True,
        )
    )
    found = []
    for label in order:
        facts, unknown = fit[label]
        one, p = uncertain.get(label), p_values.get(label)
        found.append(
            Candidate(
                label,
                rows[label].method,
                facts,
                unknown,
                means[label],
                ranks[label],
                one.mean if one else None,
                one.rank if one else None,
                one.best if one else None,
                p,
                p is None or p >= ALPHA,
            )
        )
    return tuple(found)


def _unknown(
    candidates: Sequence[Candidate],
    tasks: Mapping[str, int | None],
    limits: Limits,
    records: Sequence[Record],
    carded: bool,
) -> list[str]:
    """What the records do not tell of what was asked."""
    lines = []
    for name in ('memory', 'trainable parameters', 'step', 'latency', 'folding'):
        labels = [c.label for c in candidates if name in c.unknown]
        if not labels:
            continue
        if name == 'latency' and len(labels) == len(candidates):
            text = (
                'latency: no run has a card of mmpetl benchmark scorecard, so this '
                'limit excludes nothing; what folds predicts as fast as its base'
            )
        elif len(labels) == len(candidates):
            text = f'{name}: no record tells it, so this limit excludes nothing'
        else:
            text = f'{name}: no record tells it of {", ".join(labels)}, kept with a ?'
        lines.append(text)
    if limits.pictures is not None:
        blank = [task for task, count in tasks.items() if count is None]
        if blank:
            names = 'any task' if len(blank) == len(tasks) else ', '.join(blank)
            lines.append(
                'training pictures: records do not tell, or not alike, how many '
                f'{names} has; kept'
            )
    if limits.kind is not None:
        blank = sorted({r.task for r in records if kind_of(r) is None and r.primary})
        if blank:
            lines.append(f'kind: the metric of {", ".join(blank)} tells none; kept')
    if limits.folds and not carded:
        lines.append(
            'folding is what a method says of itself; a backbone may lack what it '
            'needs, which mmpetl.fold says'
        )
    devices = sorted({r.device for r in records if r.device})
    if len(devices) > 1 and (limits.memory_bytes or limits.step_seconds):
        lines.append(
            f'memory and step are of several devices ({", ".join(devices)}), and to be '
            'compared within one only'
        )
    return lines
