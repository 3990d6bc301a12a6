"""How a benchmark stands: a live table for the screen, lines for a log."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpetl.benchmark.collect import LOG
from mmpetl.benchmark.cost import Estimate, Total, estimates, total
from mmpetl.benchmark.designs import Place, designs_of
from mmpetl.benchmark.plan import Refusal, Resolved
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.task import Task, is_final, outcome_of
from mmpetl.core import PETLError


@dataclass(frozen=True)
class Running:
    """A job that somebody is at.

    Attributes:
        id: The job's.
        step: Steps that are done, as the log says.
        of: Steps that there are; 0 before the first.
        seconds: Since it was begun, as its log's age says.
    """

    id: str
    step: int
    of: int
    seconds: float


@dataclass(frozen=True)
class Standing:
    """How the jobs of a folder stand."""

    total: int
    done: int
    failed: Mapping[str, str]
    running: tuple[Running, ...]

    @property
    def waiting(self) -> int:
        """Neither over nor running."""
        return self.total - self.done - len(self.failed) - len(self.running)


def standing(jobs: Sequence[Job], out: str | os.PathLike, retries: int = 1) -> Standing:
    """How jobs stand, as the files of a folder tell: also of other runners' jobs."""
    store = RecordStore(out)
    done, failed, running = 0, {}, []
    records = store.of(jobs)
    for job in jobs:
        record = records.get(job.id)
        if record is not None and record.status != 'failed':
            done += 1
        elif store.held(job):
            running.append(running_of(job.id, store.folder(job)))
        elif record is not None and not outcome_of(record, retries).retry:
            failed[job.id] = outcome_of(record, retries).note
    return Standing(len(jobs), done, failed, tuple(running))


def running_of(name: str, folder: Path) -> Running:
    """Where a run is, as the end of its log tells."""
    from mmpetl.engine.hooks.run_log import read_line

    step, of, seconds = 0, 0, 0.0
    with contextlib.suppress(OSError):
        with open(folder / LOG, 'rb') as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 2000))
            lines = file.read().split(b'\n')
        for text in reversed(lines):
            line = None
            with contextlib.suppress(PETLError):  # the sweep itself names it
                line = read_line(text.decode(errors='replace'), LOG)
            if line is not None:
                seconds = max(seconds, line.get('t', 0.0))
                if 'of' in line:
                    step, of = line['step'], line['of']
                    break
                if 'attempt' in line:
                    break
    return Running(name, step, of, seconds)


SHOWN, LOOKS = 16, 64
"""Rows of running jobs, and locks that are looked at for a drawing."""


LINE_EVERY_S = 30.0
"""Seconds between two lines where the output is no terminal."""


class Progress:
    """The live table of a sweep; the plain log is the sweep's own.

    Args:
        name: Name of the plan.
        refused: How many pairs cannot be.
        known: Estimates by job id.
        every_s: Seconds between two looks at the files.
    """

    def __init__(
        self,
        name: str,
        refused: int = 0,
        known: Mapping[str, Estimate] | None = None,
        every_s: float = 1.0,
    ) -> None:
        self.name = name
        self.refused = refused
        self.known = dict(known or {})
        self.every_s = every_s
        self.started = time.monotonic()
        self.live: Any = None
        self._next = 0.0
        self._told = self.started
        self._started: set[str] = set()

    @contextlib.contextmanager
    def show(self) -> Iterator[Callable[[Sweep], None]]:
        """The table on the screen; gives what a sweep takes as ``watch``."""
        import sys

        from rich.console import Console
        from rich.live import Live

        # A job of this process sends what it prints elsewhere; the table stays here.
        console = Console(file=sys.stdout)
        with Live(console=console, refresh_per_second=2) as self.live:
            yield self
        if not console.is_terminal:
            console.print()  # a table in a file does not end its line

    def __call__(self, sweep: Sweep) -> None:
        """Draw how the sweep stands, if it is time."""
        now = time.monotonic()
        if now < self._next and sweep.dispatcher.busy:
            return
        self._next = now + self.every_s
        if self.live is not None:
            self.live.update(self.table(sweep))
            if not self.live.console.is_terminal:
                self._tell(sweep, now)

    def _tell(self, sweep: Sweep, now: float) -> None:
        """A line, where the table of a pipe or a file would come at the end only."""
        if now < self._told + LINE_EVERY_S:
            return
        self._told = now
        ends = sweep.ends.values()
        done = sum(end.status != 'failed' for end in ends)
        bad = sum(end.status == 'failed' and not end.retry for end in ends)
        left = len(sweep.jobs) - done - bad
        print(
            f'{self.name}: {done} of {len(sweep.jobs)} jobs done, {bad} failed, '
            f'time left {self.time_left(sweep, left)}',
            flush=True,
        )

    def table(self, sweep: Sweep) -> Any:
        """What the screen shows."""
        from rich.console import Group
        from rich.table import Table

        ends = sweep.ends.values()
        done = sum(end.status != 'failed' for end in ends)
        bad = [e for e in ends if e.status == 'failed' and not e.retry]
        started = self._started_of(sweep)
        running = [
            running_of(name, sweep.store.folder(task.job))
            for name, task in started[:SHOWN]
        ]
        others = len(sweep.dispatcher.elsewhere)
        head = Table(title=f'{self.name}: {len(sweep.jobs)} jobs')
        for column in ('done', 'running', 'elsewhere', 'failed', 'left', 'time left'):
            head.add_column(column, justify='right')
        left = len(sweep.jobs) - done - len(bad)
        head.add_row(
            str(done),
            str(len(started)),
            str(others),
            str(len(bad)),
            str(left),
            self.time_left(sweep, left),
        )
        parts: list[Any] = [head]
        if running:
            body = Table('running', 'step', 'seconds')
            for item in running:
                step = f'{item.step}/{item.of}' if item.of else 'begins'
                body.add_row(item.id, step, f'{item.seconds:.0f}')
            parts.append(body)
        if bad:
            body = Table('failed', 'why')
            for end in bad[-8:]:
                body.add_row(end.id, end.note[:120])
            parts.append(body)
        return Group(*parts)

    def _started_of(self, sweep: Sweep) -> list[tuple[str, Task]]:
        """Tasks that have left the executor's queue.

        Locks are looked at until they are held, and of a long queue a few at a time: on
        a file system of a network each look is a message.
        """
        running = sweep.dispatcher.running
        self._started &= running.keys()
        waiting = [name for name in running if name not in self._started]
        for name in waiting[:LOOKS]:
            if sweep.executor.started(running[name]):
                self._started.add(name)
        return [(n, t) for n, t in running.items() if n in self._started]

    def time_left(self, sweep: Sweep, left: int) -> str:
        """From what this call's jobs took, or from estimates before the first ends."""
        if not left:
            return '-'
        if sweep.ran:
            spent = time.monotonic() - self.started
            return duration(left * spent / len(sweep.ran))
        slots = max(1, sweep.executor.slots)
        waiting = [j for j in sweep.jobs if j.id not in sweep.ends]
        guess = total(waiting, self.known)
        if guess.unknown == len(waiting):
            return 'unknown'
        return duration(guess.seconds / slots)


def console_for_tables() -> Any:
    """A console as wide as the terminal, and wide enough for a table in a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05``, ``310 days``."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    if seconds < 90 * 60:
        return f'{seconds / 60:.0f} min'
    if seconds < 48 * 3600:
        return f'{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d}'
    return f'{seconds / 86400:.1f} days'


def size(count: int | None) -> str:
    """Bytes in MB or GB."""
    if count is None:
        return '-'
    return f'{count / 2**20:.0f} MB' if count < 2**30 else f'{count / 2**30:.1f} GB'


def print_plan(
    resolved: Resolved, out: str | os.PathLike, slots: int, retries: int = 1
) -> None:
    """Print a plan's jobs by pair, with state and cost, and what cannot be."""
    from rich.table import Table

    console = console_for_tables()
    store = RecordStore(out)
    known = estimates(resolved.jobs, out)
    pairs: dict[tuple[str, str], list[Job]] = {}
    for job in resolved.jobs:
        pairs.setdefault((job.recipe, job.method), []).append(job)
    table = Table(title=f'{resolved.plan.name}: {len(resolved.jobs)} jobs')
    for column in ('recipe', 'method'):
        table.add_column(column, no_wrap=True)
    for column in ('jobs', 'done', 'failed', 'left', 'steps', 'seconds', 'memory'):
        table.add_column(column, justify='right')
    table.add_column('known from')
    left: list[Job] = []
    stored = store.of(resolved.jobs)
    for (recipe, method), jobs in pairs.items():
        records = [stored.get(job.id) for job in jobs]
        over = [r for r in records if r is not None and is_final(r, retries)]
        bad = sum(r.status == 'failed' for r in over)
        left += [
            j
            for j, r in zip(jobs, records, strict=True)
            if r is None or not is_final(r, retries)
        ]
        cost = known.get(jobs[0].id)
        table.add_row(
            recipe,
            method,
            str(len(jobs)),
            str(len(over) - bad),
            str(bad),
            str(len(jobs) - len(over)),
            f'{cost.steps:,}' if cost else '-',
            f'{cost.seconds:,.1f}' if cost else '-',
            size(cost.memory_bytes) if cost else '-',
            f'{cost.source} {cost.like}'.rstrip() if cost else '-',
        )
    console.print(table)
    for recipe, text in resolved.batches.items():
        if ' x ' in text:
            console.print(f'batch of {recipe}: {text}', highlight=False)
    print_refused(resolved.refused, console)
    print_total(total(left, known), len(left), slots, console)
    print_designs(resolved.jobs, console, resolved.places)


def print_designs(
    jobs: Sequence[Job], console: Any, places: Mapping[str, Place] | None = None
) -> None:
    """What differences the planned tasks and seeds can show at all."""
    for design in designs_of(jobs, places=places):
        for line in design.sentences():
            console.print(line, highlight=False, soft_wrap=True)


def print_refused(refused: Sequence[Refusal], console: Any) -> None:
    """Pairs that cannot be, one line per reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for item in refused:
        by_reason.setdefault((item.method, item.reason), []).append(item.recipe)
    for (method, reason), recipes in by_reason.items():
        where = ', '.join(recipes[:4]) + (' ...' if len(recipes) > 4 else '')
        console.print(
            f'not possible: {method} on {where}: {reason[:150]}', highlight=False
        )


def print_total(cost: Total, left: int, slots: int, console: Any) -> None:
    """The last lines of a dry run."""
    if not left:
        console.print('nothing is left to run', highlight=False)
        return
    text = (
        f'{left} jobs are left: {duration(cost.seconds)} one after another, about '
        f'{duration(cost.seconds / max(1, slots))} on {slots} at a time; at most '
        f'{size(cost.memory_bytes)} each'
    )
    if cost.unknown:
        text += f'; {cost.unknown} jobs of unknown cost are not in the sum'
    console.print(text, highlight=False)


def print_standing(found: Standing) -> None:
    """The table of ``mmpetl benchmark status``."""
    from rich.table import Table

    console = console_for_tables()
    head = Table()
    for column in ('jobs', 'done', 'running', 'failed', 'left'):
        head.add_column(column, justify='right')
    left = found.waiting + len(found.running)
    numbers = (found.total, found.done, len(found.running), len(found.failed), left)
    head.add_row(*map(str, numbers))
    console.print(head)
    for item in found.running:
        step = f'step {item.step} of {item.of}' if item.of else 'begins'
        line = f'running: {item.id}, {step}, {item.seconds:.0f} s'
        console.print(line, highlight=False)
    for name, note in found.failed.items():
        console.print(f'failed: {name}: {note}', highlight=False, soft_wrap=True)
