"""Heads as wide as the feature that a method hands over, and metrics that fit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log

from mmpetl.config.nodes import is_petl_model, method_of, petl_backbone_of
from mmpetl.config.scope import build_backbone
from mmpetl.core import Method, PETLError, build_entries, wanted_sites

HEADS = ('head', 'cls_head')

_WIDTHS: dict[tuple[str, str, str | None], int] = {}
"""Widths found so far: a table of settings asks for the same one many times."""


def feature_width(
    method: Method, backbone: Mapping[str, Any], scope: str | None = None
) -> int | None:
    """Width of the vector that ``method`` makes of a backbone's last output.

    Args:
        method: A method.
        backbone: Config of a foreign backbone.
        scope: The config's ``default_scope``, for a type without one.

    Returns:
        None where the method leaves the width as it is.

    Raises:
        PETLError: The backbone cannot serve the method.
    """
    if type(method).feature_dims is Method.feature_dims:
        return None
    asked = repr(method), repr(dict(backbone)), scope
    if asked not in _WIDTHS:
        # Only the sites of a built backbone know the width.
        sites = wanted_sites(build_backbone(backbone, scope), method)
        _WIDTHS[asked] = [method.feature_dims(s) for s in sites if s.kind == 'feature'][
            -1
        ]
    return _WIDTHS[asked]


def fit_head(config: Any) -> None:
    """Set the head's ``in_channels`` where the method changes the feature's width.

    So a recipe serves every method, and one override changes one thing.
    """
    node = petl_backbone_of(config)
    if is_petl_model(config.get('model')):
        backbone, petl = config.model.get('backbone'), method_of(config)
        node = {'backbone': backbone, 'method': petl} if backbone else None
    if node is None or node.get('method') is None:
        return
    scope = config.get('default_scope')
    for method in (entry.method for entry in build_entries(node['method'])):
        width = feature_width(method, node['backbone'], scope)
        for key in HEADS if width is not None else ():
            head = config.model.get(key)
            if head and head.get('in_channels') not in (None, width):
                print_log(
                    f'{key}.in_channels is {width}, not {head.in_channels}: the '
                    f'feature of {type(method).__name__} has that width',
                    logger='current',
                )
                head.in_channels = width


def check_metrics(config: Any, phases: Iterable[str]) -> None:
    """Refuse an accuracy of more places than a classifier has classes.

    mmpretrain's configs ask for the first and the fifth place, and its metric raises at
    the end of the first epoch.

    Args:
        config: A config.
        phases: Those whose metrics are computed.

    Raises:
        PETLError: There is such a metric.
    """
    head = (config.get('model') or {}).get('head')
    classes = head.get('num_classes') if isinstance(head, Mapping) else None
    if not isinstance(classes, int):
        return
    for key in (f'{phase}_evaluator' for phase in phases):
        node = config.get(key)
        for metric in node if isinstance(node, list | tuple) else [node]:
            kind = metric.get('type') if isinstance(metric, Mapping) else None
            if str(kind).rpartition('.')[2] not in ('Accuracy', 'MaskedAccuracy'):
                continue
            places = metric.get('topk', (1,))
            places = places if isinstance(places, list | tuple) else [places]
            wrong = [n for n in places if isinstance(n, int) and n > classes]
            if wrong:
                raise PETLError(
                    f'{key} counts the accuracy of the first {wrong[0]} places, and '
                    f'model.head has {classes} classes; give it topk=(1,)'
                )
