"""What was here is in :mod:`mmpetl.config`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'COLUMNS': 'mmpetl.config.leaves',
        'OWN_KEYS': 'mmpetl.config.leaves',
        'Table': 'mmpetl.config.leaves',
        'options_of': 'mmpetl.config.leaves',
        'parse_rows': 'mmpetl.config.leaves',
        'read_table': 'mmpetl.config.leaves',
        'row_config': 'mmpetl.config.leaves',
    },
)
