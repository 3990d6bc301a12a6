"""Methods from outside of the package: of installed packages, and of named files."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

from mmpetl.compat.imports import let_import, reason
from mmpetl.core.errors import PETLError
from mmpetl.registry import METHODS

VARIABLE = 'MMPETL_METHODS'
"""Files (``ripple.py``) and modules (``my_package.ripple``) that register methods, as
``PATH`` names folders."""

GROUP = 'mmpetl.methods'
"""Entry points of installed packages; each names a module that registers methods."""

_done: set[str] = set()
_now: set[str] = set()  # a module may ask for the registered methods while it is made


def import_plugins() -> list[type]:
    """Import what is named and was not imported yet.

    Returns:
        The methods that have come.

    Raises:
        PETLError: A file is not there, raises, or registers no method.
    """
    found: list[type] = []
    for name, said_by in _named():
        if name in _done or name in _now:
            continue
        _now.add(name)
        try:
            found += _import(name, said_by)
        finally:
            _now.discard(name)
        _done.add(name)
    return found


def absolute_names(value: str) -> str:
    """A value of :data:`VARIABLE` that means the same in another folder."""
    return os.pathsep.join(
        str(Path(name).expanduser().absolute()) if _is_file(name) else name
        for name in _split(value)
    )


def _named() -> list[tuple[str, str]]:
    said = [(name, VARIABLE) for name in _split(os.environ.get(VARIABLE, ''))]
    return [*_installed(), *said]


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    points = importlib.metadata.entry_points(group=GROUP)
    return tuple((point.module, f'the entry point {point.name!r}') for point in points)


def _split(value: str) -> list[str]:
    return [name for part in value.split(os.pathsep) if (name := part.strip())]


def _is_file(name: str) -> bool:
    return name.endswith('.py') or os.sep in name


def _import(name: str, said_by: str) -> list[type]:
    path = Path(name).expanduser().absolute() if _is_file(name) else None
    module = name if path is None else path.stem
    if path is not None and not path.is_file():
        raise PETLError(f'{said_by} names {name}, and there is no such file')
    if path is not None and (path.suffix != '.py' or not module.isidentifier()):
        raise PETLError(f'{said_by} names {name}; a module is called like ripple.py')
    if not let_import(module, [Path.cwd() if path is None else path.parent]):
        raise PETLError(
            f'{said_by} names {name}, which is neither installed nor in the current '
            f'folder; several are parted by {os.pathsep!r}'
        )
    origin = path and importlib.util.find_spec(module).origin
    if path is not None and Path(origin or '').resolve() != path.resolve():
        raise PETLError(
            f'{said_by} names {name}, and there is another module {module} '
            f'({origin}); give the file another name'
        )
    try:
        importlib.import_module(module)
    except Exception as error:  # it is Python, and raises what it likes
        file = f'{module.rpartition(".")[2]}.py'
        raise PETLError(
            f'{said_by} names {name}, which cannot be imported: {reason(error, file)}'
        ) from None
    inside = (module, f'{module}.')
    found = [
        cls
        for cls in METHODS.module_dict.values()
        if cls.__module__ == inside[0] or cls.__module__.startswith(inside[1])
    ]
    if not found:
        raise PETLError(
            f'{said_by} names {name}, which registers no method; put '
            '@METHODS.register_module() above its class'
        )
    return found
