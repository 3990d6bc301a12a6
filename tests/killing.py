"""Ending a run as a kill does, for tests of what is left and of resuming."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable

import torch
from mmengine.hooks import Hook


class Killed(BaseException):
    """Stands for a process that ends without a word."""


class KillAt(Hook):
    """Ends the run right after an iteration.

    Args:
        iteration: Which, counted from 1.
        how: A signal that the process gets; None raises :class:`Killed`.
    """

    priority = 'LOWEST'

    def __init__(self, iteration: int, how: int | None = None) -> None:
        self.iteration = iteration
        self.how = how

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            if self.how is None:
                raise Killed
            os.kill(os.getpid(), self.how)


def in_a_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own and give how it ended.

    Raises:
        TimeoutError: It did not end; says where it was.
    """
    read, write = os.pipe()

    def child() -> None:
        # A fork has none of OpenMP's threads, and would wait for them without end.
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(110, file=write)
        work()

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    os.close(write)
    process.join(120)
    try:
        if process.exitcode is None:
            # Left alone it would hold up the end of this process.
            process.kill()
            process.join()
            os.set_blocking(read, False)  # workers of the child may have the other end
            stood = os.read(read, 2**16).decode()
            raise TimeoutError(
                f'the child did not end within 120 s; it was at\n{stood}'
            )
    finally:
        os.close(read)
    return process.exitcode
