"""Learning rate and momentum of every step that a config says, without its data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from mmpetl.apis.building import build_model
from mmpetl.apis.counting import without_files
from mmpetl.apis.estimate import batch_of, optimizer_of
from mmpetl.config.load import as_config
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError, check_range
from mmpetl.engine.schedule_nodes import by_optimizer, check_schedules, schedule_nodes

VALUES = {'lr': ('lr',), 'momentum': ('momentum', 'betas')}


def schedule_of(
    config: Any, value: str = 'lr', epoch_length: int | None = None
) -> dict[str, np.ndarray]:
    """What each group of parameters is stepped with.

    Args:
        config: Path or ``Config``.
        value: ``lr``, or ``momentum`` (the first beta of an Adam).
        epoch_length: Steps of an epoch; by default of the data, which are then read.

    Returns:
        (steps,) of each distinct course, by ``"12 groups"``: how many groups of the
        optimizer take it, and a number where several courses are taken by as many.

    Raises:
        PETLError: The config says no steps, its optimizer has no such value, there are
            schedules of several, or one cannot go on behind its first step.
    """
    from mmengine.registry import PARAM_SCHEDULERS

    if value not in VALUES:
        raise PETLError(f'the schedule has {", ".join(VALUES)}, not {value!r}')
    config = copy.deepcopy(as_config(config))
    loop = config.get('train_cfg') or {}
    iters, epochs = loop.get('max_iters'), loop.get('max_epochs')
    if not iters and not epochs:
        raise PETLError('train_cfg has neither max_epochs nor max_iters: no steps')
    if epoch_length is not None:
        check_range('schedule', '--epoch-length', epoch_length, 1)
    length = iters or epoch_length or _steps_of_epoch(config)
    config = without_files(config)
    given = config.get('param_scheduler') or []
    check_schedules(given)
    if by_optimizer(given):
        raise PETLError(
            f'param_scheduler is of several optimizers ({", ".join(given)}), and the '
            'schedule of one is read'
        )
    nodes = [node for _, node in schedule_nodes(given)]
    whole = length * (epochs or 1)
    with scope_of(config):
        optimizer = optimizer_of(config, build_model(config, quiet=True))
        groups = optimizer.param_groups
        key = next((key for key in VALUES[value] if key in groups[0]), None)
        if key is None:
            raise PETLError(f'{type(optimizer).__name__} has no {value}')
        schedulers = [
            PARAM_SCHEDULERS.build(
                {
                    'end': epochs if node.get('by_epoch', True) else whole,
                    **copy.deepcopy(dict(node)),
                },
                default_args={'optimizer': optimizer, 'epoch_length': length},
            )
            for node in nodes
        ]
        # A run steps its optimizer in front of its schedulers; no gradient is there.
        optimizer.step()
        found = np.empty((len(groups), whole))
        for step in range(whole):
            at = [group[key] for group in groups]
            found[:, step] = [v[0] if isinstance(v, tuple | list) else v for v in at]
            done = (step + 1) % length == 0
            for scheduler in schedulers:
                if not scheduler.by_epoch or (epochs and done):
                    scheduler.step()
    courses, counts = np.unique(found, axis=0, return_counts=True)
    named: dict[str, np.ndarray] = {}
    for course, count in zip(courses, counts.tolist(), strict=True):
        name = f'{count} group{"s" * (count > 1)}'
        same = sum(known.partition(' (')[0] == name for known in named)
        named[f'{name} ({same + 1})' if same else name] = course
    return named


def _steps_of_epoch(config: Any) -> int:
    """Steps of an epoch on one device, of the data that are there."""
    from mmengine.registry import DATASETS

    loader = config.get('train_dataloader') or {}
    if not loader.get('dataset'):
        raise PETLError('the config has no train_dataloader; say --epoch-length STEPS')
    batch = batch_of(config)
    try:
        with scope_of(config):
            samples = len(DATASETS.build(copy.deepcopy(loader['dataset'])))
    except FileNotFoundError as error:
        raise PETLError(
            f'the data are not there ({error}); say how many steps an epoch has: '
            '--epoch-length STEPS'
        ) from None
    return max(1, samples // batch if loader.get('drop_last') else -(-samples // batch))
