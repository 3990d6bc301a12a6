"""The final runs of a search, and those that a later best has replaced.

A search that goes on with more trials may find a better setting. Its final runs are
then of that setting, and those of the old one lie below ``replaced`` in the search's
folder: they are no second row of a table. But they have read the test set, and whoever
went on may have done so because of what they read. So their readings count among those
of the runs that replace them.

``finals.json`` holds every final run that was ever begun, written before the run is.
Where a run lies, in ``runs`` or below ``replaced``, is the truth; a call that is killed
between two moves is completed by the next one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpetl.benchmark.collect import last_test
from mmpetl.benchmark.records import (
    Job,
    Record,
    RecordStore,
    check_job,
    earlier_reads,
    read_record,
    write_json,
)
from mmpetl.config.options import MOST_SEED
from mmpetl.core import PETLError
from mmpetl.core.boundary import checked, read_json

VARIANT = 'searched'
"""What the final runs of a search are called."""

FILE = 'finals.json'
"""Where a search keeps which final runs it has begun."""

REPLACED = 'replaced'
"""Where the runs of a setting lie that is no longer the best."""


def search_folder(out: Path, recipe: str, method: str) -> Path:
    """Where the study of a method on a recipe lies."""
    name = method.lower().replace(' ', '')
    return out / 'search' / f'{recipe.replace("/", "-")}--{name}'


def replace_finals(
    store: RecordStore, folder: Path, jobs: Sequence[Job]
) -> list[dict[str, Any]]:
    """Move runs of other settings than the best aside; what they read of the test set.

    Args:
        store: The benchmark's records.
        folder: That of the search.
        jobs: Final runs of the best setting, one per seed.

    Returns:
        For every run that was replaced, by now or before: ``run``, ``seed``,
        ``options``, ``score`` and ``test_reads``.

    Raises:
        PETLError: Another process works on a run that is to be replaced.
    """
    known = {job.id: job for job in [*_begun(store, folder, jobs[0]), *jobs]}
    write_json(folder / FILE, [dataclasses.asdict(j) for j in known.values()])
    earlier = []
    for job in known.values():
        here, aside = store.folder(job), folder / REPLACED / job.id
        if _setting(job) == _setting(jobs[0]):
            if aside.is_dir() and not here.is_dir():
                aside.rename(here)  # the best once more
            continue
        if here.is_dir():
            if store.held(job):
                raise PETLError(
                    f'{here} is a final run of a setting that is no longer the best, '
                    'and another process works on it; wait for it, or end it'
                )
            _move(here, aside)
        earlier += _readings(job, folder / REPLACED)
    return earlier


def _setting(job: Job) -> str:
    """What runs of one setting have in common."""
    return dataclasses.replace(job, seed=0).id


def _move(here: Path, aside: Path) -> None:
    aside.parent.mkdir(parents=True, exist_ok=True)
    place, number = aside, 2
    while place.exists():
        place, number = aside.with_name(f'{aside.name}~{number}'), number + 1
    here.rename(place)


def _readings(job: Job, folder: Path) -> list[dict[str, Any]]:
    """What the runs of a job that was replaced have read."""
    found = []
    for place in sorted([folder / job.id, *folder.glob(f'{job.id}~*')]):
        if not place.is_dir():
            continue
        record, reads = _read(place)
        found.append(
            {
                'run': place.name,
                'seed': job.seed,
                'options': dict(job.options),
                'score': record.score if record else None,
                'test_reads': reads,
            }
        )
    return found


def _read(place: Path) -> tuple[Record | None, int]:
    """The record of a run, if it left one, and how often it read the test set."""
    _, reads = last_test(place)
    path = place / 'record.json'
    if not path.is_file():
        return None, reads
    record = read_record(path)
    own = record.test_reads - earlier_reads(record.search, record.job.seed)
    return record, max(reads, own)


def replaced_reads(out: Path, job: Job) -> Counter[int]:
    """Readings of the test set below ``replaced`` of a job's search, by seed."""
    folder = search_folder(out, job.recipe, job.method) / REPLACED
    found: Counter[int] = Counter()
    for place in folder.iterdir() if folder.is_dir() else ():
        named = re.fullmatch(r'.*--s(\d+)(~\d+)?', place.name)
        if named and place.is_dir():
            found[int(named[1])] += _read(place)[1]
    return found


def _begun(store: RecordStore, folder: Path, like: Job) -> list[Job]:
    """Final runs of a search that were ever begun."""
    path = folder / FILE
    if os.path.lexists(path):
        return _listed(path, like)
    # An earlier version kept no list; its records say what they are.
    prefix = like.id.partition(f'--{VARIANT}-')[0]
    records = [
        read_record(path)
        for path in sorted(store.out.glob(f'runs/{prefix}--{VARIANT}-*/record.json'))
    ]
    return [
        r.job
        for r in records
        if (r.job.recipe, r.job.method, r.job.variant, r.job.stage)
        == (like.recipe, like.method, VARIANT, 'final')
    ]


def check_finals(folder: Path, like: Job) -> None:
    """Raise PETLError where a search cannot go on for its list of final runs.

    Args:
        folder: That of the search.
        like: Any final run of it.
    """
    if os.path.lexists(folder / FILE):
        _listed(folder / FILE, like)


def _listed(path: Path, like: Job | None = None) -> list[Job]:
    """The jobs of a ``finals.json``, all of one search: their runs are moved.

    Raises:
        PETLError: It is damaged, or names a run of something else.
    """
    data = read_json(path, list[dict[str, Any]], 'list of the final runs of a search')
    for job in data:
        check_job(job, str(path))
    jobs = list(checked(data, list[Job], str(path)))
    like = like or next(iter(jobs), None)
    for job in jobs:
        if not 0 <= job.seed <= MOST_SEED:
            raise PETLError(f'{path} has a seed {job.seed}, which no run has')
        if like is None or _search(job) != _search(like) or job.variant != VARIANT:
            raise PETLError(
                f'{path} names {job.id}, which is no final run of this search; it was '
                'edited, or is that of another search'
            )
    return jobs


def _search(job: Job) -> tuple[str, ...]:
    """What all final runs of a search have in common."""
    return job.recipe, job.method, job.stage


def renew(store: RecordStore, folder: Path, search: Mapping[str, Any]) -> None:
    """Put a search that went on into the records of the final runs that it keeps."""
    search = json.loads(json.dumps(search))
    for job in _listed(folder / FILE):
        record = store.read(job)
        if record is None or record.search == search:
            continue
        own = record.test_reads - earlier_reads(record.search, job.seed)
        record.test_reads = own + earlier_reads(search, job.seed)
        record.search = search
        store.write(record)
