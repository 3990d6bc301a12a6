"""Jobs on Slurm, through submitit."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmpetl.benchmark.executors.base import Executor
from mmpetl.benchmark.executors.local import cores, threads
from mmpetl.benchmark.task import Outcome, Task
from mmpetl.benchmark.worker import work
from mmpetl.compat.extras import pip_line
from mmpetl.config.batch import MOST_PROCESSES
from mmpetl.core import PETLError

QUEUE = 1000
"""Jobs of ours that wait in Slurm's queue or run, at most."""

DEFAULTS = {'timeout_min': 240, 'name': 'mmpetl'}


class SlurmExecutor(Executor):
    """Job arrays of submitit.

    A job that is preempted or runs out of time is put back into the queue by submitit
    and continues from its checkpoint. Nodes need the benchmark's folder under one path,
    on a file system that locks (flock).

    Args:
        cluster: ``slurm``; ``local`` runs processes of this machine, ``debug`` runs
            here. By default slurm where it is found, else local.
        workers: Most jobs in the queue; by default 1,000 on Slurm, elsewhere one per
            core.
        parameters: What submitit takes: ``timeout_min``, ``gpus_per_node``,
            ``cpus_per_task``, ``mem_gb``, ``slurm_partition``,
            ``slurm_array_parallelism``, ...

    Raises:
        PETLError: submitit is not installed, or takes no such parameter.
    """

    def __init__(
        self,
        cluster: str | None = None,
        workers: int | None = None,
        **parameters: Any,
    ) -> None:
        self._submitit = import_submitit()
        self._cluster = cluster
        self._parameters = {**DEFAULTS, **parameters}
        self._senders: dict[int, Any] = {}
        self._waiting: list[Task] = []
        self._jobs: dict[str, Any] = {}
        self._check()
        on_slurm = self._make(Path('.')).cluster == 'slurm'
        self._most = workers or (QUEUE if on_slurm else cores())
        # Slurm gives each job its cores; here they share those of the machine.
        self._threads = None if on_slurm else threads(self._most)

    def _make(self, folder: Path) -> Any:
        try:
            executor = self._submitit.AutoExecutor(folder, cluster=self._cluster)
            executor.update_parameters(**self._parameters)
        except (NameError, ValueError, RuntimeError, AssertionError) as error:
            reason = ' '.join(str(error).split())[:300]
            raise PETLError(f'executor slurm: {reason}') from None
        return executor

    def _check(self) -> None:
        known = ('slurm', 'local', 'debug')
        if self._cluster is not None and self._cluster not in known:
            raise PETLError(
                f'executor slurm: there is no cluster {self._cluster!r}. There are: '
                f'{", ".join(known)}'
            )

    @property
    def slots(self) -> int:
        return self._parameters.get('slurm_array_parallelism', self._most)

    @property
    def most_processes(self) -> int:
        # On Slurm it is the scheduler that knows its nodes, and refuses.
        return MOST_PROCESSES if self._threads is None else self._most

    def room(self, task: Task) -> bool:
        return self.free > 0

    @property
    def free(self) -> int:
        return self._most - len(self._jobs) - len(self._waiting)

    def _shared(self) -> int | None:
        """Jobs that may be on the device of one with it, itself included.

        Slurm gives GPUs, and nodes that are asked for alone, to one job. Who else is on
        a node that is not, only Slurm knows.
        """
        if self._threads is not None:
            return 1 if self._cluster == 'debug' else self._most
        gpus = any(self._parameters.get(f'{n}gpus_per_node') for n in ('', 'slurm_'))
        return 1 if gpus or self._parameters.get('slurm_exclusive') is True else None

    def submit(self, task: Task) -> None:
        task = replace(task, shared=task.shared or self._shared())
        self._waiting.append(replace(task, threads=task.threads or self._threads))

    def wait(self, timeout: float) -> list[Outcome]:
        # One array for all of a size: a scheduler likes few requests.
        for number in sorted({task.processes for task in self._waiting}):
            tasks = [task for task in self._waiting if task.processes == number]
            jobs = self._sender(number, tasks[0].out).map_array(Work(), tasks)
            names = (task.job.id for task in tasks)
            self._jobs |= dict(zip(names, jobs, strict=True))
        self._waiting = []
        deadline = time.monotonic() + timeout
        while True:
            ended = [name for name, job in self._jobs.items() if job.done()]
            if ended or time.monotonic() >= deadline:
                return [self._end(name) for name in ended]
            time.sleep(min(0.1, timeout))

    def _sender(self, processes: int, out: str) -> Any:
        """What sends jobs of so many processes, which share a node."""
        if processes not in self._senders:
            sender = self._make(Path(out) / 'slurm')
            if processes > 1:
                cpus = self._parameters.get('cpus_per_task', 1)
                more: dict[str, Any] = {'cpus_per_task': cpus * processes}
                if self._parameters.get('gpus_per_node'):
                    more['gpus_per_node'] = processes
                sender.update_parameters(**more)
            self._senders[processes] = sender
        return self._senders[processes]

    def _end(self, name: str) -> Outcome:
        job = self._jobs.pop(name)
        try:
            return job.result()
        except Exception as error:
            # Whatever kept the answer from us: the job itself records its failures.
            note = ' '.join(str(error).split())
            return Outcome(name, 'lost', f'its worker died: {note[:300]}')

    def close(self) -> None:
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
        self._waiting = []


class Work:
    """The function that submitit sends; it continues after a preemption."""

    def __call__(self, task: Task) -> Outcome:
        """Do a task; a signal of the scheduler saves it behind its step.

        Of the signal by which submitit is told of a preemption or of the end of its
        time, its own handler is called when the run is saved: it puts the job back into
        the queue and ends this process. SIGTERM alone says no more than that the end is
        near: what is saved waits for it, so that the scheduler's own word stands.
        """
        from mmpetl.engine.stopping import Stopped

        handlers = {number: signal.getsignal(number) for number in REQUEUE}
        try:
            return work(task)
        except Stopped as stopped:
            print(stopped, flush=True)
            handler = handlers.get(stopped.number)
            if callable(handler):
                handler(stopped.number, None)
            elif stopped.number == signal.SIGTERM:
                time.sleep(END_S)
            raise

    def checkpoint(self, task: Task) -> Any:
        """What submitit puts back into the queue: the same, for runs resume."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, task)


REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)
"""What submitit has Slurm send, by its version."""

END_S = 60.0
"""How long a job that was told to end waits for it."""


def import_submitit() -> Any:
    """submitit, without its set-up of logging, which would close every log file open.

    Raises:
        PETLError: It is not installed.
    """
    level = 'SUBMITIT_LOG_LEVEL'
    before = os.environ.get(level)
    os.environ.setdefault(level, 'NOCONFIG')
    try:
        import submitit
    except ImportError:
        raise PETLError(
            f'the executor slurm needs submitit: {pip_line("cluster")}'
        ) from None
    finally:
        if before is None:
            del os.environ[level]
    return submitit


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as arguments of :class:`SlurmExecutor`.

    Raises:
        PETLError: One is not of that form.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not (key and equals):
            raise PETLError(f'--slurm takes KEY=VALUE, got {pair!r}')
        found[key] = int(value) if re.fullmatch('[0-9]{1,18}', value) else value
    return found
