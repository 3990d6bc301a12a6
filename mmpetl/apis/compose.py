"""Configs by name: files, rows of a method's table, and recipe x method in memory.

``configs/<stem>/<recipe>.py`` names a pair with published settings. For dense and video
tasks it is a file. For the many tasks of VTAB-1k and FGVC one file per method holds a
table, ``configs/<stem>/vtab.py``, and ``configs/<stem>/vtab/svhn.py`` names its row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError, build_method, registered_methods, suggest

FIRST = ('dataset', 'preprocessing', 'protocol', 'stage')
"""Keys that decide what a config is written out to; they act before all others."""


def config_root() -> Path:
    """The folder ``configs``: of the source tree, or of the working folder.

    Raises:
        PETLError: There is none.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / 'configs' / 'recipes').is_dir():
            return root / 'configs'
    raise PETLError(
        'there is no folder configs/recipes, neither beside the package nor in the '
        'working folder; run from a checkout of mmpetl'
    )


def recipe_names() -> list[str]:
    """Every recipe by the name that :func:`compose` takes."""
    root = config_root()
    full = _names_below(root / 'recipes')
    return full + [f'mini/{name}' for name in _names_below(root / 'mini')]


def _names_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).with_suffix('').as_posix()
        for path in folder.rglob('*.py')
        if 'pretrain' not in path.parts
    )


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: ``vtab/cifar100``, ``coco``, ``mini/digits``.

    Raises:
        PETLError: There is none of that name.
    """
    root = config_root()
    name = recipe.removesuffix('.py')
    folder = root if name.startswith('mini/') else root / 'recipes'
    path = folder / f'{name}.py'
    if path.is_file():
        return path
    names = recipe_names()
    raise PETLError(
        f'there is no recipe {recipe!r}.{suggest(recipe, names)} '
        f'There are: {", ".join(names)}'
    )


def compose(
    recipe: str,
    method: str | Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    *,
    protocol: str = 'honest',
    stage: str = 'final',
    work_dir: str | os.PathLike | None = None,
    leaf: bool = False,
) -> Any:
    """A recipe with a method in it: the same recipe for all methods.

    Args:
        recipe: Name below ``configs/recipes``, or ``mini/<name>``.
        method: Name or stem (``LoRA``, ``lora``), or ``dict(type='LoRA', rank=4)``.
            Arguments that are not given are the method's defaults.
        options: Dotted keys that override the result.
        protocol: ``honest`` or ``published``.
        stage: ``final``, or ``tune`` to choose settings on validation data.
        work_dir: Folder of the run; ``work_dirs/<stem>/<recipe>`` by default, the
            protocol and stage appended where they are not ``honest`` and ``final``.
        leaf: Whether to start from the pair's published settings.

    Returns:
        A ``mmengine.config.Config``, written out, as :func:`load_config` gives it.

    Raises:
        PETLError: An unknown name or value, or a leaf that does not exist.
    """
    from mmengine.config import Config

    from mmpetl.apis.run import finish_config

    spec = {'type': method} if isinstance(method, str) else dict(method)
    cls = method_class(str(spec.pop('type', None)))
    path = recipe_path(recipe)
    named = path.relative_to(config_root()).with_suffix('').as_posix()
    named = named.removeprefix('recipes/')
    if leaf:
        path = config_root() / cls.stem() / f'{named}.py'
        config = read_config(path)
        # The leaf says more than the type: its arguments stay below those given.
        config.model.backbone.method.update(spec)
    else:
        config = Config.fromfile(path)
        config.model.backbone.method = {'type': cls.__name__, **spec}
    return finish_config(
        config,
        options,
        work_dir,
        name=f'{cls.stem()}/{named}',
        protocol=protocol,
        stage=stage,
    )


def method_class(name: str) -> Any:
    """A registered method by name or stem.

    Raises:
        PETLError: There is none.
    """
    known = registered_methods()
    if name in known:
        return known[name]
    of_stem = [cls for cls in known.values() if cls.stem() == name]
    # A file may hold parts beside its method, which then bears the stem's name.
    named = [cls for cls in of_stem if cls.__name__.lower() == name.replace('_', '')]
    for cls in (*named, *of_stem):
        return cls
    return type(build_method(name.rpartition('.')[2]))


def read_config(path: str | os.PathLike) -> Any:
    """The config of a file, or of a row in the table of the folder's name.

    Raises:
        PETLError: There is neither.
    """
    from mmengine.config import Config

    path = Path(path)
    if path.is_file():
        config = Config.fromfile(path)
        if 'tables' in config:
            rows = ', '.join(_rows_of(path))
            raise PETLError(
                f'{path} is a table of settings; name one of its rows, such as '
                f'{path.with_suffix("") / next(iter(_rows_of(path)))}.py ({rows})'
            )
        return config
    table = path.parent.with_suffix('.py')
    if path.suffix == '.py' and table.is_file():
        from mmpetl.apis.leaves import row_config

        return row_config(table, path.stem)
    raise PETLError(f'there is no config {path}.{_near(path)}')


def _rows_of(table: Path) -> list[str]:
    from mmpetl.apis.leaves import read_table

    return list(read_table(table).rows)


def _near(path: Path) -> str:
    """A hint at the config that was meant: of the folder, or of the whole tree."""
    root = next((p for p in path.parents if p.is_dir()), Path('.'))
    names = {p.relative_to(root).as_posix() for p in root.rglob('*.py')}
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


def published_pairs() -> Iterator[tuple[str, str]]:
    """``(stem, name)`` of every leaf: ``('lora', 'vtab/svhn')``."""
    root = config_root()
    stems = sorted({cls.stem() for cls in registered_methods().values()})
    for stem in stems:
        for name in _names_below(root / stem) if (root / stem).is_dir() else ():
            if name == 'search_space':
                continue
            path = root / stem / f'{name}.py'
            if is_table(path):
                yield from ((stem, f'{name}/{row}') for row in _rows_of(path))
            else:
                yield stem, name


def is_table(path: Path) -> bool:
    """Whether a file below ``configs/<stem>`` is a table of settings."""
    text = path.read_text(encoding='utf-8')
    return '\ntables = ' in text or '_base_/tables/' in text


def search_space(stem: str) -> dict[str, Any]:
    """What to search for a method, from ``configs/<stem>/search_space.py``.

    Args:
        stem: Stem or name of the method.

    Returns:
        Config keys with the values to try: a list of choices, or a range
        ``dict(low=..., high=..., log=...)``.

    Raises:
        PETLError: The method has no such file, or it is malformed.
    """
    from mmengine.config import Config

    cls = method_class(stem)
    path = config_root() / cls.stem() / 'search_space.py'
    if not path.is_file():
        raise PETLError(f'{cls.__name__} has no search space: there is no {path}')
    space = Config.fromfile(path).get('space') or {}
    for key, values in space.items():
        ranged = isinstance(values, Mapping) and {'low', 'high'} <= set(values)
        if not ranged and not (isinstance(values, list) and values):
            raise PETLError(
                f'{path}: {key} needs a list of choices or dict(low=, high=, log=), '
                f'got {values!r}'
            )
    return {
        key: dict(values) if isinstance(values, Mapping) else list(values)
        for key, values in space.items()
    }


def fill_dataset(config: Any) -> None:
    """Give loaders their task and classifiers their class count, from the catalogue.

    A recipe names its data once, ``dataset = 'svhn'``. What the config says itself
    stays. Pictures that are mixed need the class count before the head.
    """
    from mmpetl.apis.preprocessing import PHASES, datasets_of
    from mmpetl.datasets.catalog import facts_of

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


NAMED_BY: Mapping[str, str] = {
    'mmpetl.VTAB': 'task',
    'mmpetl.FGVC': 'name',
    'mmpetl.StudyImages': 'name',
}
"""Argument by which a dataset class of ours is told which set it reads."""
