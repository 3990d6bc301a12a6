"""Jobs on a Ray cluster: one given by address, or one of this machine alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mmpetl.engine.forks  # noqa: F401  # its hook
from mmpetl.benchmark.executors.base import Executor
from mmpetl.benchmark.executors.local import cores
from mmpetl.benchmark.task import Outcome, Task
from mmpetl.benchmark.worker import work
from mmpetl.compat.extras import pip_line
from mmpetl.core import PETLError, check_range

STORE_BYTES = 100 * 2**20
"""Object store of a cluster of our own: tasks and outcomes are small."""


QUEUE, LEAST = 4, 32
"""Calls that Ray is given at a time: so many for each that runs, and so many more."""

MOST, CALL_S = 64, 0.5
"""Tasks of one call, and seconds after which a call begins no more of its tasks."""


class JobFailed(Exception):
    """A job failed and may be begun again, which is Ray's business."""


class RayExecutor(Executor):
    """Scheduling, placement and retries are Ray's.

    Workers read and write the benchmark's folder, so all nodes need it under one path.

    A call of Ray costs a millisecond or two, which is much where jobs take as long.
    Where they come back at once, a call has several; it ends after :data:`CALL_S`, and
    hands back what it has not begun. A job that takes seconds is a call of its own.

    Args:
        workers: Jobs at a time on a cluster of our own; by default one per core.
        per_gpu: Jobs that share a GPU, where the cluster has some.
        address: Of a cluster that runs (``ray start --head``), ``auto`` for the one of
            this machine. By default ``RAY_ADDRESS``, and a cluster of our own where
            that is not set either.

    Raises:
        PETLError: Ray is not installed, or no cluster answers.
    """

    retries_itself = True

    def __init__(
        self,
        workers: int | None = None,
        per_gpu: int = 1,
        address: str | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise PETLError(
                f'the executor ray needs Ray: {pip_line("cluster")}'
            ) from None
        if workers is not None:
            check_range('executor ray', 'workers', workers, 1)
        check_range('executor ray', 'per_gpu', per_gpu, 1)
        self._ray = ray
        self._workers = workers
        self._per_gpu = per_gpu
        self._address = address or os.environ.get('RAY_ADDRESS') or None
        self._remote: Any = None
        self._several: Any = None
        self._refs: dict[Any, tuple[Task, ...]] = {}
        self._waiting: list[Task] = []
        self._size = 1
        self._own = self._alone = False
        self._slots = self._largest = workers or cores()
        self._gpus = 0

    def start(self, toolboxes: Sequence[str] = (), retries: int = 1) -> None:
        ray = self._ray
        if not ray.is_initialized():
            self._connect()
        has = ray.cluster_resources()
        self._gpus = gpus = int(has.get('GPU', 0))
        kind = 'GPU' if gpus else 'CPU'
        # The processes of a job share a node.
        nodes = [
            node['Resources'].get(kind, 0) for node in ray.nodes() if node['Alive']
        ]
        self._largest = int(max(nodes, default=1))
        self._slots = gpus * self._per_gpu or int(has.get('CPU', 1))
        place = {
            'num_cpus': 1,
            'num_gpus': 1 / self._per_gpu if gpus else 0,
            'enable_task_events': False,  # a log of tasks that nobody reads
        }
        self._remote = ray.remote(
            max_retries=retries, retry_exceptions=[JobFailed], **place
        )(remote_work)
        # What fails among several is begun again alone.
        self._several = ray.remote(max_retries=0, **place)(remote_several)
        self._size = 1

    def _connect(self) -> None:
        # Nobody asked for statistics to be sent anywhere.
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        options: dict[str, Any] = {
            'log_to_driver': False,
            'logging_level': 'ERROR',
            'include_dashboard': False,
        }
        if self._address:
            options = {'address': self._address, **options}
            del options['include_dashboard']
        else:
            options |= {'num_cpus': self._slots, 'object_store_memory': STORE_BYTES}
        try:
            self._ray.init(**options)
        except Exception as error:
            where = self._address or 'this machine'
            reason = ' '.join(str(error).split())[:300]
            raise PETLError(
                f'cannot reach or start a Ray cluster at {where}: {reason}'
            ) from error
        self._own, self._alone = True, not self._address
        end_forks_by_sigterm()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def most_processes(self) -> int:
        return self._largest

    @property
    def free(self) -> int:
        # Enough that no worker waits for us; more would be looked through each time.
        calls = QUEUE * self._slots + LEAST - len(self._refs)
        return calls * self._size - len(self._waiting)

    def room(self, task: Task) -> bool:
        return self.free > 0

    def _shared(self, task: Task) -> int | None:
        """Jobs that may be on the device of a task with it, as Ray places them.

        On a cluster that others may use, too, only a whole GPU is known to be alone.
        """
        if self._gpus and (self._per_gpu == 1 or task.processes > 1):
            return 1
        if not self._alone:
            return None
        return self._per_gpu if self._gpus else self._slots

    def submit(self, task: Task) -> None:
        task = replace(task, shared=task.shared or self._shared(task))
        if task.processes > 1:
            self._call(task)
            return
        self._waiting.append(task)
        if len(self._waiting) >= self._size:
            self._send()

    def _send(self) -> None:
        """Give Ray what waits, in calls of as many tasks as suits them."""
        while self._waiting:
            tasks = tuple(self._waiting[: self._size])
            del self._waiting[: self._size]
            if len(tasks) == 1:
                self._call(tasks[0])
            else:
                self._refs[self._several.remote(tasks)] = tasks

    def _call(self, task: Task) -> None:
        """Give Ray a task as a call of its own."""
        remote, number = self._remote, task.processes
        if number > 1:
            share = {'num_gpus': number} if self._gpus else {'num_gpus': 0}
            remote = remote.options(num_cpus=number, **share)
        self._refs[remote.remote(task)] = (task,)

    def wait(self, timeout: float) -> list[Outcome]:
        self._send()
        if not self._refs:
            return []
        refs = list(self._refs)
        ready, others = self._ray.wait(refs, num_returns=1, timeout=timeout)
        if ready and others:
            # Whatever else has ended meanwhile, without waiting for it.
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ready += more
        return [outcome for ref in ready for outcome in self._end(ref)]

    def _end(self, ref: Any) -> list[Outcome]:
        """Outcomes of a call; what it leaves to do is handed out again."""
        tasks = self._refs.pop(ref)
        if len(tasks) > 1:
            return self._end_several(ref, tasks)
        (task,) = tasks
        try:
            outcome, seconds = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, JobFailed):
                return [Outcome(task.job.id, 'failed', str(cause))]
            note = ' '.join(str(cause).split())
            return [Outcome(task.job.id, 'lost', f'its worker failed: {note[:300]}')]
        except self._ray.exceptions.RayError as error:
            note = ' '.join(str(error).split())
            return [Outcome(task.job.id, 'lost', f'its worker died: {note[:300]}')]
        self._suit(1, seconds)
        return [outcome]

    def _end_several(self, ref: Any, tasks: Sequence[Task]) -> list[Outcome]:
        try:
            outcomes, seconds = self._ray.get(ref)
        except self._ray.exceptions.RayError:
            # One of them did it. Those that are done say so at once when asked again.
            self._size = 1
            for task in tasks:
                self._call(task)
            return []
        self._suit(len(outcomes), seconds)
        self._waiting = [*tasks[len(outcomes) :], *self._waiting]
        ended = []
        for task, outcome in zip(tasks, outcomes, strict=False):
            if outcome.retry:
                self._call(task)
            else:
                ended.append(outcome)
        return ended

    def _suit(self, count: int, seconds: float) -> None:
        """Let calls have more tasks where these were quick, and fewer where not."""
        if seconds > CALL_S:
            self._size = max(1, count // 2)
        elif seconds < CALL_S / 4 and count == self._size:
            self._size = min(MOST, 2 * self._size)

    def close(self) -> None:
        for ref in self._refs:
            self._ray.cancel(ref, force=True)
        self._refs.clear()
        self._waiting.clear()
        if self._own:
            self._ray.shutdown()
            self._own = False


class _EndsForks:
    """A handler of SIGTERM that is another's in this process, and ends its forks.

    Those that it reaches: :mod:`mmpetl.engine.forks` takes it from the others.
    """

    ends_forks = True

    def __init__(self, handler: Callable[[int, Any], object]) -> None:
        self.pid = os.getpid()
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() != self.pid:
            os._exit(128 + number)
        self.handler(number, frame)


def end_forks_by_sigterm() -> None:
    """Let SIGTERM end the processes that are forked from one of Ray's.

    Ray's handler raises SystemExit, which a child that is told to end right behind its
    fork survives; the pool or loader that it belongs to then waits for it without end
    (:mod:`mmpetl.engine.forks`).
    """
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if callable(handler) and not isinstance(handler, _EndsForks):
            signal.signal(signal.SIGTERM, _EndsForks(handler))


def remote_work(task: Task) -> tuple[Outcome, float]:
    """What a worker of the cluster does, and the seconds it took."""
    end_forks_by_sigterm()
    began = time.monotonic()
    outcome = work(task)
    if outcome.retry:
        raise JobFailed(outcome.note)
    return outcome, time.monotonic() - began


def remote_several(tasks: Sequence[Task]) -> tuple[list[Outcome], float]:
    """What a worker does with several tasks: as many as go into :data:`CALL_S`."""
    end_forks_by_sigterm()
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for task in tasks:
        outcomes.append(work(task))
        if time.monotonic() - began > CALL_S:
            break
    return outcomes, time.monotonic() - began
