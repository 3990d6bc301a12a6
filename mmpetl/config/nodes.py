"""Where things stand in a config: the backbone's node, data sets, pipelines."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmpetl.core.errors import PETLError
from mmpetl.datasets.identity import WRAPPED, innermost

BUILDER = 'mmpetl.PETLBackbone'
MODEL_BUILDER = 'mmpetl.PETLModel'
OURS = ('of', 'petl', 'base', 'where', 'freeze', 'layers', 'blocks', 'base_bits')
"""Keys of ``mmpetl.PETLModel``; all others are upstream's."""
PHASES = ('train', 'val', 'test')


def datasets_of(config: Any, phase: str) -> list[Any]:
    """The innermost sets of a phase's loader; none where there is no loader."""
    loader = _loader_of(config, phase)
    return list(innermost(loader['dataset'])) if loader else []


def _loader_of(config: Any, phase: str) -> Mapping[str, Any]:
    """Config of a phase's loader, or an empty one.

    Raises:
        PETLError: It is something else.
    """
    key = f'{phase}_dataloader'
    loader = config.get(key)
    if loader is not None and not isinstance(loader, Mapping):
        raise PETLError(f'{key} is a {type(loader).__name__}, expected a dict')
    return loader or {}


def built_model(config: Any) -> Any:
    """A copy of a model's config as the Runner builds it.

    Configs of mmpretrain name the preprocessing of pictures at the top, and the Runner
    hands it to the model: without it a model sees pictures that are not normalised.
    """
    model = copy.deepcopy(config.get('model') or {})
    preprocessor = config.get('data_preprocessor')
    if isinstance(model, dict) and preprocessor is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(preprocessor))
    return model


CHANNELS = ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')
"""What preprocessors call the turning of channels."""


def statistics_node(config: Any) -> Mapping[str, Any]:
    """The preprocessor of a config's model, which normalises; empty if it has none."""
    model = config.get('model') or {}
    return model.get('data_preprocessor') or config.get('data_preprocessor') or {}


def turns_channels(preprocessor: Mapping[str, Any]) -> bool:
    """Whether a preprocessor's config turns the order of channels around."""
    return any(preprocessor.get(key) for key in CHANNELS)


def channel_order(config: Any) -> str:
    """``RGB`` or ``BGR``, the order in which a config's model gets channels.

    Pictures are read as BGR, and clips, which mmaction reads, as RGB.
    """
    read_as_rgb = config.get('default_scope') == 'mmaction'
    is_rgb = read_as_rgb != turns_channels(statistics_node(config))
    return 'RGB' if is_rgb else 'BGR'


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


def is_petl_model(model: Any) -> bool:
    """Whether a model's config is one of ``mmpetl.PETLModel``."""
    kind = model.get('type') if isinstance(model, Mapping) else None
    return kind == MODEL_BUILDER or getattr(kind, '__name__', '') == 'petl_model'


def upstream_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model that ``mmpetl.PETLModel`` builds, without ours."""
    rest = {k: v for k, v in model.items() if k not in (*OURS, 'type')}
    return {'type': model['of'], **rest}


def method_of(config: Any) -> Any | None:
    """The method of a config, as it is named there; None where there is none."""
    model = config.get('model') or {}
    if is_petl_model(model):
        return model.get('petl')
    return (petl_backbone_of(config) or {}).get('method')


def find_dataset(
    config: Any, phases: Sequence[str] = ('test', 'val', 'train')
) -> Mapping[str, Any]:
    """Config of the first phase's innermost dataset, or an empty one."""
    for phase in phases:
        node = _loader_of(config, phase).get('dataset')
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


def train_pipeline(config: Any) -> list[dict[str, Any]]:
    """What the training set's pictures go through, as the config says it."""
    pipeline = find_dataset(config, ('train',)).get('pipeline')
    return [dict(step) for step in pipeline or config.get('train_pipeline') or ()]


def sides_made(steps: Iterable[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Height and width in pixels of what a pipeline makes, by its last step that says.

    Of a resizing that keeps the ratio of sides, its bounds; where sizes are drawn, the
    largest. None where no step says a size.
    """
    found = None
    for step in _with_inner(steps):
        for key in ('crop_size', 'size', 'scale', 'scales'):
            sizes = step.get(key)
            if isinstance(sizes, int) and not isinstance(sizes, bool):
                sizes = (sizes, sizes)
            if not isinstance(sizes, list | tuple):
                continue
            if all(isinstance(side, int) for side in sizes):
                sizes = (sizes,)
            drawn = [tuple(size) for size in sizes if _is_size(size)]
            if drawn:
                # MMCV names the scale of a resizing by width and height.
                largest = max(drawn, key=lambda size: size[0] * size[1])
                found = largest[::-1] if key.startswith('scale') else largest
                break
    return found


def _with_inner(steps: Any) -> Iterator[Mapping[str, Any]]:
    """Steps and those that they hold: of a choice, of a cache."""
    for step in steps:
        if isinstance(step, Mapping):
            yield step
            steps_within = (v for v in step.values() if isinstance(v, list | tuple))
            for inner in steps_within:
                yield from _with_inner(inner)
        elif isinstance(step, list | tuple):
            yield from _with_inner(step)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    )
