"""Tables of methods' sizes, ``configs/_base_/sizes``, as plans speak of them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.config.names import config_root
from mmpetl.core import PETLError, registered_methods, suggest


def sizes(name: str) -> Mapping[str, Mapping[str, Any]]:
    """A table of sizes by its name: arguments by method.

    Raises:
        PETLError: There is none of that name, or it names no method.
    """
    folder = config_root() / '_base_' / 'sizes'
    names = sorted(path.stem for path in folder.glob('*.py'))
    if name not in names:
        raise PETLError(
            f'there are no sizes {name!r}.{suggest(name, names)} There are: '
            f'{", ".join(names)}'
        )
    return _read(folder / f'{name}.py')


@functools.cache
def _read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    from mmengine.config import Config

    table = Config.fromfile(path).to_dict()['sizes']
    known = registered_methods()
    for method in table:
        if method not in known:
            raise PETLError(
                f'{path} has sizes for {method!r}, which is no method.'
                f'{suggest(method, known)}'
            )
    return table


def __getattr__(name: str) -> Any:
    if name != 'MINI':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    warnings.warn(
        f"{__name__}.MINI is now sizes('mini')", DeprecationWarning, stacklevel=2
    )
    return sizes('mini')
