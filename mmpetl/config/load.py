"""From a path to a config in plain upstream terms."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.compat.bases import OWN
from mmpetl.compat.imports import reason
from mmpetl.config.heads import fit_head
from mmpetl.config.imports import import_named
from mmpetl.config.leaves import read_table, row_config
from mmpetl.config.lengths import length_of, stretch
from mmpetl.config.names import config_root, methods_stem, recipe_names
from mmpetl.config.nodes import PHASES, datasets_of, is_petl_model, method_of
from mmpetl.config.options import check_values, merge
from mmpetl.config.preprocessing import apply_preprocessing
from mmpetl.config.protocols import apply_schedule, check_names, overlay, protocol_of
from mmpetl.config.upstream import is_upstream_name, upstream_config
from mmpetl.core import PETLError, build_entries, registered_methods, suggest
from mmpetl.datasets.catalog import facts_of

FIRST = ('dataset', 'preprocessing', 'protocol', 'stage')
"""Keys that decide what a config is written out to; they act before all others."""

NAMED_BY: Mapping[str, str] = {
    'mmpetl.VTAB': 'task',
    'mmpetl.FGVC': 'name',
    'mmpetl.StudyImages': 'name',
}
"""Argument by which a dataset class of ours is told which set it reads."""


def as_config(config: Any) -> Any:
    """A ``Config`` from a path or a ``Config``."""
    from mmengine.config import Config

    return config if isinstance(config, Config) else load_config(config)


def read_config(path: str | os.PathLike) -> Any:
    """The config of a file, of a package, or of a row in the table of the folder.

    Raises:
        PETLError: There is neither.
    """
    from mmengine.config import Config

    if str(path).startswith(OWN):
        path = config_root() / str(path).removeprefix(OWN)
    elif is_upstream_name(path):
        path = upstream_config(str(path))
    path = Path(path)
    if path.is_file():
        try:
            config = Config.fromfile(path, import_custom_modules=False)
            import_named(config, path)
        except PETLError:
            raise
        except SystemExit as error:
            raise PETLError(f'{path} exits ({error.code}), and is no config') from None
        except Exception as error:  # a config is Python, and raises what it likes
            text = reason(error, path.name)
            raise PETLError(f'{path} cannot be read: {text}') from None
        if 'tables' in config:
            rows = list(read_table(path).rows)
            raise PETLError(
                f'{path} is a table of settings; name one of its rows, such as '
                f'{path.with_suffix("") / rows[0]}.py ({", ".join(rows)})'
            )
        return config
    if path.suffix == '.py' and path.parent.name:
        table = path.parent.with_suffix('.py')
        if table.is_file():
            return row_config(table, path.stem)
    raise PETLError(f'there is no config {path}.{_near(path)}')


def _shipped(path: Path) -> str | None:
    """What ``configs/...`` of a checkout is called from anywhere."""
    first, *rest = path.parts
    if first != 'configs' or not rest:
        return None
    there = config_root() / Path(*rest)
    row = there.parent.with_suffix('.py').is_file()
    return f'{OWN}{Path(*rest).as_posix()}' if there.is_file() or row else None


def _near(path: Path) -> str:
    """A hint at the config that was meant: of the folder, or of the whole tree."""
    whole = path.with_name(f'{path.name}.py') if path.name else path
    if whole.is_file():
        return f' Did you mean {str(whole)!r}?'
    shipped = _shipped(path)
    if shipped:
        return f' mmpetl ships one of that name: {shipped}'
    root = next((p for p in path.parents if p.is_dir()), Path('.'))
    # As deep as the name goes: below a home folder there may be a million files.
    levels = len(path.relative_to(root).parts)
    found = (p for n in range(levels) for p in root.glob('*/' * n + '*.py'))
    names = {p.relative_to(root).as_posix() for p in found}
    if path.suffix != '.py':
        names |= {n.removesuffix('.py') for n in names}
    wanted = path.relative_to(root).as_posix()
    hint = suggest(wanted, names)
    parts = path.with_suffix('').parts
    if 'configs' in parts:
        recipe = '/'.join(parts[parts.index('configs') + 2 :])
        stem = parts[parts.index('configs') + 1] if recipe else ''
        known = {cls.stem(): cls.__name__ for cls in registered_methods().values()}
        if stem in known and recipe in recipe_names():
            return (
                f' No settings are published for this pair; take the recipe: '
                f'configs/recipes/{recipe}.py --cfg-options '
                f'model.backbone.method.type={known[stem]}'
            )
    return hint


def load_config(
    path: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    *,
    protocol: str | None = None,
    stage: str | None = None,
) -> Any:
    """Read a config, write it out in plain upstream terms, say where its run lives.

    Configs are Python and run when they are read: use only those you trust.

    Args:
        path: A config file; one that a package ships, ``mmdet::mask_rcnn/...py``; or a
            row of a table: ``configs/lora/vtab/svhn.py``.
        options: Dotted keys that override it.
        work_dir: Folder of the run; by default that of the config, or
            ``work_dirs/<method>/<dataset>``.
        protocol: ``honest`` or ``published``; by default the config's, or ``honest``
            for a recipe. A config of upstream takes part in none unless asked to.
        stage: ``final`` or ``tune``; by default ``final``.

    Raises:
        PETLError: There is no such file, or a name in it is unknown.
    """
    path = Path(path)
    return finish_config(
        read_config(path), options, work_dir, path=path, protocol=protocol, stage=stage
    )


def finish_config(
    config: Any,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    *,
    path: Path | None = None,
    name: str | None = None,
    protocol: str | None = None,
    stage: str | None = None,
) -> Any:
    """Write out dataset, protocol and preprocessing of a config, then its options.

    A config with a ``stage`` has been written out before (a run's own copy) and keeps
    what it says. For the rest see :func:`load_config`.

    Args:
        config: As it was read; changed in place.
        options: Dotted keys that override it.
        work_dir: Folder of the run.
        path: Where it was read, from which the folder follows.
        name: ``<method>/<dataset>``, where there is no path.
        protocol: See :func:`load_config`.
        stage: See :func:`load_config`.
    """
    options = dict(options or {})
    first = {k: options.pop(k) for k in list(options) if k.partition('.')[0] in FIRST}
    protocol = _one_of('protocol', protocol, first.pop('protocol', None))
    stage = _one_of('stage', stage, first.pop('stage', None))
    if 'stage' in config:
        _refuse_changes(config, {'protocol': protocol, 'stage': stage}, first)
    elif config.get('model'):
        protocol = protocol_of(config, protocol, stage)
        stage = stage or 'final'
        if protocol is None:
            config.protocol, config.stage = None, stage
        else:
            check_names(protocol, stage)
            overlay(config, protocol, stage)
        merge(config, first)
        fill_dataset(config)
        asked = [k.partition('.')[2] for k in first if k.startswith('preprocessing')]
        apply_preprocessing(config, asked)
        apply_schedule(config)
    length = length_of(config)
    merge(config, options)
    if config.get('protocol'):
        stretch(config, length, options)
    check_values(config)
    _check_method(config)
    fit_head(config)
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif not config.get('work_dir'):
        name = name or run_name(config, path)
        if first.get('dataset'):  # another set in the same recipe, another folder
            name = f'{name.rpartition("/")[0]}/{first["dataset"]}'
        marks = {protocol, stage} - {None, 'honest', 'final'}
        config.work_dir = str(Path('work_dirs') / '-'.join((name, *sorted(marks))))
    return config


def _one_of(key: str, given: str | None, option: str | None) -> str | None:
    """A name that may be given as an argument or among the options, not as both."""
    if given and option and given != option:
        raise PETLError(f'{key} is {given} and, among the options, {option}; say one')
    return given or option


def _refuse_changes(
    config: Any, names: Mapping[str, str | None], first: Mapping[str, Any]
) -> None:
    """Raise where a config that is written out is asked to become another."""
    for key, value in {**names, **first}.items():
        here = config
        for part in key.split('.'):
            here = (here or {}).get(part)
        if value is not None and here != value:
            raise PETLError(
                f'{key}={value} cannot change a config that is written out, where it '
                f'is {here}; start from the recipe'
            )


def run_name(config: Any, path: Path) -> str:
    """``<method>/<dataset>`` of a config, by its method and its place in configs/."""
    method = _method_of(config)
    known = registered_methods()
    stem = 'none' if method is None else methods_stem(method)
    if str(path).startswith(OWN):
        path = Path('configs', str(path).removeprefix(OWN))
    parts = path.with_suffix('').parts
    if 'configs' in parts:
        parts = parts[len(parts) - parts[::-1].index('configs') :]
    else:
        parts = parts[-1:]
    stems = {cls.stem() for cls in known.values()}
    if len(parts) > 1 and parts[0] in stems | {'recipes'}:
        parts = parts[1:]
    return '/'.join((stem, *parts))


def _method_of(config: Any) -> Any | None:
    if is_petl_model(config.get('model')):
        method = method_of(config)
    else:
        backbone = config.get('model', {}).get('backbone', {})
        method = backbone.get('method') if isinstance(backbone, Mapping) else None
    return method


def _check_method(config: Any) -> None:
    """Name an unknown method or argument before anything heavy is imported."""
    method = _method_of(config)
    if method is not None:
        build_entries(method)


def fill_dataset(config: Any) -> None:
    """Give loaders their task and classifiers their class count, from the catalogue.

    A recipe names its data once, ``dataset = 'svhn'``. What the config says itself
    stays. Pictures that are mixed need the class count before the head.
    """
    if config.get('dataset') is None:
        return
    facts = facts_of(config.dataset)
    for phase in PHASES:
        for dataset in datasets_of(config, phase):
            for kind, key in NAMED_BY.items():
                if dataset.get('type') == kind:
                    dataset.setdefault(key, facts.id)
    counting = [config.model.get(key) for key in ('head', 'cls_head')]
    if (config.model.get('train_cfg') or {}).get('augments'):
        counting.append(config.model.data_preprocessor)
    for node in counting:
        if isinstance(node, Mapping):
            node.setdefault('num_classes', facts.num_classes)
