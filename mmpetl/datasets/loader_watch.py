"""Which sample a loader's worker was at when it died, or when it hangs."""

from __future__ import annotations

import re
import types
from typing import Any

import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from mmpetl.core import PETLError

PATIENCE = 600
"""Seconds that a batch may take, unless the loader's ``timeout`` says otherwise."""

_SLOT = 512
_DIED = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\) (.*)', re.DOTALL)
_LATE = re.compile(r'DataLoader timed out after ([0-9.]+) seconds')


class LoaderError(PETLError):
    """A worker of a loader was killed, or does not come to an end."""


class Board:
    """Where each worker writes down the sample that it begins.

    Args:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        # Shared memory goes to workers as it is, however they are started.
        self._slots = torch.zeros((workers, _SLOT), dtype=torch.uint8).share_memory_()

    def write(self, sample: str) -> None:
        """Note a sample; nothing happens outside of a worker."""
        worker = get_worker_info()
        if worker is None or worker.id >= len(self._slots):
            return
        text = sample.encode()[: _SLOT - 1]
        slot = self._slots[worker.id].numpy()
        slot[len(text)] = 0
        slot[: len(text)] = memoryview(text)

    def read(self, worker: int) -> str:
        """What a worker was at, ``''`` if it had not begun."""
        data = bytes(self._slots[worker].numpy())
        return data[: data.index(0)].decode(errors='replace') if 0 in data else ''


class Watch:
    """Reads the errors of one loader.

    Args:
        loader: A ``DataLoader`` with workers; its iterators are followed.
        name: What its config is called, for messages.
    """

    def __init__(self, loader: Any, name: str) -> None:
        self.name = name
        self.board = Board(loader.num_workers)
        self.worker_of: dict[int, int] = {}
        self.awaited: int | None = None
        begin = loader._get_iterator

        def begin_watched(loader: Any) -> Any:
            iterator = begin()
            workers = getattr(iterator, '_workers', ())
            self.worker_of = {w.pid: number for number, w in enumerate(workers)}
            fetch = iterator._next_data

            def fetch_watched() -> Any:
                try:
                    return fetch()
                except RuntimeError as error:
                    self.awaited = _awaited(iterator)
                    told = self.explain(error)
                    if told is None:
                        raise
                    end_workers(iterator)
                    raise told from None

            iterator._next_data = fetch_watched
            return iterator

        loader._get_iterator = types.MethodType(begin_watched, loader)

    def explain(self, error: BaseException) -> LoaderError | None:
        """What an error of torch's means here, or None where it is none of these."""
        died = _DIED.match(str(error))
        if died:
            pids = [int(pid) for pid in died[1].split(',') if pid.strip()]
            mine = [self.worker_of[pid] for pid in pids if pid in self.worker_of]
            if not mine:
                return None
            how = ' '.join(died[2].split('.')[0].split())
            hint = 'the system may be out of memory'
            if 'Bus error' in how:
                hint = 'shared memory (/dev/shm) may be full'
            return LoaderError(
                f'a loader worker {how} at {self._sample(mine[0])}; {hint}: look at '
                f'that file, or lower {self.name}.num_workers or its batch_size'
            )
        late = _LATE.match(str(error))
        if late:
            return LoaderError(
                f'a loader worker has not finished a batch in {late[1]} s; it is at '
                f'{self._sample(self.awaited)}: look at that file and at the disk, or '
                f'raise {self.name}.timeout'
            )
        return None

    def _sample(self, worker: int | None) -> str:
        where = '' if worker is None else self.board.read(worker)
        return where or 'a sample that it has not named'


def end_workers(iterator: Any) -> None:
    """End the workers of a loader at once; one that hangs would be waited for."""
    if getattr(iterator, '_worker_pids_set', False):
        # Or PyTorch takes their end for an accident, and raises somewhere later.
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in getattr(iterator, '_workers', ()):
        worker.kill()


def _awaited(iterator: Any) -> int | None:
    """The worker whose batch is next."""
    task = getattr(iterator, '_task_info', {}).get(getattr(iterator, '_rcvd_idx', None))
    return task[0] if task else None


def watched(loader: Any, name: str, patient: bool) -> Watch | None:
    """Watch a loader that has workers.

    Args:
        loader: A ``DataLoader``.
        name: What its config is called.
        patient: Whether its config sets a ``timeout`` of its own.
    """
    if not getattr(loader, 'num_workers', 0):
        return None
    if not patient and not loader.timeout:
        loader.timeout = PATIENCE
    return Watch(loader, name)
