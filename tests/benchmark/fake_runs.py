"""Stand-ins for a training run, for tests of what goes on around it."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from pathlib import Path

from mmpetl.benchmark.records import Job, Record, earlier_reads
from mmpetl.benchmark.task import Task
from mmpetl.core import PETLError


def _begin(task: Task) -> int:
    """Note the attempt in a file that only grows; returns its number."""
    path = Path(task.out) / f'{task.job.id}.attempts'
    with open(path, 'a', encoding='ascii') as file:
        file.write(f'{os.getpid()}\n')
    return len(path.read_text(encoding='ascii').split())


def attempts(out: Path, job: Job) -> list[int]:
    """Processes that have worked at a job."""
    path = out / f'{job.id}.attempts'
    return [int(pid) for pid in path.read_text().split()] if path.is_file() else []


def _record(task: Task, score: float = 50.0) -> Record:
    return Record(
        task.job,
        'done',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        search=dict(task.search) if task.search else None,
        test_reads=int(task.job.stage == 'final')
        + earlier_reads(task.search, task.job.seed),
    )


def quick(task: Task, folder: Path) -> Record:
    _begin(task)
    time.sleep(0.02)
    return _record(task)


def loaded(task: Task, folder: Path) -> Record:
    """Its score is how many objects a collection of garbage leaves alone."""
    return _record(task, gc.get_freeze_count())


def failing(task: Task, folder: Path) -> Record:
    """Fails as often as the seed says, each time with other words."""
    attempt = _begin(task)
    if attempt <= task.job.seed:
        raise RuntimeError(f'as the test wants it, attempt {attempt}')
    return _record(task)


def wordy(task: Task, folder: Path) -> Record:
    """Fails with more words than a pipe holds."""
    raise RuntimeError('many words ' * 20_000)


def certain(task: Task, folder: Path) -> Record:
    """Fails in the same way every time."""
    _begin(task)
    raise RuntimeError('as ever')


def misconfigured(task: Task, folder: Path) -> Record:
    """Fails for what a plan says."""
    _begin(task)
    raise PETLError('there is no such data set')


def hanging_once(task: Task, folder: Path) -> Record:
    """Waits to be killed the first time; the second time it is quick."""
    if _begin(task) == 1:
        time.sleep(60)
    return _record(task)


def dying(task: Task, folder: Path) -> Record:
    """Takes its worker along, every time."""
    _begin(task)
    os.kill(os.getpid(), 9)
    raise AssertionError


def bowl(task: Task, folder: Path) -> Record:
    """A score that is best at a learning rate of 1e-2."""
    _begin(task)
    rate = task.job.options.get('optim_wrapper.optimizer.lr', 1e-4)
    return _record(task, 80 - 10 * abs(math.log10(rate) + 2))


def forking(task: Task, folder: Path) -> Record:
    """Forks a child that is told to end at once; its score is how it ended."""
    return _record(task, told_to_end_at_once())


_told = False


def _tell() -> None:
    if _told:
        os.kill(os.getpid(), signal.SIGTERM)


os.register_at_fork(after_in_child=_tell)


def told_to_end_at_once() -> float:
    """How a child ends that gets SIGTERM in the hooks behind its fork; -1: it lives."""
    global _told
    _told = True
    try:
        pid = os.fork()
    finally:
        _told = False
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return float(os.waitstatus_to_exitcode(status))
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1.0


def handler_in_a_fork() -> int:
    """What a child has for SIGTERM; 9 for a handler in Python."""
    pid = os.fork()
    if pid == 0:
        found = signal.getsignal(signal.SIGTERM)
        os._exit(int(found) if isinstance(found, signal.Handlers) else 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
