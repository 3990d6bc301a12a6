"""One record per run: what was asked, what ran it, what came out.

A record is a JSON file that is written whole or not at all. Tables, statistics and the
report page read records only, so that every figure can be recomputed from them.

Layout of a benchmark folder::

    <out>/plan.json                    the resolved plan
    <out>/records.sqlite               an index of many records, made as needed
    <out>/runs/<id>/record.json        the record
    <out>/runs/<id>/config.py          the resolved config
    <out>/runs/<id>/predictions.npz    logits (N, C) float32, labels (N,) int64
    <out>/runs/<id>/delta.safetensors  the trained numbers, with delta.json
    <out>/runs/<id>/lock               held by the process that works on the run
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from mmpetl.benchmark import claims
from mmpetl.benchmark.index import Index
from mmpetl.core import PETLError
from mmpetl.core.boundary import Count, checked, read_json

FORMAT = 2
READ_FORMATS = (1, 2)
"""Formats that are read. What format 1 did not say is unknown: None, or empty."""

STATUSES = ('done', 'failed', 'pruned')


@dataclass(frozen=True)
class Job:
    """One cell of the matrix.

    Args:
        recipe: Name of a recipe below ``configs/``: ``vtab/cifar100``, ``mini/digits``.
        method: Name in the registry: ``LoRA``; of several ``LoRA + VPTDeep``.
        seed: Seed of initialisation and data order.
        protocol: ``honest`` or ``published``.
        stage: ``final``, or ``tune``, which never reads the test set.
        options: Dotted config keys that depart from recipe and method.
        variant: Short name of what the options change; part of the id.
        leaf: Whether to start from the pair's published settings instead of the recipe.
    """

    recipe: str
    method: str
    seed: int = 42
    protocol: Literal['honest', 'published'] = 'honest'
    stage: Literal['final', 'tune'] = 'final'
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ''
    leaf: bool = False

    @functools.cached_property
    def id(self) -> str:
        """Readable, unique, and fit for a folder's name."""
        method = self.method.lower().replace(' ', '')  # of several `lora+vptdeep`
        parts = [self.recipe.replace('/', '-'), method]
        if self.options or self.variant:
            text = json.dumps(dict(self.options), sort_keys=True, default=str)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            parts.append('-'.join(filter(None, (self.variant, digest))))
        if self.leaf:
            parts.append('leaf')
        if self.stage != 'final':
            parts.append(self.stage)
        if self.protocol != 'honest':
            parts.append(self.protocol)
        parts.append(f's{self.seed}')
        return re.sub(r'[^\w.+-]', '_', '--'.join(parts))


@dataclass(frozen=True)
class DataRead:
    """What one phase of a run read; see :mod:`mmpetl.datasets.identity`.

    Attributes:
        digest: SHA-256, 64 hexadecimal digits, over the identities and labels of the
            samples, in the order of the data set; the same wherever the data lie.
            Empty where the data set does not say what its samples are.
        count: Samples that were read in one pass, each as often as a pass has it.
        kind: Class of the data set, of its innermost one where it wraps others.
        by: What an identity is made of: ``content``, ``size`` of large sets, or empty.
        copies: Samples of this phase whose file has the content of one that trained;
            None where that was not looked at.
    """

    digest: str = ''
    count: Count = 0
    kind: str = ''
    by: str = ''
    copies: Count | None = None


@dataclass
class Record:
    """What is known of one run. What is not known is None or empty.

    Attributes:
        job: What was asked.
        status: ``done``, ``failed``, or ``pruned`` of a trial that was cut short.
        family: Family of the method: ``adapter``, ``prompt``, ...
        settings: Arguments of the method that depart from its defaults.
        task: Id of the dataset, as in the catalogue and the published tables.
        group: Group of the task within its suite: ``natural``, ``fgvc``, ...
        backbone: Name of the backbone: ``ViT-B/16``.
        metrics: Every metric of the final reading, by its evaluator's name.
        primary: Name of the metric that tables rank by. Higher is better.
        ppt: PPT of the primary metric.
        counts: Trainable parameters by owner: ``delta``, ``selected``, ``head``.
        curves: Name to list of (step, value); ``loss``, ``lr``, metrics of validation.
            Steps are those of the optimizer, as in ``steps``.
        config_hash: Digest of the resolved config without folders and logging.
        base: ``file`` and ``fingerprint`` of the base weights.
        preprocessing: Named preset: normalisation, augmentation, interpolation.
        test_reads: How often the test set was scored in this run.
        seconds: Wall time of the run, over all its attempts.
        step_seconds: Median time of a step of the optimizer, all passes of it; of a
            calibration, and in older records, of a pass.
        peak_memory_bytes: Peak over the run.
        device: Name of the device.
        versions: Package versions.
        commit: Commit of the project, ``-dirty`` appended where it had edits; or None.
        started: ISO 8601 time, UTC.
        finished: ISO 8601 time, UTC.
        attempts: How many times it was begun after a failure.
        error: What went wrong, with its traceback; None where nothing did.
        search: Budget and trials of the search that chose the settings, or None.
        data: What ``train``, ``val`` and ``test`` read; a phase that read nothing, or
            of which nothing is known, is not there.
        recipe_digest: Digest of the resolved config without method, seed and folders:
            equal between methods that were trained in the same way.
        steps: Iterations of the training, all of them.
        epochs: Epochs of the training; None where it counts iterations.
        batch: Samples behind one step of the optimizer, over all processes.
        resolution: Height and width of what the test pipeline makes, in pixels.
        processes: Processes that trained together.
        threads: Threads of torch in each process.
        host: Name of the machine.
        cuda: Version of CUDA that torch was built with; None on a CPU.
        driver: Version of the GPU's driver; None on a CPU.
        shared: Jobs that might run at the same time on its device, itself included;
            None where the executor cannot know.
        delta_bytes: Size of the exported delta's file of numbers.
        total_seconds: Wall time of all attempts that is on file, preparation, test
            reading and export included.
        restarted: Why the files of an earlier attempt were removed, in a line.
        features: Of each phase whose pictures did not go through the trunk, as their
            features were read from disk: key of the set, pictures that this run
            computed, pictures that were compared, largest difference.
    """

    job: Job
    status: str
    family: str = ''
    settings: dict[str, Any] = field(default_factory=dict)
    task: str = ''
    group: str = ''
    backbone: str = ''
    metrics: dict[str, float] = field(default_factory=dict)
    primary: str = ''
    ppt: float | None = None
    counts: dict[str, Count] = field(default_factory=dict)
    curves: dict[str, list[list[float | None]]] = field(default_factory=dict)
    config_hash: str = ''
    base: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    test_reads: int = 0
    seconds: float = 0.0
    step_seconds: float | None = None
    peak_memory_bytes: int | None = None
    device: str = ''
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    started: str = ''
    finished: str = ''
    attempts: int = 1
    error: str | None = None
    search: dict[str, Any] | None = None
    data: dict[str, DataRead] = field(default_factory=dict)
    recipe_digest: str = ''
    steps: Count | None = None
    epochs: Count | None = None
    batch: Count | None = None
    resolution: list[Count] | None = None
    processes: Count | None = None
    threads: Count | None = None
    host: str = ''
    cuda: str | None = None
    driver: str | None = None
    shared: Count | None = None
    delta_bytes: Count | None = None
    total_seconds: float | None = None
    restarted: str = ''
    features: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The primary metric; None of a failed run."""
        return self.metrics.get(self.primary)

    @property
    def trainable(self) -> int:
        """Trainable parameters of the backbone; the head does not count."""
        return self.counts.get('delta', 0) + self.counts.get('selected', 0)

    def to_json(self) -> dict[str, Any]:
        """A plain dict that :meth:`from_json` reads back; it shares its parts."""
        data = {'format': FORMAT, 'id': self.job.id, **_shallow(self)}
        data['job'] = _shallow(self.job)
        data['data'] = {phase: _shallow(read) for phase, read in self.data.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = 'record') -> Record:
        """The record of a dict.

        Raises:
            PETLError: The format is not ours, or fields are missing or unknown.
        """
        data = dict(data)
        found = data.pop('format', None)
        if found not in READ_FORMATS or isinstance(found, bool):
            raise PETLError(
                f'{source} has format {found!r}; this mmpetl reads the formats '
                f'{" and ".join(map(str, READ_FORMATS))}'
            )
        named = data.pop('id', None)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise PETLError(f'{source} is not a record: it has {name!r}')
        check_job(data.get('job'), source)
        record = checked(data, cls, source)
        _check_names(record, source)
        _check_data(record, source)
        if named is not None and named != record.job.id:
            raise PETLError(
                f'{source} has the id {named!r}, and its job is {record.job.id!r}: it '
                'was edited'
            )
        for name, points in record.curves.items():
            if any(len(p) != 2 or p[0] is None for p in points):
                raise PETLError(f'{source}: curves.{name} is no list of (step, value)')
        if record.search is not None:
            checked(record.search, Found, f'{source}: search')
        if record.status not in STATUSES:
            raise PETLError(
                f'{source} has status {record.status!r}, which is none of '
                f'{", ".join(STATUSES)}'
            )
        return record


def check_job(job: Any, source: str) -> None:
    """Raise PETLError where a job of a file says what no job has."""
    known = ['id', *(field.name for field in dataclasses.fields(Job))]
    for name in job if isinstance(job, Mapping) else ():
        if name not in known:
            raise PETLError(f'{source}: job has {name!r}, which no job has')


def _check_names(record: Record, source: str) -> None:
    """Raise PETLError where a name could not be printed, or names nothing."""
    job = record.job
    names = {
        **{key: getattr(job, key) for key in ('recipe', 'method', 'variant')},
        **{key: getattr(record, key) for key in _PRINTED},
        **{f'metrics.{key}': key for key in record.metrics},
    }
    for key, name in names.items():
        if re.search(r'[\x00-\x1f\x7f]', name):
            raise PETLError(f'{source}: {key} is {name!r}, with a control character')
    if record.primary and record.metrics and record.primary not in record.metrics:
        raise PETLError(
            f'{source}: primary is {record.primary!r}, which is none of the metrics'
        )


def _check_data(record: Record, source: str) -> None:
    """Raise PETLError where what a phase read is said of no phase, or not said so."""
    for phase, read in record.data.items():
        if phase not in PHASES:
            raise PETLError(
                f'{source}: data has {phase!r}, which is none of {", ".join(PHASES)}'
            )
        if not re.fullmatch('|[0-9a-f]{64}', read.digest):
            raise PETLError(f'{source}: data.{phase}.digest is no SHA-256 in hex')
    if record.resolution is not None and len(record.resolution) != 2:
        raise PETLError(f'{source}: resolution is no height and width')


PHASES = ('train', 'val', 'test')
_PRINTED = ('family', 'task', 'group', 'backbone', 'primary', 'device')
_PRINTED += ('host', 'restarted')
"""Fields of a record that tables and pages print."""


@dataclass
class FoundTrial:
    """What is read of a trial in a record."""

    number: int
    status: str
    options: dict[str, Any] = field(default_factory=dict)
    value: float | None = None


@dataclass
class FoundEarlier:
    """What is read of a final run that a later best of its search has replaced."""

    run: str
    seed: int
    test_reads: Count


@dataclass
class Found:
    """What is read of the search in a record; it may hold more.

    Attributes:
        budget: Trials that were asked for.
        tried: Different settings that were tried; fewer where the space has no more.
        settings: Different settings that there are, the default among them; None where
            the space has no end.
        earlier: Final runs that were replaced. Their readings of the test set count.
    """

    budget: int = 0
    tried: int = 0
    settings: int | None = None
    earlier: list[FoundEarlier] = field(default_factory=list)
    split: str = ''
    default_value: float | None = None
    best: int | None = None
    best_value: float | None = None
    trials: list[FoundTrial] = field(default_factory=list)


def setting_key(options: Mapping[str, Any]) -> str:
    """What makes two settings one: their values, however a number is written."""
    return json.dumps(_plain(options), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shallow(value: Any) -> dict[str, Any]:
    """Fields of a dataclass; ``asdict`` would copy every point of every curve."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def reads_by_seed(search: Mapping[str, Any] | None) -> Counter[int]:
    """Readings of the test set by final runs that a search has replaced, by seed."""
    found: Counter[int] = Counter()
    for item in (search or {}).get('earlier', ()):
        found[item['seed']] += item['test_reads']
    return found


def earlier_reads(search: Mapping[str, Any] | None, seed: int) -> int:
    """Readings of the test set by final runs of a seed that a search has replaced."""
    return reads_by_seed(search)[seed]


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all."""
    # NaN is no JSON; a curve that has one must say null. Python's own encoder is slow
    # where it indents.
    text = msgspec.json.format(json.dumps(data, allow_nan=False), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    with open(part, 'w', encoding='utf-8') as file:
        file.write(text + '\n')
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class RecordStore:
    """The records of one benchmark folder.

    Args:
        out: The folder; made when the first record is written.
    """

    def __init__(self, out: str | os.PathLike) -> None:
        self.out = Path(out)
        self.left_out: list[str] = []

    def folder(self, job: Job) -> Path:
        """Where a run lives."""
        return self.out / 'runs' / job.id

    def read(self, job: Job) -> Record | None:
        """The record of a job; None if it has none yet."""
        path = self.folder(job) / 'record.json'
        return read_record(path) if path.is_file() else None

    def write(self, record: Record) -> None:
        """Keep a record, whole or not at all."""
        write_json(self.folder(record.job) / 'record.json', record.to_json())

    def all(self, curves: bool = True) -> list[Record]:
        """Every record of the folder that can be read, by id.

        Those that cannot are named in :attr:`left_out`, and once each on stderr. Of
        thousands, what has not changed since comes from an index
        (:mod:`mmpetl.benchmark.index`).

        Args:
            curves: Whether to read curves, too; else there is only the last point of
                the loss, by which a record is held against itself.
        """
        found: dict[str, Record] = {}
        self.left_out = []
        folder = self.out / 'runs'
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        files = [(name, folder / name / 'record.json') for name in names]
        for name, record in self._read(files, curves):
            if isinstance(record, Exception):
                self.left_out.append(f'{record}')
                continue
            path = folder / name / 'record.json'
            if record.job.id in found:
                # A copied folder is no second run.
                self.left_out.append(f'{path} is a second record of {record.job.id}')
                continue
            if record.job.id != name:
                self.left_out.append(
                    f'{path} is the record of {record.job.id}, which is another folder'
                )
                continue
            found[record.job.id] = record
        for line in self.left_out:
            print(f'left out: {line}', file=sys.stderr)
        return list(found.values())

    def of(self, jobs: Iterable[Job], curves: bool = False) -> dict[str, Record]:
        """The records that jobs have, by their ids: :meth:`read` of many at once.

        Raises:
            PETLError: A file is not a record.
        """
        folder = self.out / 'runs'
        files = [(job.id, folder / job.id / 'record.json') for job in jobs]
        found = {}
        for name, record in self._read(files, curves):
            if isinstance(record, Exception):
                raise record
            found[name] = record
        return found

    def _read(
        self, files: Iterable[tuple[str, Path]], curves: bool
    ) -> Iterator[tuple[str, Record | Exception]]:
        """Records of the files that are there."""
        there = [(name, path) for name, path in files if os.path.lexists(path)]
        index = Index(self.out / 'records.sqlite', _index_kind())
        decode = msgspec.json.Decoder(Record).decode
        points = msgspec.json.Decoder(dict[str, list[list[float | None]]]).decode
        for name, entry in index.entries(there, _head_and_tail, curves):
            if isinstance(entry, Exception):
                yield name, entry
                continue
            record = decode(entry.head)
            if curves:
                record.curves = points(entry.tail)
            yield name, record

    def check_all_read(self) -> None:
        """Raise PETLError where :meth:`all` left something out."""
        if self.left_out:
            raise PETLError(
                f'{self.out}: {len(self.left_out)} records were left out, '
                f'{self.left_out[0]} for one'
            )

    @contextmanager
    def claim(self, job: Job) -> Iterator[bool]:
        """Whether this process, and no other, may work on a job.

        The operating system drops the lock when its process ends, however it ends.
        Where it has none, see :mod:`mmpetl.benchmark.claims`.
        """
        with claims.claim(self.folder(job)) as mine:
            yield mine

    def held(self, job: Job) -> bool:
        """Whether some process works on a job; the lock is left as it is."""
        return claims.held(self.folder(job))


def _head_and_tail(path: Path) -> tuple[bytes, bytes]:
    """A record, checked, as its curves and the rest, which has where the loss ends."""
    record = read_record(path)
    curves = record.curves
    ends = [
        max(points, key=lambda p: p[0]) for points in (curves.get('loss'),) if points
    ]
    record.curves = {'loss': ends} if ends else {}
    return msgspec.json.encode(record), msgspec.json.encode(curves)


@functools.cache
def _index_kind() -> str:
    """What an index of records is of: this format, these fields."""
    names = [field.name for kind in (Job, Record) for field in dataclasses.fields(kind)]
    return f'records {FORMAT}, end of the loss: {" ".join(names)}'


def read_record(path: str | os.PathLike) -> Record:
    """A record from its file.

    Raises:
        PETLError: The file is not a record.
    """
    path = Path(path)
    try:
        data = read_json(path, dict[str, Any], 'record')
    except PETLError as error:
        raise PETLError(f'{error}; remove the record to run its job again') from None
    return Record.from_json(data, str(path))
