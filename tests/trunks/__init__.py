"""Tiny backbones for the generic tests: one file per file of ``mmpetl/backbones``.

Each file is called like the one it tries, and holds ``TINY``, entries by their id.
"""

from __future__ import annotations

import importlib
import pkgutil

from tiny_trunk import Tiny


def more_trunks() -> dict[str, Tiny]:
    """The entries of all files of this folder."""
    found: dict[str, Tiny] = {}
    for info in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f'{__name__}.{info.name}').TINY
    return found
