"""What was here is in :mod:`mmpetl.config`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'HEADS': 'mmpetl.config.heads',
        'feature_width': 'mmpetl.config.heads',
        'fit_head': 'mmpetl.config.heads',
    },
)
