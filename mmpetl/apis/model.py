"""From a config and a delta to a model that is ready to predict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmpetl.apis.building import build_model, dataset_meta, pick_device
from mmpetl.apis.delta import (
    data_of,
    fill_from,
    read_plain,
)
from mmpetl.apis.names import is_named, locate
from mmpetl.apis.runs import Run, open_run
from mmpetl.config.load import as_config, load_config
from mmpetl.core import PETLError, find_injected
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'class_names': 'mmpetl.apis.building',
        'scope_of': 'mmpetl.apis.building',
        'BUILDER': 'mmpetl.config.nodes',
        'WRAPPED': 'mmpetl.config.nodes',
        'find_dataset': 'mmpetl.config.nodes',
        'petl_backbone_of': 'mmpetl.config.nodes',
        'test_pipeline': 'mmpetl.config.nodes',
    },
)


def init_model(
    config: Any, delta: str | os.PathLike | None = None, device: str = 'auto'
) -> nn.Module:
    """A tuned model, ready for the functions of :mod:`mmpetl.apis.predict`.

    Args:
        config: Config of the run: path or ``Config``; or ``zoo/NAME`` or
            ``hub://USER/NAME``, which know theirs and are the delta too.
        delta: A published delta or a run's checkpoint. For a config without a
            method, a plain checkpoint such as :func:`fold_checkpoint` writes.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The model in eval mode, with ``cfg`` and ``dataset_meta`` (class names).

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The delta does not belong to the model, or no such device.
    """
    place = pick_device(device)
    if delta is None and is_named(config):
        run = open_run(config)
        config, delta = run.config, run.weights
    config = as_config(config)
    return _filled(config, delta)[0].to(place)


def filled_model(run: Run) -> tuple[nn.Module, dict[str, float]]:
    """The model of a run as :func:`init_model` gives it, and the figures on record.

    Args:
        run: A run, of :func:`mmpetl.apis.open_run`.
    """
    return _filled(run.config, run.weights)


def part_of(model: nn.Module, path: str) -> nn.Module:
    """The part of a model at a path, all of it at an empty one.

    Raises:
        PETLError: There is no such part.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = ', '.join(name for name, _ in model.named_children())
        raise PETLError(
            f'{type(model).__name__} has no part {path!r}; it has: {names}'
        ) from None


def _filled(
    config: Any, delta: str | os.PathLike | None
) -> tuple[nn.Module, dict[str, float]]:
    """Model and figures of a config and its delta."""
    model, metrics = build_model(config), {}
    known = dataset_meta(config)
    if delta is not None and find_injected(model):
        read = fill_from(model, delta)
        known, metrics = {**known, **read.dataset}, read.metrics
    elif delta is not None:
        known = {**known, **_load_plain(model, locate(delta))}
    model.cfg = config
    model.dataset_meta = known
    return model, metrics


def open_model(
    run: str | os.PathLike,
    delta: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = 'auto',
) -> nn.Module:
    """A tuned model of what a command line names.

    Args:
        run: A config, or a delta that knows its own: ``zoo/NAME``, ``hub://USER/NAME``.
        delta: As of :func:`init_model`.
        options: Dotted keys that override the config.
        device: As of :func:`init_model`.
    """
    if delta is None and is_named(run):
        opened = open_run(run, options=options)
        return init_model(opened.config, opened.weights, device)
    return init_model(load_config(run, options), delta, device)


def _load_plain(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a whole checkpoint; returns what it says of the classes."""
    state, meta = read_plain(model, path)
    try:
        missing, extra = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = ' '.join(str(error).split())[:160]
        raise PETLError(f'{path} does not fit the model: {reason}') from None
    if missing or extra:
        raise PETLError(
            f'{path} does not fit the model: {len(missing)} keys are missing and '
            f'{len(extra)} not expected ({(missing or extra)[0]} is one)'
        )
    return data_of(meta, path)
