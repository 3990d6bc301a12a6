"""Whether an error came before the first step of a run, or behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner


class FirstStep(Hook):
    """Knows whether a step is done, of training, validation or test."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.done = False

    def _after_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.done = True


@contextmanager
def behind_steps_marked(runner: Runner) -> Iterator[None]:
    """Mark what a run raises once a step is done, for :func:`is_behind_a_step`."""
    first = FirstStep()
    runner.register_hook(first)
    try:
        yield
    except Exception as error:
        error._mmpetl_behind_a_step = first.done
        raise


def is_behind_a_step(error: BaseException) -> bool:
    """Whether a run had done a step when this was raised."""
    return getattr(error, '_mmpetl_behind_a_step', False)
