"""What decides the result of a run, and the digest of that.

The resolved config, less what only says where a run lives and what it writes down.
Paths below the roots of data and weights become the name of the root, by comparison of
paths and not of text: ``MMPETL_DATA`` unset, relative, absolute, or a link give one
digest. Hooks stay where they act on the result or are not known; those that only log,
time or draw go, and of the one that saves stays how it chooses.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmpetl.benchmark.records import write_json
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.shipped import shipped

ROOT = shipped()
"""The checkout, or what a wheel holds of it: ``configs`` lies below it."""

NAME = 'hashed.json'
FORMAT = 2

UNRELATED = (
    'auto_resume',
    'cache_features',
    'custom_hooks',
    'default_hooks',
    'env_cfg',
    'experiment_name',
    'launcher',
    'log_level',
    'log_processor',
    'offload_activations',
    'primary',
    'resume',
    'shard_base',
    'vis_backends',
    'visualizer',
    'work_dir',
)
"""Keys that say where a run lives and what it logs. Hooks are seen to apart.

So are stored features, which count where they may differ from those of the trunk.
"""

LOGGING = frozenset(
    (
        'DataReadHook',
        'DetVisualizationHook',
        'EfficiencyHook',
        'EmptyCacheHook',
        'IterTimerHook',
        'LoggerHook',
        'MemoryProfilerHook',
        'NPUProfilerHook',
        'PredictionsHook',
        'ProfilerHook',
        'ResultsHook',
        'RunLogHook',
        'RuntimeInfoHook',
        'SegVisualizationHook',
        'VisualizationHook',
    )
)
"""Hooks that no weight and no metric depends on."""

SAVING = frozenset(('CheckpointHook', 'DeltaCheckpointHook'))
CHOOSING = ('greater_keys', 'less_keys', 'rule', 'save_begin', 'save_best', 'save_last')
"""What of a hook that saves says which checkpoint counts."""

STORING = 'FeatureCacheHook'
"""Hook behind ``cache_features``. With no tolerance, rows are those of the trunk."""

ROOTS = {
    'MMPETL_DATA': ('{data}', 'data'),
    'MMPETL_WEIGHTS': ('{weights}', 'checkpoints'),
}
"""Variables with the names that their folders get, and where they lie by default."""


def config_hash(config: Any, roots: Mapping[str, str] | None = None) -> str:
    """Digest of what decides a run's result; folders of a machine do not count.

    Args:
        config: As it was resolved.
        roots: Folders of another machine by the names of their roots, for a config that
            was resolved there (:func:`roots_there`).
    """
    return digest_of(resolved(config, roots))


def digest_of(kept: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what :func:`resolved` has kept."""
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolved(config: Any, roots: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What decides a run's result, as JSON has it; see :func:`config_hash`."""
    kept = _deciding(config)
    there = [(name, text, text) for name, text in (roots or {}).items()]
    every = [*there, *_roots()]
    return {key: _plain(value, every) for key, value in kept.items()}


def _deciding(config: Any) -> dict[str, Any]:
    """What of a config decides the result, its paths as they are written."""
    data = config.to_dict()
    kept = {k: v for k, v in data.items() if k not in UNRELATED}
    # A config that was written has the keys of a node in another order.
    order = partial(json.dumps, default=str, sort_keys=True)
    kept['hooks'] = sorted(_hooks(data), key=order)
    asked = data.get('cache_features')
    if isinstance(asked, Mapping) and asked.get('tolerance'):
        kept['cache_features'] = {'tolerance': asked['tolerance']}
    return kept


def _hooks(data: Mapping[str, Any]) -> Iterator[Any]:
    """Hooks that act on the result, or may."""
    nodes = [
        *(data.get('default_hooks') or {}).values(),
        *(data.get('custom_hooks') or ()),
    ]
    for node in nodes:
        if not isinstance(node, Mapping):
            if node is not None:
                yield str(type(node))
            continue
        kind = node.get('type')
        kind = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
        name = kind.rpartition('.')[2]
        if name in SAVING:
            chosen = {k: node[k] for k in CHOOSING if node.get(k) is not None}
            if chosen.get('save_last', True):
                chosen.pop('save_last', None)  # as it is by default
            # How it is called says nothing more where it chooses nothing.
            if chosen:
                yield {'type': name, **chosen}
        elif name == STORING:
            if node.get('tolerance'):
                yield {'type': name, 'tolerance': node['tolerance']}
        elif name not in LOGGING:
            yield {**node, 'type': kind}


def _roots() -> Iterator[tuple[str, str, str]]:
    """Of each root: its name, its path as configs write it, and where that is."""
    for variable, (name, default) in ROOTS.items():
        text = os.environ.get(variable) or default
        yield name, text.rstrip('/') or '/', os.path.realpath(os.path.expanduser(text))
    yield '{root}', str(ROOT), str(ROOT)


def _plain(value: Any, roots: list[tuple[str, str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v, roots) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, roots) for v in value]
    if isinstance(value, str):
        return _named(value, roots)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, type) or callable(value):
        return f'{value.__module__}.{value.__qualname__}'
    return str(value)


def _named(text: str, roots: list[tuple[str, str, str]]) -> str:
    """A path below a root by the root's name; any other text as it is."""
    for name, written, real in roots:
        # Only what is written as a path of the root: a word may be a folder's name too.
        below = text == written or text.startswith(f'{written.rstrip("/")}/')
        if not (below or os.path.isabs(text)):
            continue
        # The root is resolved, what lies in it is not: a link in it may be rearranged.
        rest = text[len(written) :] if below else _below(text, real)
        if rest is not None:
            inside = os.path.normpath(rest.lstrip('/') or '.')
            return name if inside == '.' else f'{name}/{inside}'
    return text


def _below(path: str, real: str) -> str | None:
    """What of a path lies below a folder; None where it lies elsewhere."""
    for way in (os.path.normpath(path), os.path.realpath(path)):
        if way == real or way.startswith(f'{real.rstrip("/")}/'):
            return way[len(real) :]
    return None


def keep(folder: Path, config: Any) -> None:
    """Write down what the digest of a run is over, to tell later what has changed."""
    kept = resolved(config)
    write_json(folder / NAME, {'format': FORMAT, 'resolved': _finite(kept)})


def roots_there(folder: Path, config: Any) -> dict[str, str]:
    """Where the roots of data, weights and package lay when a run was begun.

    What the digest is over has names in the place of these folders, the run's config
    has the folders themselves: the first path of each root tells where it was. A config
    whose other paths lie elsewhere has another digest.

    Args:
        folder: Of the run.
        config: That of its ``config.py``.

    Returns:
        Folders by the names of their roots; of an earlier version's run none.
    """
    try:
        kept = read_json(folder / NAME, dict[str, Any], 'config of a run')
    except (OSError, PETLError):
        return {}
    names = [name for name, *_ in _roots()]
    named = dict(_leaves(kept.get('resolved')))
    found: dict[str, str] = {}
    for key, path in _leaves(_plain(_deciding(config), [])):
        said = named.get(key)
        if not isinstance(said, str) or not isinstance(path, str):
            continue
        name, below, rest = said.partition('/')
        path, rest = os.path.normpath(path), f'{below}{rest}'
        if name in names and path.endswith(rest):
            found.setdefault(name, path.removesuffix(rest))
    return found


def _finite(value: Any) -> Any:
    """JSON has no infinity; its text tells as much."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value in (float('inf'), float('-inf')):
        return str(value)
    return None if value != value else value


def changes(folder: Path, config: Any) -> str:
    """What of a config differs from that of the run in a folder, in a line."""
    try:
        data = read_json(folder / NAME, dict[str, Any], 'config of a run')
    except (OSError, PETLError):
        data = {}
    before = data.get('resolved')
    if data.get('format') != FORMAT or not isinstance(before, Mapping):
        return (
            'it was begun by an earlier mmpetl, whose digest of a config does not tell '
            'whether it is the same'
        )
    old, new = dict(_leaves(before)), dict(_leaves(_finite(resolved(config))))
    said = [
        f'{key} was {_short(old.get(key))}, is {_short(new.get(key))}'
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    more = f', and {len(said) - 3} more' if len(said) > 3 else ''
    return '; '.join(said[:3]) + more if said else 'its log names another config'


def _leaves(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    empty = True
    for key, value in items:
        empty = False
        yield from _leaves(value, f'{place}.{key}' if place else str(key))
    if empty and place:
        yield place, node


def _short(value: Any) -> str:
    text = 'not there' if value is None else json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def recipe_digest(config: Any) -> str:
    """Digest of what a run takes from its recipe and options: no method, no seed.

    Two methods that were trained in the same way share it.
    """
    from mmengine.config import Config

    from mmpetl.config.nodes import is_petl_model, petl_backbone_of

    plain = Config(config.to_dict())
    if is_petl_model(plain.get('model')):
        plain.model.pop('petl', None)
    else:
        (petl_backbone_of(plain) or {}).pop('method', None)
    for key in ('phases', 'randomness'):
        plain.pop(key, None)
    return config_hash(plain)
