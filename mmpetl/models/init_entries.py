"""Entries of ``init_cfg``: what of upstream's own initialisation loads a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def entries_of(module: nn.Module) -> list[Mapping[str, Any]]:
    """The entries of a module's ``init_cfg``."""
    config = getattr(module, 'init_cfg', None) or []
    entries = config if isinstance(config, list | tuple) else [config]
    return [entry for entry in entries if isinstance(entry, Mapping)]


def loads_file(entry: Mapping[str, Any]) -> bool:
    """Whether an entry loads a file, one that is named or one that is to be."""
    kind = entry.get('type')
    return str(getattr(kind, '__name__', kind)).startswith('Pretrained')


def is_pretrained(entry: Mapping[str, Any]) -> bool:
    """Whether an entry loads a file that it names."""
    return loads_file(entry) and bool(entry.get('checkpoint'))


def is_nameless(module: nn.Module) -> bool:
    """Whether a module's ``init_cfg`` leaves the file that it loads to be named.

    Configs of upstream that tune the weights of MAE and its like have
    ``checkpoint=''``, and no initialisation of theirs gets by it.
    """
    return any(loads_file(e) and not is_pretrained(e) for e in entries_of(module))


def drop_nameless(module: nn.Module) -> None:
    """Take out the entries whose file is to be named, of a module and its parts."""
    for part in filter(is_nameless, module.modules()):
        rest = [e for e in entries_of(part) if is_pretrained(e) or not loads_file(e)]
        part.init_cfg = rest or None
