"""mmpetl: tune frozen, pre-trained vision backbones by training few parameters."""

from __future__ import annotations

from mmpetl.version import __version__

try:
    from mmpetl import compat

    compat.install()
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'mmpetl needs a package that is not installed: {error.name}. '
        '`python mmpetl/doctor.py` says what is missing and how to mend it'
    ) from error

import importlib  # noqa: E402
from typing import Any  # noqa: E402

from mmpetl.core import (  # noqa: E402
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
    print_trainable_parameters,
    run_by_slot,
    save_delta,
    set_active,
    slots,
    unfreeze,
)

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
    'print_trainable_parameters',
    'run_by_slot',
    'save_delta',
    'set_active',
    'slots',
    'unfreeze',
]


def __getattr__(name: str) -> Any:
    # Not imported above: `python -m mmpetl.layers` runs it as a program.
    if name == 'layers':
        return importlib.import_module('mmpetl.layers')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
