"""What was here is in :mod:`mmpetl.config`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'BEST_BY': 'mmpetl.config.protocols',
        'HELD_OUT': 'mmpetl.config.protocols',
        'Protocol': 'mmpetl.config.protocols',
        'Stage': 'mmpetl.config.protocols',
        'VAL_EPOCHS': 'mmpetl.config.protocols',
        'apply_schedule': 'mmpetl.config.protocols',
        'check_names': 'mmpetl.config.protocols',
        'overlay': 'mmpetl.config.protocols',
    },
)
