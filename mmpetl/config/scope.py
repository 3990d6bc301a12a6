"""Which upstream package a type without a scope is of."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmpetl.core import PETLError
from mmpetl.models.petl_backbone import build_foreign


def import_scope(config: Any) -> str:
    """The config's ``default_scope``, whose package is imported.

    Raises:
        PETLError: It cannot be.
    """
    scope = config.get('default_scope') or 'mmengine'
    try:
        importlib.import_module(f'{scope}.registry')
    except ModuleNotFoundError as error:
        raise PETLError(
            f'the config needs the package {scope!r}, which cannot be imported '
            f'({error}); install it (mmpetl doctor says how)'
        ) from error
    return scope


@contextmanager
def scope_of(config: Any) -> Iterator[str]:
    """Resolve types without a scope as the config's ``default_scope`` says."""
    from mmengine.registry import DefaultScope

    scope = import_scope(config)
    with DefaultScope.overwrite_default_scope(scope):
        yield scope


def package_of(kind: Any, scope: str | None = None) -> str | None:
    """The package of a type: ``mmpretrain`` of ``mmpretrain.SwinTransformer``.

    Args:
        kind: The type in a config: a name or a class.
        scope: The config's ``default_scope``, whose package a bare name is of.
    """
    if not isinstance(kind, str):
        return kind.__module__.partition('.')[0]
    package, dot, _ = kind.partition('.')
    return package if dot else scope


def build_backbone(backbone: Mapping[str, Any], scope: str | None = None) -> nn.Module:
    """A foreign backbone of a config, with random weights.

    Args:
        backbone: Its config.
        scope: The config's ``default_scope``, for a type without one.

    Raises:
        PETLError: The package or the name is unknown.
    """
    with scope_of({'default_scope': scope}):
        return build_foreign(backbone)
