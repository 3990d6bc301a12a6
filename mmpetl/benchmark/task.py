"""What a worker is told, and what it answers: plain data, so that both travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmpetl.benchmark.records import Job, Record


@dataclass(frozen=True)
class Task:
    """What a worker is told: a job and all that it needs to do it.

    Attributes:
        job: What to run.
        out: The benchmark's folder, absolute.
        retries: How often a job that failed is begun again.
        env: Environment variables that matter: where data and weights lie.
        threads: Threads of torch; None leaves them.
        shared: Jobs that may run at the same time on its device; None unknown.
        search: Record of the search that chose the options.
        memory_bytes: What a job of this kind took on its device at most, where that was
            measured.
        pruner: Arguments of :class:`mmpetl.benchmark.optuna_study.PruningHook`, for a
            trial.
        run: What does the work, ``module:function``; called with the task and the
            run's folder, it returns a record.
        like: Jobs whose records say what this one would find out, for a calibration.
    """

    job: Job
    out: str
    retries: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    shared: int | None = None
    search: Mapping[str, Any] | None = None
    pruner: Mapping[str, Any] | None = None
    run: str = 'mmpetl.benchmark.job:run_task'
    memory_bytes: int | None = None
    like: tuple[Job, ...] = ()

    @property
    def processes(self) -> int:
        """In how many processes the job trains."""
        return int(self.job.options.get('processes', 1))


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        id: The job's.
        status: ``done``, ``failed`` or ``pruned`` as the record says; ``elsewhere``
            where another process holds the job; ``lost`` where the worker died.
        note: The failure in a line, or why a run was begun anew.
        retry: Whether the job may be begun again.
    """

    id: str
    status: str
    note: str = ''
    retry: bool = False


def is_final(record: Record, retries: int) -> bool:
    """Whether a record leaves nothing to do: no failure, or one too many."""
    return record.status != 'failed' or record.attempts > retries


def outcome_of(record: Record, retries: int, before: Record | None = None) -> Outcome:
    """The outcome that a record tells.

    Args:
        record: The record.
        retries: How often a job that failed is begun again.
        before: What the attempt before has left, if there was one.
    """
    again = not is_final(record, retries) and not is_certain(record, before)
    return Outcome(record.job.id, record.status, note_of(record), again)


def note_of(record: Record) -> str:
    """The failure in a line."""
    lines = (record.error or '').strip().splitlines()
    return lines[-1] if lines else record.restarted


def is_certain(record: Record, before: Record | None = None) -> bool:
    """Whether a job that failed would fail again: nothing about it is left to chance.

    What is wrong with a config or with data is a PETLError. Anything else is certain
    when it has come twice with the same words.
    """
    if record.status != 'failed':
        return False
    if _kind_of(record.error or '') == 'PETLError':
        return True
    again = before is not None and bool(before.error)
    return again and note_of(before) == note_of(record)


def _kind_of(error: str) -> str:
    """Type of the exception that a traceback ends with."""
    last = error.rpartition('Traceback (most recent call last):')[2]
    lines = [line for line in last.splitlines() if line and not line[0].isspace()]
    return lines[0].partition(':')[0].rpartition('.')[2] if lines else ''
