"""Which names the toolboxes have registered, and which arguments those take.

Registries of MMEngine fall back to importing what a name spells (``os.system``).
Nothing is imported here but the toolboxes themselves.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

SCOPES = ('mmengine', 'mmpetl', 'mmpretrain', 'mmaction', 'mmseg', 'mmdet')
"""Toolboxes whose registries are looked into."""


def registered(
    kind: str, scope: str = 'mmengine', of: str | None = None, quick: bool = False
) -> list[Any]:
    """Classes and functions that a name stands for, in whichever registry.

    Args:
        kind: ``LinearLR``, ``mmpetl.VTAB``.
        scope: The toolbox that a name without one is looked for in first.
        of: Name of the one registry that counts, ``OPTIMIZERS``; all by default.
        quick: Whether any will do: then a toolbox is imported only where none of those
            that are has the name.
    """
    prefix, _, name = kind.rpartition('.')
    scopes = [prefix] if prefix else list(dict.fromkeys((scope, 'mmengine')))
    scopes = [wanted for wanted in scopes if wanted in SCOPES]
    rounds = [(wanted, fill) for wanted in scopes for fill in (False, True)]
    if quick:
        rounds.sort(key=lambda one: one[1])
    for wanted, fill in rounds:
        found = [
            registry._module_dict[name]
            for registry in _registries(wanted, of, fill)
            if name in registry._module_dict
        ]
        if found:
            return found
    return []


def _registries(scope: str, of: str | None, fill: bool) -> Iterator[Any]:
    """Registries of a toolbox; ``fill`` imports the modules that register in them."""
    try:
        module = importlib.import_module(f'{scope}.registry')
    except ImportError:
        return
    from mmengine.registry import Registry

    for name, registry in list(vars(module).items()):
        if isinstance(registry, Registry) and of in (None, name):
            if fill:
                with suppress(ImportError):  # a location that upstream misspells
                    registry.import_from_location()
            yield registry


def arguments(kind: Any) -> set[str] | None:
    """Names of the arguments that a class or function takes; None where any may do."""
    if not inspect.isclass(kind):
        return _named(kind)[0] if callable(kind) and not _named(kind)[1] else None
    names: set[str] = set()
    for base in kind.__mro__:
        if base is object or '__init__' not in vars(base):
            continue
        found, more = _named(vars(base)['__init__'])
        names |= found
        if not more:
            return names
    return None


def _named(function: Any) -> tuple[set[str], bool]:
    """Named arguments, and whether it takes others too."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), True
    more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in plain}, more


def takes_text(kind: Any, name: str) -> bool:
    """Whether an argument may be text, as its annotation says."""
    for base in kind.__mro__ if inspect.isclass(kind) else ():
        init = vars(base).get('__init__')
        try:
            found = inspect.signature(init).parameters.get(name) if init else None
        except (TypeError, ValueError):
            return True
        if found is not None:
            # Without an annotation, nothing is known.
            note = found.annotation
            return note is found.empty or 'str' in str(note) or note is Any
    return False
