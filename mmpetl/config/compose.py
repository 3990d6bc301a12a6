"""Recipe x method in memory, and what is published and searched for each pair."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmpetl.config.leaves import read_table
from mmpetl.config.load import finish_config, read_config
from mmpetl.config.names import (
    config_root,
    is_table,
    method_class,
    methods_stem,
    names_below,
    recipe_path,
    settings_folder,
)
from mmpetl.core import PETLError, is_several, methods_name, registered_methods
from mmpetl.core.several import written_out


def compose(
    recipe: str,
    method: Any,
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
            Arguments that are not given are the method's defaults. Or several: a list
            of these, or ``'LoRA + VPTDeep'``.
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

    specs = [_spec(entry) for entry in written_out(method)]
    path = recipe_path(recipe)
    named = path.relative_to(config_root()).with_suffix('').as_posix()
    named = named.removeprefix('recipes/')
    if leaf and is_several(method):
        raise PETLError(
            f'no settings are published for {methods_name(specs)}; take the recipe '
            '(leaf=False)'
        )
    if leaf:
        path = config_root() / methods_stem(specs[0]) / f'{named}.py'
        config = read_config(path)
        # The leaf says more than the type: its arguments stay below those given.
        args = {k: v for k, v in specs[0].items() if k != 'type'}
        config.model.backbone.method.update(args)
    else:
        config = Config.fromfile(path)
        config.model.backbone.method = specs if is_several(method) else specs[0]
    return finish_config(
        config,
        options,
        work_dir,
        name=f'{methods_stem(specs if is_several(method) else specs[0])}/{named}',
        protocol=protocol,
        stage=stage,
    )


def _spec(method: str | Mapping[str, Any]) -> dict[str, Any]:
    """One method's config, its name in the registry, and not its stem."""
    spec = {'type': method} if isinstance(method, str) else dict(method)
    return {'type': method_class(str(spec.pop('type', None))).__name__, **spec}


def published_pairs() -> Iterator[tuple[str, str]]:
    """``(stem, name)`` of every leaf: ``('lora', 'vtab/svhn')``."""
    root = config_root()
    stems = sorted({cls.stem() for cls in registered_methods().values()})
    for stem in stems:
        for name in names_below(root / stem) if (root / stem).is_dir() else ():
            if name == 'search_space':
                continue
            path = root / stem / f'{name}.py'
            if is_table(path):
                yield from ((stem, f'{name}/{row}') for row in read_table(path).rows)
            else:
                yield stem, name


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
    path = settings_folder(cls) / 'search_space.py'
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
