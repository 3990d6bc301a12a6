"""Names whose modules are imported when a name is used, and names that have moved."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``__name__``.
        homes: The module that defines each name: one below the package, or any of
            mmpetl by its full name.
    """
    root = package.partition('.')[0]

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        home = homes[name]
        whole = home if home.startswith(f'{root}.') else f'{package}.{home}'
        return getattr(importlib.import_module(whole), name)

    return find, lambda: sorted(homes)


def moved_names(
    module: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a module whose names have moved elsewhere.

    They are found, and a DeprecationWarning says where they are now.

    Args:
        module: Its ``__name__``.
        homes: Full name of the module that defines each name now.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        home = homes[name]
        warnings.warn(
            f'{module}.{name} is now {home}.{name}', DeprecationWarning, stacklevel=2
        )
        return getattr(importlib.import_module(home), name)

    return find, lambda: sorted(homes)
