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
        pruner: Arguments of :class:`mmpetl.benchmark.optuna_study.PruningHook`, for a
            trial.
        run: What does the work, ``module:function``; called with the task and the
            run's folder, it returns a record.
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


def outcome_of(record: Record, retries: int) -> Outcome:
    """The outcome that a record tells."""
    lines = (record.error or '').strip().splitlines()
    note = lines[-1] if lines else record.restarted
    return Outcome(record.job.id, record.status, note, not is_final(record, retries))
