"""What ``custom_imports`` of a config names, also where it lies beside the config."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.compat.imports import let_import, reason
from mmpetl.core import PETLError


def import_named(config: Any, path: Path) -> None:
    """Import the modules of ``custom_imports``.

    MMEngine finds what is installed. Here a module may also lie beside the config that
    names it, or in the current folder, which the copy in a run's folder counts on.

    Args:
        config: As it was read.
        path: Where.

    Raises:
        PETLError: There is no such module, or it raises, and ``allow_failed_imports``
            is not set.
    """
    node = config.get('custom_imports')
    if not isinstance(node, Mapping):  # `check_values` says what it should be
        return
    names = node.get('imports') or ()
    for name in [names] if isinstance(names, str) else names:
        problem = _problem(str(name), path)
        if problem is None:
            continue
        text = f'{path}: custom_imports names {name!r}, which {problem}'
        if not node.get('allow_failed_imports'):
            raise PETLError(text)
        warnings.warn(text, stacklevel=2)


def _problem(name: str, path: Path) -> str | None:
    if not let_import(name, [path.parent, Path.cwd()]):
        return (
            'is neither installed nor beside this config nor in the current folder; '
            'PYTHONPATH names other folders'
        )
    try:
        importlib.import_module(name)
    except Exception as error:  # a module raises what it likes
        file = f'{name.rpartition(".")[2]}.py'
        return f'cannot be imported: {reason(error, file)}'
    return None
