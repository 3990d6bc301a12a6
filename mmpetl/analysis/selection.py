"""Which runs of a benchmark folder are compared, and what they predicted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmpetl.benchmark.collect import PREDICTIONS
from mmpetl.benchmark.finals import VARIANT
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.scores import labels_of, percent, suite_of
from mmpetl.core import FAMILIES, PETLError, suggest

REFERENCES = ('Full', 'LinearProbe')
"""Methods that tables compare with, and that are no tuning method themselves."""


@dataclass(frozen=True)
class Run:
    """A finished run and what it predicted on the test set.

    Attributes:
        record: Its record.
        folder: Where it lies.
        logits: (N, C), float32.
        labels: (N,), int64; equal for all runs of a task.
        name: What the run is called beside others, as in :func:`names_of`.
    """

    record: Record
    folder: Path
    logits: np.ndarray
    labels: np.ndarray
    name: str = ''

    @property
    def accuracy(self) -> float:
        """Top-1 in per cent."""
        return 100.0 * float((self.logits.argmax(1) == self.labels).mean())


def names_of(records: Iterable[Record]) -> dict[str, str]:
    """What runs are called beside one another, by the id of the job.

    They are those of rows in tables (:func:`mmpetl.benchmark.scores.labels_of`), so
    that runs of one name on a task differ in the seed alone: ``LoRA``,
    ``LoRA (rank=4)``, ``LoRA (searched)``.

    Raises:
        PETLError: Two runs of a name, task and seed, such as those of two recipes of a
            data set.
    """
    records = list(records)
    names = labels_of(records)
    for task, rows in _by_place(records).items():
        found: dict[tuple[str, int], Record] = {}
        for record in rows:
            name, seed = names[record.job.id], record.job.seed
            other = found.setdefault((name, seed), record)
            if other is not record:
                raise PETLError(
                    f'{other.job.id} and {record.job.id} are both {name} on {task[0]} '
                    f'with seed {seed}; give one of them a variant, or move it to a '
                    'folder of its own'
                )
    return names


def is_reference(name: str) -> bool:
    """Whether a name of :func:`names_of` is one of :data:`REFERENCES`."""
    return method_of(name) in REFERENCES


def method_of(name: str) -> str:
    """The method in a name of :func:`names_of`."""
    return name.partition(' (')[0]


def by_family(records: Iterable[Record]) -> list[Record]:
    """Records ordered by family, then method, variant and seed."""

    def key(record: Record) -> tuple:
        known = record.family in FAMILIES
        place = FAMILIES.index(record.family) if known else len(FAMILIES)
        reference = record.job.method in REFERENCES
        return (
            not reference,
            place,
            record.job.method.lower(),
            record.job.variant,
            record.job.seed,
        )

    return sorted(records, key=key)


def finished(out: str | os.PathLike, protocol: str = 'honest') -> list[Record]:
    """The finished final runs of a benchmark folder.

    Raises:
        PETLError: There is no such folder, or nothing in it is finished.
    """
    folder = Path(out)
    if not (folder / 'runs').is_dir():
        raise PETLError(
            f'{folder} is no benchmark folder: it has no runs/; run a plan first'
        )
    records = [
        r
        for r in RecordStore(folder).all()
        if r.status == 'done' and r.job.stage == 'final' and r.job.protocol == protocol
    ]
    if not records:
        raise PETLError(
            f'{folder} holds no finished run of the {protocol} protocol; run a plan '
            'first'
        )
    return by_family(records)


def plain(records: Iterable[Record]) -> list[Record]:
    """Those that stand for their method: no variants of it but what a search chose."""
    return [r for r in records if r.job.variant in ('', VARIANT)]


def choose(
    records: Sequence[Record],
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Record]:
    """Those of the named tasks, methods and seeds; None takes all.

    Raises:
        PETLError: A name or seed that no record has.
    """
    for what, wanted, there in (
        ('task', tasks, {r.task for r in records}),
        ('method', methods, {r.job.method for r in records}),
        ('seed', seeds, {r.job.seed for r in records}),
    ):
        for item in wanted or ():
            if item not in there:
                shown = ', '.join(sorted(map(str, there)))
                raise PETLError(
                    f'no finished run has {what} {item!r}.'
                    f'{suggest(str(item), map(str, there))} There are: {shown}'
                )
    return [
        r
        for r in records
        if (tasks is None or r.task in tasks)
        and (methods is None or r.job.method in methods)
        and (seeds is None or r.job.seed in seeds)
    ]


def by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by task, tasks in the order of their groups and names.

    A task that was run on several backbones, or in several sets of tasks, stands once
    for each of them, with the backbone or the set behind its name.
    """
    places = _by_place(records)
    found = {}
    for place, rows in places.items():
        alike = [other for other in places if other[0] == place[0]]
        differ = [n for n in (1, 2) if len({other[n] for other in alike}) > 1]
        words = [re.sub('[^0-9A-Za-z.]+', '_', place[n]) for n in differ]
        found['-'.join([place[0], *words])] = by_family(rows)
    return found


def _by_place(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    """Records by task, backbone and set of tasks, in the order of groups and names."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.group, r.task, r.backbone)):
        place = record.task, record.backbone, suite_of(record)
        found.setdefault(place, []).append(record)
    return found


def load_run(out: str | os.PathLike, record: Record, name: str = '') -> Run:
    """A record with its predictions, and what it is called.

    Raises:
        PETLError: It has none, or the file is damaged.
    """
    folder = RecordStore(out).folder(record.job)
    path = folder / PREDICTIONS
    if not path.is_file():
        raise PETLError(
            f'{record.job.id} has no {PREDICTIONS}; only classifiers of images and '
            'videos leave one'
        )
    from mmpetl.engine.hooks.predictions import read_predictions

    logits, labels = read_predictions(path)
    check_predictions(logits, labels, str(path))
    return Run(record, folder, logits, labels, name)


def has_predictions(
    out: str | os.PathLike, records: Sequence[Record], seed: int | None = None
) -> bool:
    """Whether two methods of a task left predictions with the seed of a comparison."""
    seed = common_seed(records) if seed is None else seed
    store, names = RecordStore(out), names_of(records)
    found = {
        names[r.job.id]
        for r in records
        if r.job.seed == seed and (store.folder(r.job) / PREDICTIONS).is_file()
    }
    return len(found) > 1


def check_predictions(logits: np.ndarray, labels: np.ndarray, source: str) -> None:
    """Raise PETLError unless logits are finite and labels in range."""
    if not len(labels):
        raise PETLError(f'{source} holds no sample')
    if not np.isfinite(logits).all():
        raise PETLError(f'{source} holds logits that are not finite')
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise PETLError(
            f'{source} holds labels from {labels.min()} to {labels.max()} for '
            f'{logits.shape[1]} classes'
        )


def same_labels(runs: Sequence[Run]) -> np.ndarray:
    """The labels that all runs share, (N,).

    Raises:
        PETLError: Runs differ, so they did not read the same test set in one order.
    """
    first = runs[0]
    for run in runs[1:]:
        if not np.array_equal(run.labels, first.labels):
            raise PETLError(
                f'{run.record.job.id} and {first.record.job.id} hold different labels '
                f'({len(run.labels)} and {len(first.labels)} samples); runs of one '
                'task must read the same test set in the same order'
            )
        if run.logits.shape != first.logits.shape:
            raise PETLError(
                f'{run.record.job.id} has {run.logits.shape[1]} classes, '
                f'{first.record.job.id} has {first.logits.shape[1]}'
            )
    return first.labels


def load_task(
    out: str | os.PathLike, records: Sequence[Record], seed: int | None = None
) -> list[Run]:
    """One run per method of a task, by family.

    Args:
        out: The benchmark folder.
        records: Records of one task.
        seed: The seed to take; by default that which most methods have, the lowest
            of several.

    Raises:
        PETLError: Fewer than two methods have the seed, labels differ, or two runs are
            called alike.
    """
    if seed is None:
        seed = common_seed(records)
    names = names_of(records)
    runs = [
        load_run(out, r, names[r.job.id])
        for r in by_family(records)
        if r.job.seed == seed
    ]
    if len(runs) < 2:
        raise PETLError(
            f'{len(runs)} finished run of {records[0].task} has seed {seed}; '
            'comparing needs two'
        )
    same_labels(runs)
    return runs


def common_seed(records: Sequence[Record]) -> int:
    """The seed that most records have, the lowest of several."""
    counts: dict[int, int] = {}
    for record in records:
        counts[record.job.seed] = counts.get(record.job.seed, 0) + 1
    return min(counts, key=lambda s: (-counts[s], s))


def seeds_said(counts: Iterable[int]) -> str:
    """How many seeds stand behind some points: ``2 seeds``, ``1 to 3 seeds``."""
    counts = sorted(counts)
    low, high = counts[0], counts[-1]
    text = f'{high}' if low == high else f'{low} to {high}'
    return f'{text} seed{"s" if high > 1 else ""}'


def load_seeds(
    out: str | os.PathLike, records: Sequence[Record]
) -> dict[str, list[Run]]:
    """All seeds of every method of a task that has at least two."""
    groups: dict[str, list[Run]] = {}
    names = names_of(records)
    for record in by_family(records):
        name = names[record.job.id]
        groups.setdefault(name, []).append(load_run(out, record, name))
    groups = {name: runs for name, runs in groups.items() if len(runs) > 1}
    if groups:
        same_labels([run for runs in groups.values() for run in runs])
    return groups


def mean_scores(records: Iterable[Record]) -> tuple[list[str], list[str], np.ndarray]:
    """Tasks, names by family, and means over seeds (tasks, methods); NaN for none.

    Scores are percent, whatever the evaluators of the tasks report.
    """
    records = [r for r in records if percent(r) is not None]
    names = names_of(records)
    methods = list(dict.fromkeys(names[r.job.id] for r in by_family(records)))
    tasks = by_task(records)
    values = np.full((len(tasks), len(methods)), np.nan)
    for i, rows in enumerate(tasks.values()):
        seeds: dict[str, list[float]] = {}
        for record in rows:
            seeds.setdefault(names[record.job.id], []).append(percent(record))
        for name, scores in seeds.items():
            values[i, methods.index(name)] = np.mean(scores)
    return list(tasks), methods, values
