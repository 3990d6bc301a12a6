"""SIGTERM, SIGHUP and Ctrl-C: save, end the workers, and leave within seconds.

A signal asks; the run answers behind the step that it is at, where it can be saved as
it stands. A second signal some seconds later, or a step that does not end, stops it
without saving: its last checkpoint counts then.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmpetl.engine.forks  # noqa: F401  # its hook
from mmpetl.engine.hooks.delta_checkpoint import DeltaCheckpointHook

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP')
USERS = ('SIGUSR1', 'SIGUSR2')
GRACE = 20.0
"""Seconds that a step may take after a signal, before the run stops without saving."""
AGAIN = 2.0
"""Seconds within which a second signal is the same request."""


class Stopped(KeyboardInterrupt):
    """A run that a signal has stopped.

    Attributes:
        number: The signal.
        code: Exit code: 128 and the number of the signal, as of shells.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.code = 128 + number


class Stop:
    """What was asked for by a signal, and what is done when it comes.

    Args:
        flag: What the command of this process needs to go on.

    Attributes:
        number: The signal that came; None before.
        stepping: Whether the run trains, so that it can be saved behind a step.
    """

    def __init__(self, flag: str = '--resume') -> None:
        self.flag = flag
        self.number: int | None = None
        self.stepping = False
        self.since = 0.0
        self.pid = os.getpid()
        self.child: Any = None

    def handle(self, number: int, frame: Any) -> None:
        """The handler. Data workers inherit it, and go on until they are ended.

        That of SIGTERM they give back (:mod:`mmpetl.engine.forks`).
        """
        if os.getpid() != self.pid:
            if number == signal.SIGTERM:
                os._exit(0)
            return
        now = time.monotonic()
        # Launchers repeat what a terminal has sent to all of its processes.
        again = self.number is not None and now - self.since > AGAIN
        if self.number is None:
            self.number, self.since = number, now
        elif not again:
            return
        # Workers that the same signal ends must not end this process by an error.
        if self.child is None:
            self.child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if again or not self.stepping:
            self.leave('not saved: it was not behind a step')
        signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    handle.ends_forks = True

    def _late(self, number: int, frame: Any) -> None:
        self.leave(f'not saved: the step did not end in {GRACE:.0f} s')

    def rest(self) -> None:
        """The step has ended in time."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def leave(self, what: str) -> None:
        """Raise :class:`Stopped`.

        Args:
            what: What has been saved.
        """
        self.rest()
        self.stepping = False
        assert self.number is not None
        name = signal.Signals(self.number).name
        raise Stopped(
            self.number, f'stopped by {name}; {what}; {resume_line(self.flag)}'
        )


def resume_line(flag: str = '--resume') -> str:
    """How the run of this process goes on, as a command where it is known.

    Args:
        flag: What the command needs for it; empty where it goes on by itself.
    """
    tool, *rest = sys.argv or ['']
    if not tool.endswith('.py'):
        way = 'resume=True' if flag else 'the same call'
        return f'{way} goes on from the last checkpoint'
    return f'go on with: python {shlex.join([tool, *rest])} {flag}'.rstrip()


@contextlib.contextmanager
def stop_on_signals(flag: str = '--resume') -> Iterator[Stop]:
    """Let signals ask for a stop while a run is at work.

    What was ignored stays ignored, as SIGHUP under ``nohup``. Outside of the main
    thread signals stay as they are. The two that are for users ask, too, where somebody
    answers them: schedulers announce by them that a job's time is over.

    Args:
        flag: What the command of this process needs to go on; empty where nothing.
    """
    stop = Stop(flag)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in (*numbers, signal.SIGALRM)}
    for number in numbers:
        if before[number] not in (signal.SIG_IGN, None):
            signal.signal(number, stop.handle)
    for name in USERS:
        number = getattr(signal, name, None)
        if number is not None and callable(signal.getsignal(number)):
            before[number] = signal.getsignal(number)
            signal.signal(number, stop.handle)
    try:
        yield stop
    except Stopped:
        end_workers()
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if stop.child is not None:
            signal.signal(signal.SIGCHLD, stop.child)


def end_workers() -> None:
    """End the data workers of this process; those that hang too."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(1.0)
        if worker.is_alive():
            worker.kill()
            worker.join(1.0)


class StopHook(Hook):
    """Answers a signal behind a step of training, or a batch of validation.

    Processes agree on the step by a flag of one number, on the CPU.

    Args:
        stop: What a signal has asked for.
    """

    # What other hooks do with a step belongs into what is saved of it.
    priority = 'LOWEST'

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self._group: Any = None
        self._batches = 0

    def before_train(self, runner: Runner) -> None:
        """Be ready to save behind a step."""
        if runner.world_size > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend='gloo')
        self.stop.stepping = True

    def after_train(self, runner: Runner) -> None:
        """There is no step any more that could be saved."""
        self.stop.stepping = False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Save and leave, if it was asked for."""
        if self._asked():
            self._leave(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Processes may have one batch more than others; they ask at those of all."""
        self._batches = len(runner.val_loop.dataloader)
        if self._group is not None:
            self._batches = self._reduced(self._batches, torch.distributed.ReduceOp.MIN)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Save and leave, if it was asked for; the validation is made up for later."""
        if self.stop.stepping and batch_idx < self._batches and self._asked():
            self._leave(runner, runner.iter)

    def _asked(self) -> bool:
        number = self.stop.number or 0
        if self._group is not None:
            number = self._reduced(number, torch.distributed.ReduceOp.MAX)
        if number:
            self.stop.number = self.stop.number or number
        return bool(number)

    def _reduced(self, value: int, how: Any) -> int:
        flag = torch.tensor([value])
        torch.distributed.all_reduce(flag, op=how, group=self._group)
        return int(flag)

    def _leave(self, runner: Runner, iteration: int) -> None:
        self.stop.rest()
        self.stop.leave(save_stopped(runner, iteration))


def save_stopped(runner: Runner, iteration: int) -> str:
    """Save a run as it stands between two steps; says what was saved.

    Args:
        runner: All its processes call this.
        iteration: Steps that are done.
    """
    for hook in runner.hooks:
        if isinstance(hook, DeltaCheckpointHook):
            name = hook.save_stopped(runner, iteration)
            return f'saved as {name}'
    return 'not saved: the run has no DeltaCheckpointHook'


def train_until_stopped(runner: Runner, stop: Stop) -> None:
    """``runner.train()``, which a signal may stop.

    A signal to a whole group of processes ends the data workers too; that the next
    batch then does not come is the stop that was asked for, and no error.

    Raises:
        Stopped: A signal came.
    """
    runner.register_hook(StopHook(stop))
    try:
        runner.train()
    except RuntimeError as error:
        if stop.number is None or 'DataLoader worker' not in str(error):
            raise
        # Several processes cannot be sure to stand at the same step here.
        alone = stop.stepping and runner.world_size == 1
        stop.leave(
            save_stopped(runner, runner.iter) if alone else 'not saved: a worker ended'
        )
