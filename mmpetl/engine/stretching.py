"""Schedules of a training of another length: every count is the same share of it."""

from __future__ import annotations

from typing import Any

from mmpetl.core import PETLError
from mmpetl.engine.schedule_nodes import by_optimizer, scheduler_name

SPANS = ('begin', 'end', 'T_max', 'warmup')
"""Arguments that count epochs or iterations from the start, or how many there are."""

EVERY = ('step_size', 'T_0')
"""Arguments that count between two changes: at least 1."""

POINTS = ('milestones', 'periods')
"""Arguments that are lists of such counts."""

ENDLESS = 10**8
"""From here on, an ``end`` means that there is none."""

KNOWN = (
    *('ConstantLR', 'CosineAnnealingLR', 'CosineAnnealingMomentum', 'LinearLR'),
    *('LinearMomentum', 'MultiStepLR', 'MultiStepMomentum', 'PolyLR', 'PolyMomentum'),
    *('StepLR', 'StepMomentum', 'TimmCosineLR', 'CosineAnnealingParamScheduler'),
    *('LinearParamScheduler', 'MultiStepParamScheduler', 'PolyParamScheduler'),
    *('ConstantParamScheduler', 'StepParamScheduler', 'CosineRestartLR'),
    *('CosineRestartParamScheduler', 'QuadraticWarmupLR'),
    *('QuadraticWarmupParamScheduler', 'QuadraticWarmupMomentum'),
)
"""Schedulers that count in nothing but what is listed here."""


def stretched(schedules: Any, old: int, new: int, message: str) -> Any:
    """Schedules at another length of the training.

    Args:
        schedules: Config of a scheduler, or of several, or a dict of either by the
            name of the optimizer; changed in place.
        old: The length that they are made for.
        new: That of the training, in the same count.
        message: What to say of a scheduler that is not known, with ``{}`` for it.

    Returns:
        List of those of which half a count or more is left; where they are given by the
        name of the optimizer, a dict of such lists.

    Raises:
        PETLError: A scheduler is not one whose arguments are known.
    """
    if by_optimizer(schedules):
        return {
            optimizer: stretched(own, old, new, message) if own else own
            for optimizer, own in schedules.items()
        }
    nodes = schedules if isinstance(schedules, list | tuple) else [schedules]
    for node in nodes:
        name = scheduler_name(node)
        if name.rpartition('.')[2] not in KNOWN:
            raise PETLError(message.format(name))
    return [node for node in nodes if _stretch(node, new / old, old, new)]


def _stretch(node: Any, ratio: float, old: int, new: int) -> bool:
    """Stretch one scheduler; whether anything is left of it."""
    whole = node.get('T_max') == node.get('end', ENDLESS) - node.get('begin', 0)
    empty = node.get('end', ENDLESS) < ENDLESS and _counted(node['end'], ratio) == 0
    for key in SPANS:
        value = node.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value < ENDLESS:
            # The whole stays the whole, whatever rounding does.
            node[key] = new if value == old else _counted(value, ratio)
    for key in EVERY:
        if isinstance(node.get(key), int):
            node[key] = max(1, _counted(node[key], ratio))
    for key in POINTS:
        if node.get(key):
            node[key] = [max(1, _counted(value, ratio)) for value in node[key]]
    begin, end = node.get('begin', 0), node.get('end', ENDLESS)
    if whole and begin < end:
        node['T_max'] = end - begin  # each is rounded for itself
    elif node.get('T_max') == 0:
        node['T_max'] = 1
    return not empty and begin < end


def _counted(value: int, ratio: float) -> int:
    """A count at another length, halves rounded up."""
    return int(value * ratio + 0.5)
