"""A training made longer or shorter, and its schedules with it.

An option that changes ``train_cfg.max_epochs`` or ``max_iters`` stretches what the
recipe's schedules count in: every ``begin`` and ``end``, ``T_max``, milestones, steps
and warm-up become the same share of the new length. So 50 epochs of a recipe of 100
have 5 of its 10 epochs of warm-up, and the cosine reaches its floor at the end. Warm-up
counted in iterations is stretched likewise. A schedule of which less than half an epoch
is left is taken out. Those of several optimizers, in a dict by name, follow likewise.

An option that speaks of ``param_scheduler`` says the lengths itself: then all of them
stay as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpetl.core import PETLError
from mmpetl.engine.stretching import stretched


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
    config.param_scheduler = stretched(
        schedules,
        before[1],
        after[1],
        'the options change the length of the training, and how {} is to follow is not '
        'known; give param_scheduler too',
    )
