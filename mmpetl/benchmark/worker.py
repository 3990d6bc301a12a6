"""How a task is done, whatever it runs: held by one process, and it leaves a record."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import LOG, attempt_seconds, with_times
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.task import Outcome, Task, is_final, outcome_of
from mmpetl.core import PETLError


def work(task: Task) -> Outcome:
    """Do a task, unless it is done or another process is at it; leaves a record.

    An exception of the run becomes a record of a failure. What ends the process itself
    leaves no record, and the next call continues.
    """
    began = time.perf_counter()
    store, job = RecordStore(task.out), task.job
    os.environ.update(task.env)
    with store.claim(job) as mine:
        if not mine:
            return Outcome(job.id, 'elsewhere')
        before = store.read(job)
        if before is not None and is_final(before, task.retries):
            return outcome_of(before, task.retries)
        folder = store.folder(job)
        with console_of(folder):
            if task.threads:
                import torch

                torch.set_num_threads(task.threads)
            try:
                record = _resolve(task.run)(task, folder)
            except Exception as error:
                traceback.print_exc()
                record = failed(task, folder, error)
        record.shared = task.shared
        spent = _earlier_seconds(folder) + time.perf_counter() - began
        record.total_seconds = round(spent, 3)
        record.attempts = 1 + (before.attempts if before is not None else 0)
        store.write(record)
        if record.status != 'failed':
            tidy(folder)
        return outcome_of(record, task.retries, before)


def _earlier_seconds(folder: Path) -> float:
    """Seconds of the attempts before this one, as far as their log goes."""
    if not (folder / LOG).is_file():
        return 0.0
    from mmpetl.engine.hooks.run_log import read_run_log

    return sum(attempt_seconds(list(read_run_log(folder / LOG)))[:-1])


def _resolve(name: str) -> Callable[[Task, Path], Record]:
    module, _, function = name.partition(':')
    return getattr(importlib.import_module(module), function)


class LateFile(io.TextIOBase):
    """Text that goes to the end of a file, which is made with its first word."""

    encoding = 'utf-8'

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def _opened(self) -> TextIO:
        if self.closed:
            raise ValueError(f'{self._path} is closed')
        if self._file is None:
            self._file = open(  # noqa: SIM115
                self._path, 'a', encoding='utf-8', errors='replace'
            )
        return self._file

    @property
    def buffer(self) -> BinaryIO:
        return self._opened().buffer

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self._opened().write(text) if text else 0

    def fileno(self) -> int:
        return self._opened().fileno()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


@contextlib.contextmanager
def console_of(folder: Path) -> Iterator[None]:
    """Send what a run prints to ``console.log``: the screen belongs to the table."""
    with (
        LateFile(folder / 'console.log') as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def failed(task: Task, folder: Path, error: BaseException) -> Record:
    """The record of a failure, with the time so far."""
    from mmpetl.engine.hooks.run_log import append_line, read_run_log

    text = ''.join(traceback.format_exception(error)).strip()
    append_line(folder / LOG, {'failed': f'{type(error).__name__}: {error}'})
    return with_times(
        Record(
            job=task.job,
            status='failed',
            error=text,
            search=dict(task.search) if task.search else None,
            device=run_facts.device(),
            versions=run_facts.versions(task.job.method),
            commit=run_facts.commit(),
        ),
        list(read_run_log(folder / LOG)),
    )


def lost(task: Task, note: str) -> Outcome:
    """Record that workers died at a task too often."""
    store = RecordStore(task.out)
    with store.claim(task.job) as mine:
        if not mine:
            return Outcome(task.job.id, 'elsewhere')
        record = store.read(task.job)
        if record is None or record.status == 'failed':
            record = failed(task, store.folder(task.job), PETLError(note))
            record.attempts = task.retries + 1
            store.write(record)
        return outcome_of(record, task.retries)


def tidy(folder: Path) -> None:
    """Remove what only a resumed run would need; the delta stays."""
    from mmpetl.engine import best, latest

    for path in folder.rglob('*.pth'):
        path.unlink(missing_ok=True)
    for name in (latest.POINTER, best.NAME):
        (folder / name).unlink(missing_ok=True)
