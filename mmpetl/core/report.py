"""What was here is in :mod:`mmpetl.core.counts`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'Counts': 'mmpetl.core.counts',
        'Owner': 'mmpetl.core.counts',
        'count_trainable': 'mmpetl.core.counts',
        'describe': 'mmpetl.core.counts',
        'owners': 'mmpetl.core.counts',
    },
)
