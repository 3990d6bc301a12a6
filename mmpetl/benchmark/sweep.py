"""Run what is left of a plan, whatever happens on the way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mmpetl.benchmark.executors import Executor
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.task import Outcome, Task, is_final, outcome_of
from mmpetl.benchmark.worker import lost
from mmpetl.core import PETLError
from mmpetl.core.plugins import VARIABLE, absolute_names

ENVIRONMENT = ('MMPETL_DATA', 'MMPETL_WEIGHTS')
"""Variables that a job's result depends on, as folders."""

STOP_AFTER = 20
"""Jobs that may fail with the same words before a sweep stops."""


class Dispatcher:
    """Tasks in, final outcomes out: retries, and jobs that others hold, in between.

    Args:
        executor: Where tasks run.
        retries: How often a task that failed or was lost is begun again.
        poll_s: Seconds between looks at a job that another runner holds.
        report: Called with a line for the log.
    """

    def __init__(
        self,
        executor: Executor,
        retries: int = 1,
        poll_s: float = 2.0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.executor = executor
        self.retries = retries
        self.poll_s = poll_s
        self.report = report or (lambda line: None)
        self.queue: deque[Task] = deque()
        self.running: dict[str, Task] = {}
        self.elsewhere: dict[str, tuple[float, Task]] = {}
        self._losses: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        """Whether outcomes are still to come."""
        return bool(self.queue or self.running or self.elsewhere)

    def put(self, task: Task) -> None:
        """Take a task.

        Raises:
            PETLError: It has more processes than the executor can place.
        """
        check_size([task.job], self.executor)
        self.queue.append(task)

    def step(self, timeout: float = 0.5) -> list[tuple[Task, Outcome]]:
        """Hand out what there is room for, and wait a moment for what ends.

        Returns:
            Tasks that are over, with ``done``, ``failed`` or ``pruned``.
        """
        over = list(self._others())
        while self.queue and self.executor.room(self.queue[0]):
            task = self.queue.popleft()
            if task.job.id in self.running:
                # Two tasks of one job: the second waits for what the first leaves.
                self.elsewhere[task.job.id] = (time.monotonic() + self.poll_s, task)
                continue
            self.running[task.job.id] = task
            self.report(f'begins   {task.job.id}')
            self.executor.submit(task)
        if not self.running:
            if not over and self.elsewhere:
                time.sleep(min(timeout, self.poll_s))
            return over
        for outcome in self.executor.wait(timeout):
            task = self.running.pop(outcome.id)
            over += self._end(task, outcome)
        return over

    def _others(self) -> Iterator[tuple[Task, Outcome]]:
        """Look after the jobs that other runners hold."""
        now = time.monotonic()
        for name, (due, task) in list(self.elsewhere.items()):
            if due > now:
                continue
            store = RecordStore(task.out)
            record = store.read(task.job)
            if record is not None and is_final(record, self.retries):
                del self.elsewhere[name]
                yield task, outcome_of(record, self.retries)
                continue
            with store.claim(task.job) as free:
                pass
            if free and name not in self.running:
                del self.elsewhere[name]
                self.queue.append(task)
            else:
                self.elsewhere[name] = (now + self.poll_s, task)

    def _end(self, task: Task, outcome: Outcome) -> Iterator[tuple[Task, Outcome]]:
        name = outcome.id
        if outcome.status == 'elsewhere':
            self.report(f'held     {name} by another process')
            self.elsewhere[name] = (time.monotonic() + self.poll_s, task)
        elif outcome.status == 'lost':
            self._losses[name] += 1
            self.report(f'lost     {name}: {outcome.note}')
            if self.executor.retries_itself or self._losses[name] > self.retries:
                note = f'{outcome.note}, {self._losses[name]} times'
                yield task, lost(task, note)
            else:
                self.queue.append(task)
        elif outcome.retry and not self.executor.retries_itself:
            self.report(f'failed   {name}, again: {outcome.note}')
            self.queue.append(task)
        else:
            self.report(f'{outcome.status:<8} {name} {outcome.note}'.rstrip())
            yield task, outcome


@dataclass
class Summary:
    """What a sweep came to.

    Attributes:
        done: Jobs with a record of success, those of earlier calls included.
        ran: Jobs that ended in this call.
        failed: Ids of jobs that failed as often as they may, with the failure.
        left: Jobs that this call has not brought to an end.
        seconds: Wall time of this call.
        stopped: Why no more jobs were begun, where that was so.
    """

    done: int = 0
    ran: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    seconds: float = 0.0
    stopped: str = ''


class Sweep:
    """The jobs of a plan, run to their end.

    Args:
        jobs: What is planned.
        out: The benchmark's folder.
        executor: Where jobs run.
        retries: How often a job that failed is begun again, over all calls.
        toolboxes: Packages that the jobs use, for executors that load them once.
        run: What does the work of a task; see :class:`mmpetl.benchmark.task.Task`.
        poll_s: Seconds between looks at a job that another runner holds.
        watch: Called with the sweep now and then, to show how it stands.
        stop_after: After how many jobs that failed with the same words no more are
            begun; 0 never stops.
        memory: Peak memory by a job's id, in bytes, for executors that pack; what is
            measured on the way is added.
        like: By a job's id those whose records say what it would find out; see
            :class:`mmpetl.benchmark.task.Task`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        out: str | os.PathLike,
        executor: Executor,
        retries: int = 1,
        toolboxes: Sequence[str] = (),
        run: str = Task.run,
        poll_s: float = 2.0,
        watch: Callable[[Sweep], None] | None = None,
        stop_after: int = STOP_AFTER,
        memory: Mapping[str, int] | None = None,
        like: Mapping[str, tuple[Job, ...]] | None = None,
    ) -> None:
        self.jobs = list(jobs)
        self.store = RecordStore(Path(out).absolute())
        self.executor = executor
        self.retries = retries
        self.toolboxes = tuple(toolboxes)
        self.run_name = run
        self.watch = watch or (lambda sweep: None)
        self.ends: dict[str, Outcome] = {}
        self.ran: list[str] = []
        self.stop_after = stop_after
        self.stopped = ''
        self.like = like or {}
        known = memory or {}
        self.memory = {pair_of(j): known[j.id] for j in self.jobs if j.id in known}
        self._words: Counter[str] = Counter()
        self._log: Any = None
        self.dispatcher = Dispatcher(executor, retries, poll_s, self.log)

    def task(self, job: Job) -> Task:
        """What a worker is told of a job."""
        return Task(
            job,
            str(self.store.out),
            self.retries,
            env=environment(),
            run=self.run_name,
            memory_bytes=self.memory.get(pair_of(job)) if self.memory else None,
            like=self.like.get(job.id, ()),
        )

    def log(self, line: str) -> None:
        """Append a line to ``sweep.log``, which is the table for who reads a file."""
        if self._log is None:
            path = self.store.out / 'sweep.log'
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = open(path, 'a', encoding='utf-8', buffering=1)  # noqa: SIM115
        now = datetime.now().isoformat(sep=' ', timespec='seconds')
        self._log.write(f'{now} [{os.getpid()}] {line}\n')

    def left(self) -> list[Job]:
        """Jobs without a final record; reads the records of the others."""
        missing, found = [], self.store.of(self.jobs)
        for job in self.jobs:
            record = found.get(job.id)
            if record is not None:
                self.ends[job.id] = outcome_of(record, self.retries)
            if record is None or not is_final(record, self.retries):
                missing.append(job)
        return missing

    def run(self) -> Summary:
        """Run what is left.

        An interrupt ends the workers and is passed on; the next call continues.
        """
        began = time.perf_counter()
        left = self.left()
        if left:
            self.log(f'sweep    {len(self.jobs)} jobs, {len(left)} left')
            self.executor.start(self.toolboxes, self.retries)
            for job in left:
                self.dispatcher.put(self.task(job))
            try:
                self._loop()
            except BaseException as error:
                self.log(f'stopped  {type(error).__name__}')
                raise
            finally:
                self.executor.close()
            self.log(f'finished {len(self.ran)} jobs ended')
            self._log.close()
            self._log = None
        self.watch(self)
        return self.summary(time.perf_counter() - began)

    def _loop(self) -> None:
        with interrupts() as interrupted:
            self._dispatch(interrupted)

    def _dispatch(self, interrupted: threading.Event) -> None:
        self.watch(self)
        while self.dispatcher.busy:
            if interrupted.is_set():
                raise KeyboardInterrupt
            for task, outcome in self.dispatcher.step():
                self.ends[task.job.id] = outcome
                self.ran.append(task.job.id)
                self._learn(task, outcome)
            self.watch(self)

    def _learn(self, task: Task, outcome: Outcome) -> None:
        """What the end of a job says of those that wait."""
        if outcome.status == 'failed':
            words = re.sub(r'\d+', '#', outcome.note.replace(task.job.id, ''))
            self._words[words] += 1
            if self._words[words] == self.stop_after and self.dispatcher.queue:
                self.stopped = (
                    f'{self.stop_after} jobs failed with the same words, so '
                    f'{len(self.dispatcher.queue)} others were not begun'
                )
                self.log(f'stops    {self.stopped}: {outcome.note}')
                self.dispatcher.queue.clear()
        elif self.executor.packs and pair_of(task.job) not in self.memory:
            record = self.store.read(task.job)
            if record is not None and record.peak_memory_bytes is not None:
                self.memory[pair_of(task.job)] = record.peak_memory_bytes
                waiting = self.dispatcher.queue
                self.dispatcher.queue = deque(map(self._measured, waiting))

    def _measured(self, task: Task) -> Task:
        need = self.memory.get(pair_of(task.job))
        return task if need is None else replace(task, memory_bytes=need)

    def summary(self, seconds: float = 0.0) -> Summary:
        """How the sweep stands."""
        ends = [self.ends.get(job.id) for job in self.jobs]
        bad = {e.id: e.note for e in ends if e is not None and e.status == 'failed'}
        done = sum(e is not None and e.status != 'failed' for e in ends)
        left = sum(e is None or e.retry for e in ends)
        return Summary(done, len(self.ran), bad, left, seconds, self.stopped)


def check_size(jobs: Iterable[Job], executor: Executor) -> None:
    """Raise PETLError where a job has more processes than an executor can place."""
    for job in jobs:
        number = job.options.get('processes', 1)
        if number > executor.most_processes:
            raise PETLError(
                f'{job.id} trains in {number} processes, and the executor has room for '
                f'{executor.most_processes}; ask for fewer, and passes are accumulated '
                'to the same batch'
            )


def pair_of(job: Job) -> str:
    """What all seeds of a job have in common, as an id."""
    return replace(job, seed=0).id


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C, which still raises KeyboardInterrupt.

    Python drops an exception that a signal raises within a finaliser or a callback; the
    event stays. Outside the main thread, where signals do not arrive, it is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        event.set()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def environment() -> Mapping[str, str]:
    """Folders of data and weights, absolute: workers may start elsewhere.

    And what names methods from outside of the package, which workers need as well.
    """
    found = {
        name: str(Path(os.environ[name]).absolute())
        for name in ENVIRONMENT
        if os.environ.get(name)
    }
    if named := os.environ.get(VARIABLE):
        found[VARIABLE] = absolute_names(named)
    return found


def toolboxes_of(configs: Iterable[Any]) -> tuple[str, ...]:
    """The packages that configs of recipes need."""
    scopes = {config.get('default_scope', 'mmpretrain') for config in configs}
    return tuple(sorted(scopes))
