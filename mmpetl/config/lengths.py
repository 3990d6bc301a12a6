"""A training made longer or shorter, and its schedules with it.

An option that changes ``train_cfg.max_epochs`` or ``max_iters`` stretches what the
recipe's schedules count in: every ``begin`` and ``end``, ``T_max``, milestones, steps
and warm-up become the same share of the new length. So 50 epochs of a recipe of 100
have 5 of its 10 epochs of warm-up, and the cosine reaches its floor at the end. Warm-up
counted in iterations is stretched likewise. A schedule of which less than half an epoch
is left is taken out.

An option that speaks of ``param_scheduler`` says the lengths itself: then all of them
stay as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpetl.core import PETLError

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


def length_of(config: Any) -> tuple[str, int] | None:
    """What a training counts in and how many of it; None where it says neither."""
    loop = config.get('train_cfg')
    for key in ('max_epochs', 'max_iters') if isinstance(loop, Mapping) else ():
        value = loop.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return key, value
    return None


def stretch(
    config: Any, before: tuple[str, int] | None, options: Mapping[str, Any]
) -> None:
    """Stretch a config's schedules to the length that options have given it.

    Args:
        config: With the options in it; changed in place.
        before: Its length without them, of :func:`length_of`.
        options: Dotted keys.

    Raises:
        PETLError: The length is changed, and a scheduler is not one whose arguments
            are known; or the training counts in something else than before.
    """
    after = length_of(config)
    said = any(key.partition('.')[0] == 'param_scheduler' for key in options)
    schedules = config.get('param_scheduler')
    if said or not schedules or None in (before, after) or before == after:
        return
    if before[0] != after[0]:
        raise PETLError(
            f'the schedules of the config are made for {before[1]:,} of '
            f'{before[0].removeprefix("max_")}, and the options count '
            f'{after[0].removeprefix("max_")}; give param_scheduler too'
        )
    nodes = schedules if isinstance(schedules, list | tuple) else [schedules]
    ratio = after[1] / before[1]
    kept = [node for node in nodes if _stretched(node, ratio, before[1], after[1])]
    config.param_scheduler = kept


def _stretched(node: Any, ratio: float, old: int, new: int) -> bool:
    """Stretch one scheduler; whether anything is left of it."""
    kind = node.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    if name.rpartition('.')[2] not in KNOWN:
        raise PETLError(
            f'the options change the length of the training, and how {name} is to '
            'follow is not known; give param_scheduler too'
        )
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
