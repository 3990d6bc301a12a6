"""Jobs in processes of this machine, several to a GPU where it has room."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpetl.benchmark.executors.base import PRELOAD, Executor
from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.task import Outcome, Task
from mmpetl.benchmark.worker import work
from mmpetl.core import PETLError, check_range


@dataclass
class _Running:
    task: Task
    process: Any
    answer: Any
    slot: str | None


class LocalExecutor(Executor):
    """A process per job, forked from one that has loaded the libraries.

    Args:
        workers: Processes at a time; by default one per core, or ``per_gpu`` on each
            GPU.
        per_gpu: Jobs that share a GPU.
        memory_gb: Memory that a job needs on a GPU; as many share one as fit, and
            ``per_gpu`` is the most.

    Raises:
        PETLError: A count is not positive, or a job does not fit a GPU.
    """

    def __init__(
        self,
        workers: int | None = None,
        per_gpu: int = 1,
        memory_gb: float | None = None,
    ) -> None:
        if workers is not None:
            check_range('executor local', 'workers', workers, 1)
        check_range('executor local', 'per_gpu', per_gpu, 1)
        places: list[str | None] = list(gpu_slots(per_gpu, memory_gb))
        if not places:
            places = [None] * (workers or cores())
        elif workers is not None:
            places = places[:workers]
        self._places = places
        self._free = list(reversed(places))
        self._running: dict[str, _Running] = {}
        self._context = multiprocessing.get_context('forkserver')

    def start(self, toolboxes: Sequence[str] = (), retries: int = 1) -> None:
        os.environ[PRELOAD] = ','.join(toolboxes)
        self._context.set_forkserver_preload(['mmpetl.benchmark.preload'])

    @property
    def slots(self) -> int:
        return len(self._places)

    @property
    def free(self) -> int:
        return len(self._free)

    def submit(self, task: Task) -> None:
        place = self._free.pop()
        env = dict(task.env)
        if place is not None:
            env['CUDA_VISIBLE_DEVICES'] = place
        # Those of its GPU, or all where jobs share the CPU.
        task = replace(
            task,
            env=env,
            threads=task.threads or threads(self.slots),
            shared=task.shared or self._places.count(place),
        )
        answer, other = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(task, other), daemon=False)
        process.start()
        other.close()
        self._running[task.job.id] = _Running(task, process, answer, place)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._running:
            return []
        ends = {r.process.sentinel: r for r in self._running.values()}
        ended = multiprocessing.connection.wait(list(ends), timeout)
        return [self._end(ends[sentinel]) for sentinel in ended]

    def _end(self, running: _Running) -> Outcome:
        running.process.join()
        name = running.task.job.id
        del self._running[name]
        self._free.append(running.slot)
        code = running.process.exitcode
        try:
            outcome = running.answer.recv() if running.answer.poll() else None
        except EOFError:
            outcome = None
        running.answer.close()
        running.process.close()
        return outcome or Outcome(name, 'lost', f'its worker {_died(code)}')

    def pids(self) -> dict[str, int]:
        """Processes by the id of their job."""
        return {name: r.process.pid for name, r in self._running.items()}

    def close(self) -> None:
        for running in self._running.values():
            running.process.terminate()
        deadline = time.monotonic() + 5
        for running in self._running.values():
            running.process.join(max(0.0, deadline - time.monotonic()))
            if running.process.exitcode is None:
                running.process.kill()
                running.process.join()
        self._running.clear()
        self._free = list(reversed(self._places))


def threads(slots: int) -> int:
    """Threads of one of so many jobs: its share, unless the user has said."""
    said = os.environ.get('OMP_NUM_THREADS', '')
    return int(said) if re.fullmatch('[0-9]{1,9}', said) else max(1, cores() // slots)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_slots(per_gpu: int, memory_gb: float | None) -> list[str]:
    """The visible GPUs' names for ``CUDA_VISIBLE_DEVICES``, each as often as it serves.

    Neighbours in the list are different GPUs, so that few jobs spread over many.
    """
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else [str(i) for i in range(count)]
    shares = [per_gpu] * count
    if memory_gb is not None and count:
        check_range('executor local', 'memory_gb', memory_gb, 0.001)
        for i in range(count):
            has = torch.cuda.get_device_properties(i).total_memory / 2**30
            shares[i] = min(per_gpu, int(has / memory_gb))
        if not any(shares):
            raise PETLError(
                f'a job needs {memory_gb} GB, and no GPU here has that much; lower '
                'the batch size, or use other machines'
            )
    return [
        names[i] for turn in range(per_gpu) for i in range(count) if shares[i] > turn
    ]


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f'was killed by {signal.Signals(-code).name}'
        except ValueError:
            return f'was killed by signal {-code}'
    return f'ended with exit code {code} before it answered'


def _child(task: Task, answer: Any) -> None:
    """What a worker process does."""
    # The one at the keyboard is the runner, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    folder = RecordStore(task.out).folder(task.job)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'console.log', 'ab') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    answer.send(work(task))


def _follow_parent() -> None:
    """End with the runner: a job that nobody waits for would hold up the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
