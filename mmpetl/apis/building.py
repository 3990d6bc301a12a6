"""Models as a config says them, devices, and what classes are called."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmpetl.config.load import as_config
from mmpetl.config.nodes import built_model, find_dataset
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError
from mmpetl.datasets.lines import read_labelled


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
    least = logging.ERROR if quiet else logging.WARNING
    with scope_of(config), _quiet(least), _drawn_as_in_runs(config):
        model = MODELS.build(built_model(config))
    model.eval()
    return model


@contextmanager
def _drawn_as_in_runs(config: Any) -> Iterator[None]:
    """Draw from the seed of a config, as the Runner does: a random base is the same."""
    seed = (config.get('randomness') or {}).get('seed')
    if not isinstance(seed, int):
        yield
        return
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


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


class _RatesOnCPU(TorchFunctionMode):
    """Backbones read their stochastic depth rates off ``torch.linspace``."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs = {**kwargs, 'device': 'cpu'}
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built in this context have shapes and no numbers."""
    with torch.device('meta'), _RatesOnCPU():
        yield


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
    try:
        entries = read_labelled(path)
    except PETLError:
        return None
    for _, video, label in entries:
        folder = video.strip().rpartition('/')[0].rpartition('/')[2]
        if not folder or names.setdefault(label, folder) != folder:
            return None
    whole = sorted(names) == list(range(len(names)))
    return [names[i] for i in sorted(names)] if names and whole else None
