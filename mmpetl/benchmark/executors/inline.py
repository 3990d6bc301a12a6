"""Jobs one after another in this process."""

from __future__ import annotations

from dataclasses import replace

from mmpetl.benchmark.executors.base import Executor
from mmpetl.benchmark.task import Outcome, Task
from mmpetl.benchmark.worker import work
from mmpetl.config.batch import MOST_PROCESSES


class InlineExecutor(Executor):
    """One job at a time, here: to debug, and where processes cannot be had.

    A job of several processes begins them beside this one. Peak memory on a CPU then
    includes what earlier jobs have left behind.
    """

    def __init__(self) -> None:
        self._task: Task | None = None

    @property
    def slots(self) -> int:
        return 1

    @property
    def free(self) -> int:
        return int(self._task is None)

    @property
    def most_processes(self) -> int:
        return MOST_PROCESSES

    def room(self, task: Task) -> bool:
        return self._task is None

    def submit(self, task: Task) -> None:
        self._task = task

    def wait(self, timeout: float) -> list[Outcome]:
        if self._task is None:
            return []
        task, self._task = self._task, None
        return [work(replace(task, shared=task.shared or 1))]
