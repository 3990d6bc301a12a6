"""What was here is in :mod:`mmpetl.config`."""

from __future__ import annotations

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'FIRST': 'mmpetl.config.load',
        'NAMED_BY': 'mmpetl.config.load',
        'compose': 'mmpetl.config.compose',
        'config_root': 'mmpetl.config.names',
        'fill_dataset': 'mmpetl.config.load',
        'is_table': 'mmpetl.config.names',
        'method_class': 'mmpetl.config.names',
        'published_pairs': 'mmpetl.config.compose',
        'read_config': 'mmpetl.config.load',
        'recipe_names': 'mmpetl.config.names',
        'recipe_path': 'mmpetl.config.names',
        'search_space': 'mmpetl.config.compose',
    },
)
