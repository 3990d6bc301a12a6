"""mmpetl: tune frozen, pre-trained vision backbones by training few parameters.

Importing it is cheap: torch is imported with the first of the names below that is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmpetl import compat
from mmpetl.version import __version__

if TYPE_CHECKING:
    from mmpetl.core import (
        Delta,
        Method,
        PETLError,
        count_trainable,
        delta_state,
        disable,
        disabled,
        eject,
        enable,
        fold,
        freeze,
        inject,
        load_delta,
        load_delta_state,
        mix,
        passes_by_slot,
        print_trainable_parameters,
        quantise,
        run_by_slot,
        save_delta,
        set_active,
        slots,
        unfreeze,
    )
    from mmpetl.layers import table as layers

compat.install()

__all__ = [
    'Delta',
    'Method',
    'PETLError',
    '__version__',
    'count_trainable',
    'delta_state',
    'disable',
    'disabled',
    'eject',
    'enable',
    'fold',
    'freeze',
    'inject',
    'layers',
    'load_delta',
    'load_delta_state',
    'mix',
    'passes_by_slot',
    'print_trainable_parameters',
    'quantise',
    'run_by_slot',
    'save_delta',
    'set_active',
    'slots',
    'unfreeze',
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        if name == 'layers':  # a module that can be called, and run as a program
            return importlib.import_module('mmpetl.layers')
        found = getattr(importlib.import_module('mmpetl.core'), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'mmpetl needs a package that is not installed: {error.name}. '
            '`python -m mmpetl.doctor` says what is missing and how to mend it',
            name=error.name,
        ) from error
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
