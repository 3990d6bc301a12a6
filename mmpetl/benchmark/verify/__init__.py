"""The verifier: does a record say what its run did?

Configs are composed from the job anew and never run from the folder. Metrics are
computed by the config's own evaluators from what was predicted, or by testing the delta
on its base, or by training again. What a record says of time, memory, device and host
cannot be computed: times and memory are held against the log that the run wrote, the
others are taken on trust.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import now
from mmpetl.benchmark.records import Job
from mmpetl.benchmark.verdicts import Check, Level, Verdict, digest_of
from mmpetl.benchmark.verify import recompute
from mmpetl.benchmark.verify.checks import LOOKS, merged
from mmpetl.benchmark.verify.run import Run, checks_of
from mmpetl.core import PETLError
from mmpetl.core.boundary import checked

TRUSTED = (
    'commit',
    'cuda',
    'device',
    'driver',
    'finished',
    'host',
    'processes',
    'shared',
    'step_seconds',
    'threads',
    'total_seconds',
)
"""Fields that nothing in the folder, and nothing computed again, can tell."""


def verify_run(
    folder: str | os.PathLike, level: Level = 'files', trust: bool = False
) -> Verdict:
    """Verify one run.

    Args:
        folder: ``runs/<id>`` of a benchmark folder.
        level: ``files``: from what the run left, and data and base where they are here.
            ``delta``: the delta is tested once more, too. ``retrained``: the job is
            trained once more, too.
        trust: Whether the options of the job may import, and name what no toolbox
            registers.

    Raises:
        FileNotFoundError: There is no record.
    """
    run = Run(Path(folder), trust)
    digest = digest_of(run.folder / 'record.json')
    try:
        record = run.record
    except PETLError as error:
        checks: tuple[Check, ...] = (_unreadable(run, error),)
    else:
        if record.status != 'done':
            note = f'the status of the run is {record.status}'
            checks = (Check('status', 'unchecked', note=note),)
        elif record.job.stage != 'final':
            note = 'a trial keeps neither predictions nor delta'
            checks = (Check('metrics', 'unchecked', note=note),)
        else:
            checks = merged(_checks(run, level))
    by = run_facts.versions()
    return Verdict(run.folder.name, level, checks, digest, run.digests(), by, now())


def _unreadable(run: Run, error: PETLError) -> Check:
    """What a record is that cannot be read: one of another job, or none at all."""
    try:
        job = checked(run.raw.get('job'), Job, 'job')
    except PETLError:
        return Check('record', 'falsified', 'a record', str(error))
    if run.raw.get('id') != job.id:
        note = 'what its job makes of it'
        return Check('id', 'falsified', run.raw.get('id'), job.id, note)
    return Check('record', 'falsified', 'a record', str(error))


def _checks(run: Run, level: Level) -> Iterator[Check]:
    for field, look in LOOKS.items():
        yield from checks_of(field, look, run)
    left = any((run.folder / name).is_file() for name in KEPT)
    if left or level == 'files':
        yield from checks_of('metrics', recompute.predictions, run)
        yield from checks_of('predictions.labels', recompute.labels, run)
    if level in ('delta', 'retrained'):
        yield from checks_of('delta.test', recompute.from_delta, run)
    if level == 'retrained':
        yield from checks_of('retrained', recompute.retrained, run)


KEPT = (recompute.PREDICTIONS, recompute.RESULTS)


def run_folders(out: str | os.PathLike) -> list[Path]:
    """Folders of a benchmark that hold a record, by name.

    Raises:
        PETLError: There is none.
    """
    found = sorted(p.parent for p in Path(out).glob('runs/*/record.json'))
    if not found:
        raise PETLError(f'{out} holds no record (runs/<id>/record.json) to verify')
    return found
