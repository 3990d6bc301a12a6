"""Which transforms give a picture the same pixels in every epoch, and what they are.

A step counts as fixed where its class is listed here: what is not known may draw at
random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmpetl.datasets.caching import LoadOnce

FIXED = frozenset(
    (
        'mmcv.CenterCrop',
        'mmcv.ImageToTensor',
        'mmcv.LoadImageFromFile',
        'mmcv.Normalize',
        'mmcv.Pad',
        'mmcv.Resize',
        'mmpretrain.CenterCrop',
        'mmpretrain.EfficientNetCenterCrop',
        'mmpretrain.PackInputs',
        'mmpretrain.ResizeEdge',
    )
)
"""Package and class of transforms that draw nothing."""

PLAIN = (bool, int, float, str, type(None))


def drawing_step(transforms: Iterable[Any]) -> str | None:
    """Name of the first step that is not known to be fixed; None where all are.

    Args:
        transforms: As a data set's pipeline has built them.
    """
    for step in transforms:
        if isinstance(step, LoadOnce):
            inner = drawing_step(step.transforms.transforms)
            if inner is not None:
                return inner
        elif _name(step) not in FIXED:
            return type(step).__name__
    return None


def steps_as_data(transforms: Iterable[Any]) -> list[Any]:
    """What fixed steps do, as JSON has it; keeping decoded pictures is no step."""
    found: list[Any] = []
    for step in transforms:
        if isinstance(step, LoadOnce):
            found += steps_as_data(step.transforms.transforms)
        else:
            found.append(_as_data(step))
    return found


def _name(step: Any) -> str:
    return f'{type(step).__module__.partition(".")[0]}.{type(step).__name__}'


def _as_data(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_data(item) for item in value]
    if isinstance(value, type) or callable(value) and not hasattr(value, '__dict__'):
        return getattr(value, '__qualname__', str(value))
    if hasattr(value, '__dict__'):
        inner = {key: _as_data(item) for key, item in sorted(vars(value).items())}
        return {'type': _name(value), **inner}
    return str(value)
