"""What a run's folder, a checkpoint or a published delta says of its own config.

The config in a folder is Python, and runs when it is read. What stands in a checkpoint
or beside a delta is data: it may name registered classes alone, and imports nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from mmpetl.apis.building import build_model
from mmpetl.apis.counting import without_files
from mmpetl.apis.delta import load_tensors, portable_model, read_delta
from mmpetl.apis.names import find_in_zoo, is_named, locate
from mmpetl.apis.zoo import PREFIX, Entry, Zoo, bring_base, bring_delta
from mmpetl.benchmark.trust import TRUSTED, check_trusted
from mmpetl.config.compose import compose
from mmpetl.config.known import SCOPES
from mmpetl.config.load import finish_config, load_config
from mmpetl.config.names import recipe_names
from mmpetl.config.nodes import test_pipeline
from mmpetl.config.text import is_data, read_text
from mmpetl.core import PETLError
from mmpetl.core.delta_file import SUFFIXES, to_data
from mmpetl.core.errors import shorten
from mmpetl.engine.best import best_checkpoint
from mmpetl.models.weights.address import SCHEME, base_name, weights_folder
from mmpetl.shipped import shipped

PLACES = (
    'custom_imports',
    'default_scope',
    'experiment_name',
    'launcher',
    'load_from',
    'resume',
    'work_dir',
)
"""Keys of a config that say where its run was, and are not taken from a file."""


@dataclass(frozen=True)
class Run:
    """A run that is done.

    Attributes:
        config: Its config, written out.
        weights: Its checkpoint (.pth) or published delta (.safetensors).
    """

    config: Any
    weights: Path


def is_run(name: str | os.PathLike) -> bool:
    """Whether this names a run, and no config: a folder, weights, the zoo or the hub.

    A recipe comes before a folder of its name.
    """
    text = os.fspath(name)
    if is_named(name) or text.startswith('file://'):
        return True
    path = Path(text)
    if path.suffix in ('.pth', *SUFFIXES):
        return True
    return path.is_dir() and text not in recipe_names()


def open_run(
    weights: str | os.PathLike,
    config: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    protocol: str | None = None,
) -> Run:
    """A run by its folder, its checkpoint or its delta.

    Args:
        weights: A folder, of which the best, else the newest checkpoint is taken; a
            checkpoint; a published delta, also ``zoo/NAME`` or ``hub://USER/NAME``
            (:mod:`mmpetl.apis.names`); or a config with a delta of its name beside.
        config: The config, where it is to be another one than they know.
        options: Dotted keys that override it.
        work_dir: Folder of what is done with it.
        protocol: As of :func:`mmpetl.config.load.load_config`.

    Raises:
        FileNotFoundError: There is no such file.
        PETLError: It knows no config, or one that is more than data.
    """
    in_zoo = find_in_zoo(weights)
    if in_zoo is not None and config is None:
        return open_entry(*in_zoo, options, work_dir, protocol)
    weights = locate(weights)
    if config is not None:
        weights = newest_weights(weights) if weights.is_dir() else weights
        return Run(load_config(config, options, work_dir, protocol=protocol), weights)
    if weights.is_dir() or weights.suffix == '.py':
        path, weights = _config_and_weights(weights)
        return Run(load_config(path, options, work_dir, protocol=protocol), weights)
    if not weights.is_file() and weights.suffix not in SUFFIXES:
        raise FileNotFoundError(
            f'{weights} is not there; name the folder of a run, a checkpoint (.pth) or '
            'a published delta (.safetensors)'
        )
    known = _of_delta(weights) if weights.suffix in SUFFIXES else _of_meta(weights)
    found = as_data_config(known, weights)
    place = work_dir or Path('work_dirs') / weights.stem
    found = finish_config(found, options, place, protocol=protocol)
    check_proportion(found, weights)
    return Run(found, weights)


def find_run(
    config: str | os.PathLike, delta: str | os.PathLike | None = None
) -> tuple[Path, Path]:
    """Config and delta of a run, from both files or from the folder they lie in.

    A folder holds ``config.py`` (or one config of another name) and a delta of its name
    or ``delta.safetensors``, or checkpoints, of which the best, else the newest is
    taken.

    Raises:
        PETLError: Something is missing or stands there twice.
    """
    config = Path(config)
    if not config.is_dir():
        if delta is None:
            raise PETLError(
                f'{config} needs a delta beside it: name a .safetensors or a .pth, or '
                'give the folder of a run instead of a config'
            )
        return config, locate(delta)
    configs = [config / 'config.py']
    if not configs[0].is_file():
        configs = sorted(config.glob('*.py'))
    if len(configs) != 1:
        names = f': {shorten([p.name for p in configs], 5)}' if configs else ''
        raise PETLError(
            f'{config} holds {len(configs)} configs{names}; one is needed (name it '
            'instead of the folder)'
        )
    (found,) = configs
    if delta is not None:
        return found, locate(delta)
    beside = found.with_suffix(SUFFIXES[0])
    return found, beside if beside.is_file() else newest_weights(config)


def _config_and_weights(run: Path) -> tuple[Path, Path]:
    """Of a folder, or of a config with its delta beside."""
    if run.is_dir():
        return find_run(run)
    beside = run.with_suffix(SUFFIXES[0])
    if not beside.is_file():
        raise PETLError(
            f'{run} is a config, and there is no delta {beside.name} beside it; name '
            'the folder of a run, a checkpoint (.pth) or a delta (.safetensors)'
        )
    return run, beside


def newest_weights(folder: Path) -> Path:
    """The delta of a run's folder, else its best checkpoint, else its newest.

    Raises:
        PETLError: It has none, or it cannot be told which is the best.
    """
    if not (folder / 'delta.safetensors').is_file():
        best = best_checkpoint(folder)
        if best is not None:
            return best
    for pattern in ('delta.safetensors', '*.pth'):
        found = sorted(folder.glob(pattern), key=lambda p: p.stat().st_mtime)
        if found:
            return found[-1]
    raise PETLError(f'{folder} holds no delta (.safetensors) and no checkpoint (.pth)')


def as_data_config(known: Mapping[str, Any], path: Path) -> Any:
    """A ``Config`` of what a file says, which may be anybody's.

    Raises:
        PETLError: It says nothing of a model, or what would import or run something.
    """
    from mmengine.config import Config

    add = f'give its config in front of {path} (to predict, as --config)'
    if not known.get('model'):
        raise PETLError(f'{path} does not say which model it is of; {add}')
    scope = known.get('default_scope')
    if scope is not None and scope not in SCOPES:
        raise PETLError(
            f'{path}: default_scope is {scope!r}, expected one of {", ".join(SCOPES)}'
        )
    kept = {key: value for key, value in known.items() if key not in PLACES}
    try:
        check_trusted(kept, lambda: scope, str(path))
    except PETLError as error:
        said = str(error).removesuffix(TRUSTED)
        raise PETLError(f'{said}, so its own config is not taken; {add}') from None
    kept = _with_tuples(kept)
    return Config({**kept, 'default_scope': scope, 'load_from': None, 'resume': False})


def _with_tuples(node: Any, inside: bool = False) -> Any:
    """A config of a file, with sizes and ranges of its pipelines tuples once more.

    Files hold lists alone, and transforms take a list of two numbers for no size.
    """
    if isinstance(node, Mapping):
        return {
            key: _with_tuples(value, inside or str(key).endswith('pipeline'))
            for key, value in node.items()
        }
    if not isinstance(node, list):
        return node
    if inside and node and all(isinstance(value, int | float) for value in node):
        return tuple(node)
    return [_with_tuples(value, inside) for value in node]


MODULES = 20_000
"""How many modules a model may have that a file describes."""

SLACK = 256 << 20
"""Bytes of parameters that it may have beside what its files hold."""


def check_proportion(config: Any, path: Path) -> None:
    """Look for the base, and build what a file describes once, without, within bounds.

    Four times what the file and its base take is enough for any precision that they may
    be stored in.

    Raises:
        PETLError: The base is not there, or it cannot be built or is out of proportion.
    """
    base = [Path(name) for name in _base_files(config.model) if not SCHEME.match(name)]
    for file in base:
        if not file.exists():
            raise PETLError(
                f'{path} is on the base {file.name}, and there is no {file}; put it '
                'there, or say where it is: --cfg-options '
                f'model.backbone.checkpoint=FILE (model.base of a whole model)'
            )
    held = sum(file.stat().st_size for file in (path, *base) if file.is_file())
    try:
        with _bounded(4 * held + SLACK, path):
            build_model(without_files(config), quiet=True)
    except PETLError as error:
        said = str(error)
        raise PETLError(said if str(path) in said else f'{path}: {said}') from None
    except Exception as error:  # of whatever the file lets a class calculate
        said = ' '.join(str(error).split())[:200]
        raise PETLError(
            f'{path}: the model that it describes cannot be built: '
            f'{type(error).__name__}: {said}'
        ) from None


@contextmanager
def _bounded(budget: int, path: Path) -> Iterator[None]:
    """Refuse modules and parameters beyond a bound, before they are filled."""
    modules, taken = itertools.count(1), 0

    def count(*_: Any) -> None:
        if next(modules) > MODULES:
            raise PETLError(f'{path} describes more than {MODULES:,} modules')

    def weigh(module: Any, name: str, value: Any) -> None:
        nonlocal taken
        taken += 0 if value is None else value.numel() * value.element_size()
        if taken > budget:
            raise PETLError(
                f'{path} describes a model of more than {budget >> 20:,} MiB, which is '
                'out of proportion to what it and its base hold; give its config'
            )

    hooks = (
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(weigh),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _base_files(node: Any) -> Iterator[str]:
    """Files of base weights that a model's config names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('checkpoint', 'base') and isinstance(value, str):
                yield value
            else:
                yield from _base_files(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _base_files(value)


def open_entry(
    zoo: Zoo,
    entry: Entry,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    protocol: str | None = None,
) -> Run:
    """An entry of the zoo, its delta and base fetched where they are not here.

    Its config is recipe, method and options of the index; see :func:`open_run`.
    """
    where = f'{PREFIX}{entry.name}'
    # The index may be anybody's; what a user adds is the user's.
    try:
        check_trusted({**entry.options, 'method': entry.method}, lambda: None, where)
    except PETLError as error:
        raise PETLError(str(error).removesuffix(TRUSTED)) from None
    delta, base = bring_delta(zoo, entry), bring_base(entry)
    config = compose(
        entry.recipe,
        entry.method,
        {**entry.options, **(options or {})},
        protocol=protocol or entry.protocol,
        work_dir=work_dir or Path('work_dirs') / entry.name,
        leaf=entry.leaf,
    )

    def here(name: str) -> str:
        return str(base) if base_name(name) == base.name else name

    config.model = _with_weights(config.model.to_dict(), here)
    check_proportion(config, delta)
    return Run(config, delta)


def _of_meta(path: Path) -> dict[str, Any]:
    """The config in a checkpoint."""
    content = load_tensors(path)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    if not isinstance(text, str) or not is_data(text):
        return {}
    return read_text(text)


def _of_delta(path: Path) -> dict[str, Any]:
    """The model and the preprocessing that a published delta is for."""
    facts = read_delta(path).meta
    if not facts.get('model'):
        return {}
    return {
        **_test_beside(path, facts),
        'default_scope': facts.get('scope'),
        'model': _with_weights(facts['model'], _bases_beside(path)),
        'test_pipeline': list(facts.get('preprocessing') or ()),
        # Written out, as the config of a run.
        'stage': 'final',
        'protocol': None,
        **({'randomness': {'seed': facts['seed']}} if 'seed' in facts else {}),
    }


TESTED = ('test_dataloader', 'test_evaluator', 'test_cfg')
"""Keys of a config that say on what its model is tested."""


def _test_beside(delta: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """On what a delta is tested, where the config of its run beside says it.

    A config of another model or preprocessing, whatever its name, is not that.
    """
    is_of_folder = delta.stem == 'delta'
    path = delta.parent / 'config.py' if is_of_folder else delta.with_suffix('.py')
    config = _as_data(path)
    found = {key: config[key] for key in TESTED if key in config}
    try:
        check_trusted(found, lambda: facts.get('scope'), str(path))
        said = [portable_model(config), to_data(test_pipeline(config))]
    except (AttributeError, PETLError, TypeError, ValueError):
        return {}  # such a config is named by whoever trusts it
    return found if said == [facts['model'], facts.get('preprocessing') or []] else {}


def _as_data(config: Path) -> Mapping[str, Any]:
    """What a config says that is data; nothing where it is more, or not there."""
    if not config.is_file():
        return {}
    text = config.read_text('utf-8', errors='replace')
    return read_text(text) if is_data(text) else {}


def _bases_beside(delta: Path) -> Callable[[str], str]:
    """Where base files lie, by name: first as the config of a run beside says it.

    That config is read as data, and none that is more.
    """
    found: dict[str, str] = {}
    for config in (delta.parent / 'config.py', delta.with_suffix('.py')):
        for name in _base_files(_as_data(config).get('model')):
            found |= {Path(name).name: name} if Path(name).is_file() else {}
    return lambda name: found.get(name) or _here(name)


def _with_weights(node: Any, here: Callable[[str], str]) -> Any:
    """A model's config whose base files, known by name, are those of this machine."""
    if isinstance(node, list):
        return [_with_weights(value, here) for value in node]
    if not isinstance(node, Mapping):
        return node
    return {
        key: here(value)
        if key in ('checkpoint', 'base') and isinstance(value, str)
        else _with_weights(value, here)
        for key, value in node.items()
    }


def _here(name: str) -> str:
    places = (weights_folder(), shipped('demo/weights'))
    found = (folder / name for folder in places if (folder / name).is_file())
    return str(next(found, weights_folder() / name))
