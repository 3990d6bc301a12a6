"""Names that configs go by, and where their files lie.

``configs/<stem>/<recipe>.py`` names a pair with published settings. For dense and video
tasks it is a file. For the many tasks of VTAB-1k and FGVC one file per method holds a
table, ``configs/<stem>/vtab.py``, and ``configs/<stem>/vtab/svhn.py`` names its row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpetl.core import (
    PETLError,
    build_method,
    methods_classes,
    registered_methods,
    suggest,
)
from mmpetl.shipped import shipped


def config_root() -> Path:
    """The folder ``configs``: of the checkout, or of the installed package.

    Raises:
        PETLError: There is none.
    """
    root = shipped('configs')
    if not (root / 'recipes').is_dir():
        raise PETLError(
            f'there is no folder {root / "recipes"}: this mmpetl is installed without '
            'its configs; install it anew (pip install --force-reinstall mmpetl)'
        )
    return root


BESIDE = ('mini', 'own')
"""Folders of recipes that lie beside ``configs/recipes``."""


def recipe_names() -> list[str]:
    """Every recipe of a known set by the name that :func:`compose` takes."""
    root = config_root()
    full = names_below(root / 'recipes')
    return full + [f'mini/{name}' for name in names_below(root / 'mini')]


def names_below(folder: Path) -> list[str]:
    """Config files below a folder, without their suffix."""
    return sorted(
        path.relative_to(folder).with_suffix('').as_posix()
        for path in folder.rglob('*.py')
        if 'pretrain' not in path.parts
    )


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: ``vtab/cifar100``, ``coco``, ``mini/digits``, ``own/...``.

    Raises:
        PETLError: There is none of that name.
    """
    root = config_root()
    name = recipe.removesuffix('.py')
    folder = root if name.partition('/')[0] in BESIDE else root / 'recipes'
    path = folder / f'{name}.py'
    if path.is_file():
        return path
    names = recipe_names()
    raise PETLError(
        f'there is no recipe {recipe!r}.{suggest(recipe, names)} '
        f'There are: {", ".join(names)}'
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


def settings_folder(cls: Any) -> Path:
    """Where settings of a method lie: ``configs/<stem>``.

    Of one from outside of the package, that folder beside its file.
    """
    file = None if cls.ours() else cls.file()
    root = config_root() if file is None else file.parent / 'configs'
    return root / cls.stem()


def methods_stem(method: Any) -> str:
    """Stem of a method, or of several: ``lora+vpt_deep``.

    Raises:
        PETLError: A name is unknown.
    """
    return '+'.join(cls.stem() for cls in methods_classes(method))


def is_table(path: Path) -> bool:
    """Whether a file below ``configs/<stem>`` is a table of settings."""
    text = path.read_text(encoding='utf-8')
    return '\ntables = ' in text or '_base_/tables/' in text
