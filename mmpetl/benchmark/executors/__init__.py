"""Where jobs run: this process, processes of this machine, a Ray cluster, Slurm.

An executor takes tasks and gives back outcomes; what they are, and what is done about a
failure, is the sweep's business.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmpetl.benchmark.executors.base import Executor
from mmpetl.core import PETLError, suggest

__all__ = ['NAMES', 'Executor', 'make_executor']

_HOMES = {
    'inline': 'inline:InlineExecutor',
    'local': 'local:LocalExecutor',
    'ray': 'ray_cluster:RayExecutor',
    'slurm': 'slurm:SlurmExecutor',
}

NAMES: tuple[str, ...] = tuple(_HOMES)
"""Executors by name."""


def make_executor(name: str, **options: Any) -> Executor:
    """An executor by its name.

    Args:
        name: One of :data:`NAMES`.
        options: What its class takes.

    Raises:
        PETLError: No such executor or option, or the package behind it is missing.
    """
    if name not in _HOMES:
        raise PETLError(
            f'there is no executor {name!r}.{suggest(name, NAMES)} There are: '
            f'{", ".join(NAMES)}'
        )
    module, _, kind = _HOMES[name].partition(':')
    cls = getattr(importlib.import_module(f'{__name__}.{module}'), kind)
    try:
        return cls(**options)
    except TypeError as error:
        raise PETLError(f'executor {name}: {error}') from None
