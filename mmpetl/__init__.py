"""mmpetl: tune frozen, pre-trained vision backbones by training few parameters."""

from __future__ import annotations

from mmpetl import compat
from mmpetl.version import __version__

compat.install()

from mmpetl.core import (  # noqa: E402
    Delta,
    Method,
    PETLError,
    count_trainable,
    delta_state,
    disable,
    eject,
    enable,
    fold,
    inject,
    load_delta_state,
)

__all__ = [
    'Delta',
    'Method',
    'PETLError',
    '__version__',
    'count_trainable',
    'delta_state',
    'disable',
    'eject',
    'enable',
    'fold',
    'inject',
    'load_delta_state',
]
