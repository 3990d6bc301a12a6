"""From a config and a delta to a model that is ready to predict."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpetl.core import PETLError, find_injected

BUILDER = 'mmpetl.PETLBackbone'
WRAPPED = ('dataset', 'datasets')
"""Keys under which a dataset of datasets holds what it wraps."""


def as_config(config: Any) -> Any:
    """A ``Config`` from a path or a ``Config``."""
    from mmengine.config import Config

    if isinstance(config, Config):
        return config
    from mmpetl.apis.run import load_config

    return load_config(config)


@contextmanager
def scope_of(config: Any) -> Iterator[str]:
    """Resolve types without a scope as the config's ``default_scope`` says."""
    from mmengine.registry import DefaultScope

    scope = config.get('default_scope') or 'mmengine'
    try:
        importlib.import_module(f'{scope}.registry')
    except ModuleNotFoundError as error:
        raise PETLError(
            f'the config needs the package {scope!r}, which cannot be imported '
            f'({error}); install it (python -m mmpetl.doctor says what is there)'
        ) from error
    with DefaultScope.overwrite_default_scope(scope):
        yield scope


def pick_device(device: str = 'auto') -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N``.

    Raises:
        PETLError: It is not there, or no device at all.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ', '.join(('cpu', *(f'cuda:{i}' for i in range(count))))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise PETLError(f'unknown device {device!r}; there are: {there}') from None
    if chosen.type == 'cpu' or (chosen.type == 'cuda' and (chosen.index or 0) < count):
        return chosen
    raise PETLError(f'the device {device!r} is not there; there are: {there}')


def petl_backbone_of(config: Any) -> Any | None:
    """The ``mmpetl.PETLBackbone`` node below ``config.model``, or None."""

    def visit(node: Any) -> Any | None:
        if isinstance(node, Mapping):
            if node.get('type') == BUILDER:
                return node
            node = list(node.values())
        if isinstance(node, list | tuple):
            return next((f for f in map(visit, node) if f is not None), None)
        return None

    return visit(config.get('model', {}))


def build_model(config: Any, quiet: bool = False) -> nn.Module:
    """The model of a config, in eval mode on the CPU, with base but no delta.

    Args:
        config: Path or ``Config``.
        quiet: Whether to say nothing of a random base, either.
    """
    from mmengine.registry import MODELS

    config = as_config(config)
    if not config.get('model'):
        raise PETLError(f'the config {config.filename or ""} has no model')
    with scope_of(config), _quiet(logging.ERROR if quiet else logging.WARNING):
        model = MODELS.build(copy.deepcopy(config.model))
    model.eval()
    return model


@contextmanager
def _quiet(least: int) -> Iterator[None]:
    """Drop messages below ``least``: initialisers log a paragraph per parameter."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, least))
    try:
        yield
    finally:
        logger.setLevel(level)


def init_model(
    config: Any, delta: str | os.PathLike | None = None, device: str = 'auto'
) -> nn.Module:
    """A tuned model, ready for the functions of :mod:`mmpetl.apis.predict`.

    Args:
        config: Config of the run: path or ``Config``.
        delta: A published delta or a run's checkpoint. For a config without a
            method, a plain checkpoint such as :func:`fold_checkpoint` writes.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The model in eval mode, with ``cfg`` and ``dataset_meta`` (class names).

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The delta does not belong to the model, or no such device.
    """
    from mmpetl.apis.delta import load_delta, read_delta

    place = pick_device(device)
    config = as_config(config)
    model = build_model(config)
    known = dataset_meta(config)
    if delta is not None and find_injected(model):
        load_delta(model, delta)
        known = {**known, **read_delta(delta).dataset}
    elif delta is not None:
        known = {**known, **_load_plain(model, Path(delta))}
    model.cfg = config
    model.dataset_meta = known
    return model.to(place)


def _load_plain(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a whole checkpoint; returns what it says of the classes."""
    from mmpetl.apis.delta import load_tensors

    content = load_tensors(path)
    meta = content.get('meta') or {}
    if meta.get('mmpetl'):
        from mmpetl.apis.delta import method_name

        raise PETLError(
            f'{path} is a delta of {method_name(meta["mmpetl"])}, the model has no '
            'method; set model.backbone.method to the one of the delta'
        )
    try:
        missing, extra = model.load_state_dict(content['state_dict'], strict=False)
    except (KeyError, RuntimeError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise PETLError(f'{path} does not fit the model: {reason}') from None
    if missing or extra:
        raise PETLError(
            f'{path} does not fit the model: {len(missing)} keys are missing and '
            f'{len(extra)} not expected ({(missing or extra)[0]} is one)'
        )
    return dict(meta.get('dataset_meta') or {})


def find_dataset(
    config: Any, phases: Sequence[str] = ('test', 'val', 'train')
) -> Mapping[str, Any]:
    """Config of the first phase's innermost dataset, or an empty one."""
    for phase in phases:
        node = (config.get(f'{phase}_dataloader') or {}).get('dataset')
        while isinstance(node, Mapping):
            inner = next((node[k] for k in WRAPPED if node.get(k)), None)
            if inner is None:
                return node
            node = inner[0] if isinstance(inner, list | tuple) else inner
    return {}


def test_pipeline(config: Any) -> list[dict[str, Any]]:
    """What the test set's pictures go through, as the config says it."""
    pipeline = find_dataset(config).get('pipeline') or config.get('test_pipeline')
    return [dict(step) for step in pipeline or ()]


def dataset_meta(config: Any) -> dict[str, Any]:
    """``classes`` and ``palette`` as far as the config or its dataset class knows.

    In this order: ``metainfo`` in the config, the class's own ``METAINFO``, folder
    names in a video list, the dataset itself where its files are there.
    """
    node = find_dataset(config)
    known = dict(node.get('metainfo') or {})
    if not known.get('classes') and node.get('type'):
        from mmengine.registry import DATASETS

        cls = node['type']
        if isinstance(cls, str):
            with scope_of(config) as scope:
                # `get` alone would not look into the scope.
                with DATASETS.switch_scope_and_registry(scope) as registry:
                    cls = registry.get(cls)
        known = {**getattr(cls, 'METAINFO', {}), **known}
        if not known.get('classes'):
            known['classes'] = _classes_on_disk(config, node)
    return {k: known[k] for k in ('classes', 'palette') if known.get(k)}


def class_names(model: nn.Module, count: int) -> list[str]:
    """Names of ``count`` classes; ``'class 7'`` where nothing names them."""
    names = getattr(model, 'dataset_meta', {}).get('classes') or ()
    return [str(names[i]) if i < len(names) else f'class {i}' for i in range(count)]


def _classes_on_disk(config: Any, node: Mapping[str, Any]) -> list[str] | None:
    """Read class names off the data, which need not be there."""
    from mmengine.registry import DATASETS

    if str(node['type']).rpartition('.')[2] == 'VideoDataset':
        # A test list need not hold every class.
        lists = (find_dataset(config, phases) for phases in (('train',), ('test',)))
        found = [_classes_of_list(Path(n.get('ann_file', ''))) or [] for n in lists]
        return max(found, key=len) or None
    if not str(node['type']).startswith('mmpetl.'):
        return None
    try:
        with scope_of(config):
            return DATASETS.build({**node, 'pipeline': []}).metainfo.get('classes')
    except (FileNotFoundError, PETLError):
        return None


def _classes_of_list(path: Path) -> list[str] | None:
    """Names from lines ``<class>/<video> <label>``, where they name every label."""
    if not path.is_file():
        return None
    names: dict[int, str] = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        video, _, label = line.strip().rpartition(' ')
        folder = video.rpartition('/')[0].rpartition('/')[2]
        if not (folder and label.isdigit()):
            return None
        if names.setdefault(int(label), folder) != folder:
            return None
    whole = sorted(names) == list(range(len(names)))
    return [names[i] for i in sorted(names)] if names and whole else None
