"""An optimizer wrapper says when it begins to count its steps.

Every Runner of MMEngine hands its wrapper the model and the length of the training, in
a call that nothing else follows. What plans with steps needs both.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

LISTENERS: list[Callable[[Any, Any, int, int], None]] = []
"""Called as ``listener(wrapper, model, done, passes)`` when a training begins or goes
on: passes that are made, and those of all of it."""


def tell_begins(module: ModuleType) -> None:
    """Let wrappers of ``mmengine.optim.optimizer.optimizer_wrapper`` tell listeners."""
    count = module.OptimWrapper.initialize_count_status
    if hasattr(count, 'told'):
        return

    def told(self: Any, model: Any, init_counts: int, max_counts: int) -> None:
        """MMEngine's ``initialize_count_status``, and what listeners make of it."""
        count(self, model, init_counts, max_counts)
        for listener in LISTENERS:
            listener(self, model, init_counts, max_counts)

    told.told = True
    module.OptimWrapper.initialize_count_status = told
