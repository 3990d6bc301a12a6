"""What every executor offers."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from mmpetl.benchmark.records import RecordStore
from mmpetl.benchmark.task import Outcome, Task

PRELOAD = 'MMPETL_PRELOAD'
"""Variable that names the toolboxes to load before workers are forked."""


class Executor(abc.ABC):
    """Runs tasks somewhere.

    Attributes:
        retries_itself: Whether it begins failed and lost tasks again by its own means;
            the sweep then does not.
        packs: Whether it places tasks by the memory that they say they need.
    """

    retries_itself: bool = False
    packs: bool = False

    def start(  # noqa: B027
        self, toolboxes: Sequence[str] = (), retries: int = 1
    ) -> None:
        """Get ready, where there is something to do.

        Args:
            toolboxes: Packages that the tasks will use, ``mmpretrain`` for one.
            retries: How often a task is begun again.
        """

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """How many tasks of one process run at a time, as far as is known."""

    @property
    def most_processes(self) -> int:
        """How many processes one task may have, as far as is known."""
        return self.slots

    @property
    @abc.abstractmethod
    def free(self) -> int:
        """How many tasks of one process it takes now."""

    def room(self, task: Task) -> bool:
        """Whether it takes a task now."""
        return self.free >= task.processes

    @abc.abstractmethod
    def submit(self, task: Task) -> None:
        """Take a task, for which there is room."""

    @abc.abstractmethod
    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that have come in, after at most ``timeout`` seconds or the next.

        A task whose worker has died comes back as ``lost``.
        """

    def started(self, task: Task) -> bool:
        """Whether a submitted task has left the queue, as far as is known."""
        return RecordStore(task.out).held(task.job)

    def close(self) -> None:  # noqa: B027
        """Stop what still runs, which later runs continue, and clean up."""
