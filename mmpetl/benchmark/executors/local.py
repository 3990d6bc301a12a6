"""Jobs in processes of this machine, several to a GPU where it has room."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpetl.benchmark.executors.base import PRELOAD, Executor
from mmpetl.benchmark.executors.devices import Device, choose, need_of
from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.task import Outcome, Task
from mmpetl.benchmark.worker import work
from mmpetl.core import PETLError, check_range

STOP_S = 10.0
"""How long workers may take to save when they are told to stop."""


@dataclass
class _Worker:
    """A process, what it is at, and where."""

    process: Any
    pipe: Any
    devices: list[Device]
    task: Task | None = None
    need: int | None = None
    done: int = 0

    @property
    def places(self) -> str | None:
        """Names of its devices for ``CUDA_VISIBLE_DEVICES``."""
        names = [device.name for device in self.devices]
        return None if None in names else ','.join(str(name) for name in names)


class LocalExecutor(Executor):
    """A process per job, forked from one that has loaded the libraries.

    A job of several processes takes as many places, on GPUs each on another one.

    Args:
        workers: Processes at a time; by default one per core, or ``per_gpu`` on each
            GPU.
        per_gpu: Jobs that share a GPU, at most; 1 by default, 16 with ``pack``.
        memory_gb: Memory that a job needs on a GPU; as many share one as fit, and
            ``per_gpu`` is the most.
        pack: Whether jobs share a GPU by what their kind was measured to need: by
            records of other seeds, or by a calibration. A job of which nothing is
            known has a GPU for itself.
        reuse: How many jobs of one process a worker does before it ends. One of its
            own for each job costs some milliseconds and keeps jobs apart.

    Raises:
        PETLError: A count is not positive, or a job does not fit a GPU.
    """

    def __init__(
        self,
        workers: int | None = None,
        per_gpu: int | None = None,
        memory_gb: float | None = None,
        pack: bool = False,
        reuse: int = 1,
    ) -> None:
        if workers is not None:
            check_range('executor local', 'workers', workers, 1)
        per_gpu = per_gpu if per_gpu is not None else (16 if pack else 1)
        check_range('executor local', 'per_gpu', per_gpu, 1)
        check_range('executor local', 'reuse', reuse, 1)
        places: list[str | None] = list(gpu_slots(per_gpu, memory_gb))
        if not places:
            places = [None] * (workers or cores())
        elif workers is not None:
            places = places[:workers]
        self._places = places
        self._pack = pack
        self._reuse = reuse
        self._devices = self._made()
        self._running: dict[str, _Worker] = {}
        self._idle: list[_Worker] = []
        self._context = multiprocessing.get_context('forkserver')

    def _made(self) -> list[Device]:
        shares = gpu_bytes() if self._pack and self._places[0] is not None else {}
        counts = Counter(self._places)
        return [Device(name, most, shares.get(name)) for name, most in counts.items()]

    def start(self, toolboxes: Sequence[str] = (), retries: int = 1) -> None:
        os.environ[PRELOAD] = ','.join(toolboxes)
        self._context.set_forkserver_preload(['mmpetl.benchmark.preload'])

    @property
    def packs(self) -> bool:
        return self._pack

    @property
    def slots(self) -> int:
        return len(self._places)

    @property
    def most_processes(self) -> int:
        on_cores = self._devices[0].name is None
        return self.slots if on_cores else len(self._devices)

    @property
    def free(self) -> int:
        return sum(device.free for device in self._devices)

    def room(self, task: Task) -> bool:
        return self._choice(task) is not None

    def _choice(self, task: Task) -> list[Device] | None:
        return choose(self._devices, need_of(task.memory_bytes), task.processes)

    def submit(self, task: Task) -> None:
        devices = self._choice(task)
        assert devices is not None
        worker = self._worker(devices)
        env = dict(task.env)
        if worker.places is not None:
            env['CUDA_VISIBLE_DEVICES'] = worker.places
        # Those that may be on its devices with it, or all where jobs share the CPU.
        most = max(device.most for device in devices)
        task = replace(
            task,
            env=env,
            threads=task.threads or threads(self.slots),
            shared=task.shared or most,
        )
        worker.task, worker.need = task, need_of(task.memory_bytes)
        for device in devices:
            device.add(worker.need)
        self._running[task.job.id] = worker
        # One that has died meanwhile is found by its end.
        with contextlib.suppress(OSError):
            worker.pipe.send(task)

    def _worker(self, devices: list[Device]) -> _Worker:
        """A worker that waits on these devices, or a new one."""
        for worker in self._idle:
            if worker.devices == devices:
                self._idle.remove(worker)
                return worker
        pipe, other = self._context.Pipe()
        reuse = self._reuse if len(devices) == 1 else 1
        process = self._context.Process(
            target=_child, args=(other, reuse), daemon=False
        )
        process.start()
        other.close()
        return _Worker(process, pipe, devices)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._running:
            return []
        signs: dict[Any, _Worker] = {}
        for worker in self._running.values():
            signs[worker.process.sentinel] = worker
            # A worker cannot end before a long answer is taken from it.
            signs[worker.pipe] = worker
        ended = multiprocessing.connection.wait(list(signs), timeout)
        workers = {id(signs[sign]): signs[sign] for sign in ended}
        return [self._end(worker) for worker in workers.values()]

    def _end(self, worker: _Worker) -> Outcome:
        """Take the answer of a worker; it waits for another task, or has ended."""
        task = worker.task
        assert task is not None
        name = task.job.id
        try:
            outcome = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            outcome = None
        del self._running[name]
        for device in worker.devices:
            device.remove(worker.need)
        worker.done += 1
        if outcome is not None and worker.done < self._reuse:
            if len(worker.devices) == 1:
                worker.task = None
                self._idle.append(worker)
                return outcome
        worker.process.join()
        code = worker.process.exitcode
        worker.pipe.close()
        worker.process.close()
        return outcome or Outcome(name, 'lost', f'its worker {_died(code)}')

    def pids(self) -> dict[str, int]:
        """Processes by the id of their job."""
        return {name: w.process.pid for name, w in self._running.items()}

    def close(self) -> None:
        workers = [*self._running.values(), *self._idle]
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_S
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._running.clear()
        self._idle.clear()
        self._devices = self._made()


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


def gpu_bytes() -> dict[str | None, int]:
    """Memory of the visible GPUs, by their names for ``CUDA_VISIBLE_DEVICES``."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else [str(i) for i in range(count)]
    return {
        names[i]: torch.cuda.get_device_properties(i).total_memory for i in range(count)
    }


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f'was killed by {signal.Signals(-code).name}'
        except ValueError:
            return f'was killed by signal {-code}'
    return f'ended with exit code {code} before it answered'


def _child(pipe: Any, count: int) -> None:
    """What a worker process does: so many tasks, one after another."""
    # The one at the keyboard is the runner, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    for _ in range(count):
        try:
            task = pipe.recv()
        except EOFError:
            return
        folder = RecordStore(task.out).folder(task.job)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / 'console.log', 'ab') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        pipe.send(work(task))


def _follow_parent() -> None:
    """End with the runner: a job that nobody waits for would hold up the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
