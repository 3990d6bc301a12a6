"""Which submodules of a model are the trunks that a method is plugged into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from mmpetl.core import PETLError, suggest
from mmpetl.core.sitemap import class_name, find_site_map, is_below

USUAL = 'backbone'
"""Where nearly every model of the four libraries has its trunk."""


def find_trunks(
    model: nn.Module, where: str | Iterable[str] | None = None
) -> tuple[str, ...]:
    """Paths of the trunks of a model.

    Args:
        model: A detector, a segmentor, a classifier, or any other model.
        where: Their paths. None means ``backbone``; in a model without one, the one
            submodule that a file of ``mmpetl/backbones`` describes.

    Raises:
        PETLError: Nothing is there, one path lies below another, or which submodule
            is meant cannot be told; candidates are listed.
    """
    modules = dict(model.named_modules())
    if where is None:
        if USUAL in modules:
            return (USUAL,)
        found = list(described(model))
        if len(found) == 1:
            return (found[0],)
        raise PETLError(
            f'{type(model).__name__} has no backbone, and {len(found)} of its '
            f'submodules are described; say where=PATH. {_candidates(model)}'
        )
    paths = (where,) if isinstance(where, str) else tuple(where)
    if not paths:
        raise PETLError(f'where names no submodule. {_candidates(model)}')
    for path in paths:
        if path not in modules or not path:
            raise PETLError(
                f'where={path!r} is no submodule of {type(model).__name__}.'
                f'{suggest(path, modules)} {_candidates(model)}'
            )
        above = [other for other in paths if other != path and is_below(path, other)]
        if above or paths.count(path) > 1:
            raise PETLError(
                f'where names {path!r} and, with it, {(above or [path])[0]!r}; name '
                'each trunk once'
            )
    return paths


def described(model: nn.Module) -> Iterator[str]:
    """Paths of the outermost submodules that a site map describes."""
    taken: list[str] = []
    for path, module in model.named_modules():
        if any(is_below(path, above) for above in taken):
            continue
        if _is_described(module) and path:
            taken.append(path)
            yield path


def _is_described(module: nn.Module) -> bool:
    try:
        find_site_map(module)
    except PETLError:
        return False
    return True


def _candidates(model: nn.Module) -> str:
    found = [
        f'{path} ({class_name(type(model.get_submodule(path)))})'
        for path in described(model)
    ]
    if found:
        return f'Described there: {", ".join(found)}'
    parts = ', '.join(name for name, _ in model.named_children()) or 'nothing'
    return f'No submodule is described; there are: {parts}'
