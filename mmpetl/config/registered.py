"""Which types loaded data may name: those that a package has registered.

MMEngine's registries import whatever a dotted ``type`` names where they do not know it
(``os.system`` is one), which is right for a config, that is Python and trusted, and
wrong for what a published delta, a plan or a search file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmpetl.config.known import SCOPES, registered
from mmpetl.core import PETLError, registered_methods
from mmpetl.core.plugins import VARIABLE

UNREGISTERED = {
    'roi_layer.type': (
        *('RoIAlign', 'RoIPool', 'RoIAlignRotated', 'RiRoIAlignRotated', 'PrRoIPool'),
        *('DeformRoIPool', 'ModulatedDeformRoIPool'),
    ),
    'consensus.type': ('AvgConsensus',),
    'nms.type': ('nms', 'soft_nms', 'nms_rotated', 'nms_quadri', 'nms_match'),
}
"""Types that a class of upstream finds by itself, and no registry knows. mmcv evaluates
``nms.type`` as Python, which is why it may be nothing else."""


def check_types(data: Any, place: str, scope: str | None = None) -> None:
    """Raise PETLError where data name a type that no package has registered.

    Args:
        data: Loaded values: mappings, lists, text, numbers.
        place: Where they come from, for messages.
        scope: Package of names without one; None looks into all.
    """
    for path, node in _mappings(data):
        if '_scope_' in node and node['_scope_'] not in SCOPES:
            raise PETLError(f'{place}: {path}_scope_ is {node["_scope_"]!r}')
        if 'type' in node:
            check_type(node['type'], f'{place}: {path}type', scope)


def check_type(kind: Any, place: str, scope: str | None = None) -> None:
    """Raise PETLError unless a name is one that a package has registered.

    Args:
        kind: The name, with or without its package: ``'mmdet.ResNet'``.
        place: Where it stands, for messages.
        scope: Package of a name without one; None looks into all.
    """
    if not isinstance(kind, str):
        raise PETLError(
            f'{place} is {kind!r}; a type is the name of a registered class'
        )
    if any(kind in UNREGISTERED[end] for end in UNREGISTERED if place.endswith(end)):
        return
    package, dot, name = kind.rpartition('.')
    if dot and package not in SCOPES:
        raise PETLError(
            f'{place} is {kind!r}, which would be imported; data may name registered '
            f'classes alone, with one of these in front: {", ".join(SCOPES)}'
        )
    if name in registered_methods():
        return
    scopes = [package] if dot else [scope, 'mmengine', 'mmpetl'] if scope else SCOPES
    if not any(registered(f'{one}.{name}', quick=True) for one in scopes):
        own = ''
        if place.endswith(('method.type', 'petl.type')):
            own = f' ({VARIABLE}=FILE.py names a method of your own)'
        raise PETLError(f'{place} is {kind!r}, which no package has registered{own}')


def _mappings(data: Any, path: str = '') -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in data, with the path in front of its keys."""
    if isinstance(data, Mapping):
        yield path, data
        for key, value in data.items():
            yield from _mappings(value, f'{path}{key}.')
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            yield from _mappings(value, f'{path}{i}.')
