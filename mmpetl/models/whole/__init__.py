"""Whole upstream models: what fills their trunks, and what keeps them safe."""

from __future__ import annotations

from mmpetl.models.whole.base_file import fill_base
from mmpetl.models.whole.guard import guard_model
from mmpetl.models.whole.initialise import initialise
from mmpetl.models.whole.published import read_published_deltas
from mmpetl.models.whole.trunks import find_trunks

__all__ = [
    'fill_base',
    'find_trunks',
    'guard_model',
    'initialise',
    'read_published_deltas',
]
