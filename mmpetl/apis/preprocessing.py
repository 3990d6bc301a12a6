"""What was here is in :mod:`mmpetl.config`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'PHASES': 'mmpetl.config.nodes',
        'WRAPPED': 'mmpetl.config.nodes',
        'apply_preprocessing': 'mmpetl.config.preprocessing',
        'datasets_of': 'mmpetl.config.nodes',
        'innermost': 'mmpetl.config.nodes',
    },
)
