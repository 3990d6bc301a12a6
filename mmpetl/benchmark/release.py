"""A benchmark's results as files to hand on: what they are, and how to verify them.

A release is a folder that the verifier, the tables and the page read like the
benchmark's own: records, predictions, deltas, configs and logs of finished final runs,
the tables and the page made of them, and ``index.json`` with the size and SHA-256 of
every file. Checkpoints, consoles and trials stay behind; a search that chose settings
is in the records.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import now
from mmpetl.benchmark.records import Record, RecordStore, read_record, write_json
from mmpetl.benchmark.verdicts import digest_of, standing_of
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json

FORMAT = 1
INDEX = 'index.json'

OF_RUN = (
    'config.py',
    'data.json',
    'delta.json',
    'delta.safetensors',
    'efficiency.json',
    'hashed.json',
    'log.jsonl',
    'phases/method.json',
    'predictions.npz',
    'record.json',
    'results.json.gz',
    'verified.json',
)
"""Files of a run that are handed on, where it has them."""

OF_BENCHMARK = ('plan.json',)
FOLDERS = ('analysis', 'pictures', 'scorecard')
"""Of the benchmark: its plan, pictures with their words, and scorecards."""

KINDS = ('.csv', '.json', '.md', '.png')
"""Files in :data:`FOLDERS` that are handed on."""


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A file of a release.

    Attributes:
        bytes: Its size.
        sha256: Its digest, in hexadecimal digits.
    """

    bytes: int
    sha256: str


class Index(msgspec.Struct):
    """What ``index.json`` holds.

    Attributes:
        format: Of the file.
        name: Of the release.
        made: ISO 8601 time, UTC.
        mmpetl: Version that made it.
        commit: Commit that made it, or None.
        runs: How many runs there are, by what became of their verification.
        seconds: What the runs took together, one after another.
        verify: Commands that verify it, in a checkout of mmpetl.
        files: Every other file, by its path with ``/``.
    """

    format: int
    name: str
    made: str
    mmpetl: str
    commit: str | None
    runs: dict[str, int]
    seconds: float
    verify: list[str]
    files: dict[str, Entry]


@dataclass(frozen=True)
class Released:
    """What was written.

    Attributes:
        folder: Where.
        index: What it holds.
    """

    folder: Path
    index: Index

    @property
    def bytes(self) -> int:
        """Size of all files but the index."""
        return sum(entry.bytes for entry in self.index.files.values())


def release(
    out: str | os.PathLike,
    to: str | os.PathLike,
    name: str,
    unverified: bool = False,
) -> Released:
    """Write a release of a benchmark folder.

    Args:
        out: The benchmark folder.
        to: The release; must not be there yet.
        name: What it is called.
        unverified: Whether runs may go along that are not verified.

    Raises:
        PETLError: There is no finished run, a run is not verified, falsified, or
            edited since, or ``to`` is there already.
    """
    out, to = Path(out), Path(to)
    if to.exists():
        raise PETLError(f'{to} is there already; name a folder that is not')
    store = RecordStore(out)
    records = [r for r in store.all() if r.status == 'done' and r.job.stage == 'final']
    store.check_all_read()
    if not records:
        raise PETLError(f'{out} holds no finished final run to release')
    states = {r.job.id: standing_of(store.folder(r.job))[0] for r in records}
    _check_states(states, unverified)
    part = to.with_name(f'{to.name}.{os.getpid()}.part')
    try:
        _fill(out, part, records, name)
        index = Index(
            FORMAT,
            name,
            now(),
            run_facts.versions()['mmpetl'],
            run_facts.commit(),
            {
                s: sum(v == s for v in states.values())
                for s in sorted({*states.values()})
            },
            sum(r.seconds for r in records),
            _commands(to.name),
            _entries(part),
        )
        write_json(part / INDEX, msgspec.to_builtins(index))
        part.replace(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Released(to, index)


def _check_states(states: Mapping[str, str], unverified: bool) -> None:
    for run, state in states.items():
        if state in ('falsified', 'stale') or (state != 'verified' and not unverified):
            hint = '' if state == 'falsified' else '; mmpetl benchmark verify verifies'
            raise PETLError(f'the run {run} is {state}, and is not released{hint}')


def _commands(folder: str) -> list[str]:
    return [
        f'mmpetl benchmark release --check {folder}',
        f'mmpetl benchmark verify {folder}',
        f'mmpetl benchmark verify {folder} --from-delta',
        f'mmpetl benchmark verify {folder} --retrain',
    ]


def _fill(out: Path, part: Path, records: Iterable[Record], name: str) -> None:
    """Copy what is handed on, and make tables and page of it."""
    store = RecordStore(out)
    for record in records:
        folder = store.folder(record.job)
        for file in OF_RUN:
            _copy(folder / file, part / 'runs' / record.job.id / file)
    for file in OF_BENCHMARK:
        _copy(out / file, part / file)
    for folder in FOLDERS:
        for path in sorted((out / folder).rglob('*')):
            if path.suffix in KINDS and 'cells' not in path.parts:
                _copy(path, part / path.relative_to(out))
    _write_views(part, name)


def _copy(source: Path, target: Path) -> None:
    # A link could name any file of this machine.
    if source.is_file() and not source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _write_views(folder: Path, name: str) -> None:
    """Tables and page, from the records of the release itself."""
    from mmpetl.benchmark.render import render
    from mmpetl.benchmark.report import write_report
    from mmpetl.benchmark.tables import build_tables
    from mmpetl.benchmark.verdicts import standings

    records = RecordStore(folder).all()
    verdicts = standings(folder, (record.job for record in records))
    tables = build_tables(records, verdicts=verdicts)
    for form in ('md', 'csv'):
        text = '\n'.join(render(table, form) for table in tables)
        (folder / f'tables.{form}').write_text(text, encoding='utf-8')
    write_report(folder, title=name)


def _entries(folder: Path) -> dict[str, Entry]:
    paths = sorted(p for p in folder.rglob('*') if p.is_file())
    return {
        path.relative_to(folder).as_posix(): Entry(path.stat().st_size, digest_of(path))
        for path in paths
    }


def read_index(folder: str | os.PathLike) -> Index:
    """The index of a release.

    Raises:
        PETLError: There is none, or it is damaged or of another format.
    """
    path = Path(folder) / INDEX
    try:
        index = read_json(path, Index, 'index of a release')
    except FileNotFoundError:
        raise PETLError(f'{folder} is no release: it has no {INDEX}') from None
    if index.format != FORMAT:
        raise PETLError(
            f'{path} has format {index.format}; this mmpetl reads format {FORMAT}'
        )
    return index


def faults(folder: str | os.PathLike) -> list[str]:
    """What of a release is not as its index says, a line each.

    Verdicts may be written anew by whoever verifies; they are not held to it.
    """
    folder = Path(folder)
    index = read_index(folder)
    found = []
    for name, entry in index.files.items():
        path = folder / name
        if Path(name).is_absolute() or '..' in Path(name).parts:
            found.append(f'{name} is no path inside of the release')
        elif not path.is_file():
            found.append(f'{name} is missing')
        elif _own(name):
            continue
        elif path.stat().st_size != entry.bytes or digest_of(path) != entry.sha256:
            found.append(f'{name} is another file than the one released')
    there = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    more = sorted(n for n in there - {*index.files, INDEX} if not _own(n))
    return found + [f'{name} is not of the release' for name in more]


def runs_of(folder: str | os.PathLike, lines: Iterable[str]) -> list[str]:
    """Lines of :func:`faults`, behind those of a run what was run.

    It is read off the record, and is left out where the record does not say the run
    that its folder is named after.
    """
    folder, named = Path(folder), []
    for line in lines:
        found = re.match(r'runs/([^/ ]+)/', line)
        words = _in_words(folder / 'runs' / found[1]) if found else ''
        named.append(f'{line} ({words})' if words else line)
    return named


def _in_words(run: Path) -> str:
    """``LoRA on mini/digits, seed 1``, empty where the record cannot be read."""
    try:
        job = read_record(run / 'record.json').job
    except (OSError, PETLError):
        return ''
    if job.id != run.name:
        return ''
    more = [
        *([job.variant] if job.variant else []),
        *(['published settings'] if job.leaf else []),
        *([f'protocol {job.protocol}'] if job.protocol != 'honest' else []),
        f'seed {job.seed}',
    ]
    return f'{job.method} on {job.recipe}, {", ".join(more)}'


def _own(name: str) -> bool:
    """Whether a file is written by those who verify."""
    return name.endswith('/verified.json')


def words_of(released: Released) -> dict[str, Any]:
    """What a reader is told of a release: counts, size, time."""
    index = released.index
    return {
        'name': index.name,
        'runs': sum(index.runs.values()),
        'files': len(index.files),
        'bytes': released.bytes,
        'seconds': index.seconds,
    }
