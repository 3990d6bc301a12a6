"""Where things stand in a config: the backbone's node, data sets, pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BUILDER = 'mmpetl.PETLBackbone'
PHASES = ('train', 'val', 'test')
WRAPPED = ('dataset', 'datasets')
"""Keys under which a dataset of datasets holds what it wraps."""


def innermost(dataset: Any) -> Iterator[Any]:
    """The sets that a dataset's config repeats or joins, or the set itself."""
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from innermost(part)
        return
    inner = [dataset[key] for key in WRAPPED if dataset.get(key)]
    if not inner:
        yield dataset
    for part in inner:
        yield from innermost(part)


def datasets_of(config: Any, phase: str) -> list[Any]:
    """The innermost sets of a phase's loader; none where there is no loader."""
    loader = config.get(f'{phase}_dataloader')
    return list(innermost(loader['dataset'])) if loader else []


def petl_backbone_of(config: Any) -> Any | None:
    """The ``mmpetl.PETLBackbone`` node below ``config.model``, or None."""

    def visit(node: Any) -> Any | None:
        if isinstance(node, Mapping):
            if node.get('type') == BUILDER:
                return node
            node = list(node.values())
        if isinstance(node, list | tuple):
            return next((f for f in map(visit, node) if f is not None), None)
        return None

    return visit(config.get('model', {}))


def find_dataset(
    config: Any, phases: Sequence[str] = ('test', 'val', 'train')
) -> Mapping[str, Any]:
    """Config of the first phase's innermost dataset, or an empty one."""
    for phase in phases:
        node = (config.get(f'{phase}_dataloader') or {}).get('dataset')
        while isinstance(node, Mapping):
            inner = next((node[k] for k in WRAPPED if node.get(k)), None)
            if inner is None:
                return node
            node = inner[0] if isinstance(inner, list | tuple) else inner
    return {}


def test_pipeline(config: Any) -> list[dict[str, Any]]:
    """What the test set's pictures go through, as the config says it."""
    pipeline = find_dataset(config).get('pipeline') or config.get('test_pipeline')
    return [dict(step) for step in pipeline or ()]
