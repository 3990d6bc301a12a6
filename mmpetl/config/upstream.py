"""Configs that upstream's packages ship: ``mmdet::mask_rcnn/...py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError, suggest


def is_upstream_name(path: Any) -> bool:
    """Whether a path is the name of a config in a package."""
    return '::' in str(path)


def upstream_config(name: str) -> Path:
    """The file of a config that an installed package ships.

    Args:
        name: ``mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py``; the
            suffix may be left out.

    Raises:
        PETLError: The package is not installed, or has no such config.
    """
    package, _, inside = name.partition('::')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PETLError(
            f'{name}: the package {package!r} is not installed; install it (python -m '
            'mmpetl.doctor says what is there), or correct the name'
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    for configs in (root / '.mim' / 'configs', root.parent / 'configs'):
        if not configs.is_dir():
            continue
        path = configs / inside
        path = path if path.suffix == '.py' else path.with_name(f'{path.name}.py')
        if path.is_file():
            return path
        there = [p.relative_to(configs).as_posix() for p in configs.rglob('*.py')]
        same = [one for one in there if one.endswith(f'/{path.name}')]
        hint = f' Did you mean {same[0]!r}?' if same else suggest(inside, there)
        raise PETLError(f'{package} ships no config {inside}.{hint}')
    raise PETLError(
        f'{package} at {root} ships no configs; name a file of yours, with the path'
    )
