"""Schedules as a config says them: one or several, of one optimizer or of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmpetl.core import PETLError

LEAST_FACTOR = 1e-8
"""What to write for a share of 0: MMEngine multiplies from step to step, and divides by
what it came from."""

UNDERFLOW = 1e-100
"""Of a smaller share, the product with a rate may lie below the least double."""

DIVIDED_BY = {
    'Linear': ('start_factor',),
    'Constant': ('factor',),
    'OneCycle': ('div_factor', 'final_div_factor'),
}
"""Shares that MMEngine's schedulers divide by, by the beginning of their names."""

KINDS = ('LR', 'Momentum', 'ParamScheduler')
"""What the names of MMEngine's schedulers end in."""


def by_optimizer(schedules: Any) -> bool:
    """Whether schedules are given as a dict, by the name of the optimizer."""
    return isinstance(schedules, Mapping) and 'type' not in schedules


def schedule_nodes(schedules: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place in a config and config of every scheduler.

    Args:
        schedules: ``param_scheduler`` of a config: a scheduler, a list of them, or a
            dict of either by the name of the optimizer. Those that are built already
            are passed over.
    """
    yield from _nodes('param_scheduler', schedules)


def _nodes(place: str, given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(given, list | tuple):
        for i, node in enumerate(given):
            yield from _nodes(f'{place}.{i}', node)
    elif by_optimizer(given):
        for name, node in given.items():
            yield from _nodes(f'{place}.{name}', node)
    elif isinstance(given, Mapping):
        yield place, given


def scheduler_name(node: Mapping[str, Any]) -> str:
    """Class of a scheduler's config, with its scope if it is written with one."""
    kind = node.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def check_schedules(schedules: Any) -> None:
    """Refuse numbers that MMEngine's schedulers divide by behind the first step.

    Args:
        schedules: ``param_scheduler`` of a config.

    Raises:
        PETLError: One is 0, or so small that a product with it is.
    """
    for place, node in schedule_nodes(schedules):
        name = scheduler_name(node)
        plain = name.rpartition('.')[2]
        stem = next((plain.removesuffix(k) for k in KINDS if plain.endswith(k)), '')
        for key in DIVIDED_BY.get(stem, ()):
            value = node.get(key)
            if isinstance(value, int | float) and 0 <= value < UNDERFLOW:
                raise PETLError(
                    f'{place} ({name}) has {key}={value}, by which MMEngine divides '
                    f'when it goes on; write a small share, {key}={LEAST_FACTOR}'
                )
        if stem == 'Step' and node.get('step_size') == 0:
            raise PETLError(
                f'{place} ({name}) has step_size=0, and counts between two changes '
                'are 1 or more; leave the scheduler out for a constant rate'
            )
