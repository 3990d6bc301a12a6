"""Predict one file, draw it, and say in lines what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmpetl.apis.draw import (
    draw_detection,
    draw_image,
    draw_segmentation,
    draw_video,
)
from mmpetl.apis.predict import (
    Prediction,
    predict_detection,
    predict_image,
    predict_segmentation,
    predict_video,
)
from mmpetl.core import PETLError


def show_image(
    model: nn.Module, image: str | os.PathLike, out: str | os.PathLike, topk: int = 5
) -> list[str]:
    """The most probable classes of an image, a line each.

    Args:
        model: What :func:`mmpetl.apis.init_model` gives.
        image: The file.
        out: Picture to write.
        topk: How many classes.

    Raises:
        FileNotFoundError: No such file.
        PETLError: It cannot be read, or the model is of another task.
    """
    found = predict_image(model, image, topk)
    draw_image(image, found, out)
    return _ranking(found)


def show_video(
    model: nn.Module, video: str | os.PathLike, out: str | os.PathLike, topk: int = 5
) -> list[str]:
    """The most probable classes of a video; see :func:`show_image`."""
    found = predict_video(model, video, topk)
    draw_video(video, found, out)
    return _ranking(found)


def show_segmentation(
    model: nn.Module,
    image: str | os.PathLike,
    out: str | os.PathLike,
    opacity: float = 0.6,
) -> list[str]:
    """The share of each class in an image; ``opacity`` is that of colours, 0 to 1."""
    result = predict_segmentation(model, image)
    draw_segmentation(image, result, out, opacity)
    return [
        f'{100 * share:5.1f}%  {result.classes[label]}'
        for label, share in result.shares().items()
    ]


def show_detection(
    model: nn.Module,
    image: str | os.PathLike,
    out: str | os.PathLike,
    threshold: float = 0.3,
) -> list[str]:
    """Boxes with a score of at least ``threshold``, the best first."""
    boxes = predict_detection(model, image, threshold)
    draw_detection(image, boxes, out, model.dataset_meta.get('palette'))
    lines = []
    for box in boxes:
        corners = ', '.join(f'{c:.0f}' for c in box.corners)
        lines.append(f'{100 * box.score:5.1f}%  {box.name}  ({corners})')
    return [*lines, f'{len(boxes)} boxes with a score of at least {threshold}']


def _ranking(found: list[Prediction]) -> list[str]:
    return [f'{100 * item.score:5.1f}%  {item.name}' for item in found]


TASKS: dict[str, tuple[str, Callable[..., list[str]], str]] = {
    'mmpretrain': ('_image.png', show_image, 'topk'),
    'mmaction': ('_video.mp4', show_video, 'topk'),
    'mmseg': ('_seg.png', show_segmentation, 'opacity'),
    'mmdet': ('_det.png', show_detection, 'threshold'),
}
"""By a config's ``default_scope``: end of the written file, function, its option."""


def shown_name(model: nn.Module, stem: str) -> str:
    """Name of the file that :func:`show_file` writes by default, of a stem.

    Raises:
        PETLError: No task of the model is known.
    """
    return f'{stem}{of_task(model, TASKS, {})[0][0]}'


def of_task(
    model: nn.Module,
    tasks: Mapping[str, tuple[Any, Any, str]],
    options: Mapping[str, Any],
    how: str = '',
) -> tuple[tuple[Any, Any, str], dict[str, Any]]:
    """The entry of a model's task, and those options that are not None.

    Args:
        model: What :func:`mmpetl.apis.init_model` gives.
        tasks: By ``default_scope``; last in an entry stands the option that it takes,
            empty where it takes none.
        options: By name.
        how: Words for the message, behind what takes no such option.

    Raises:
        PETLError: An option is of another task, or no task is known.
    """
    scope = model.cfg.get('default_scope')
    if scope not in tasks:
        raise PETLError(
            f'the config has the default_scope {scope!r}, of which no file can be '
            f'shown; there are {", ".join(tasks)}'
        )
    takes = tasks[scope][-1]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key != takes:
            raise PETLError(
                f'models of {scope} take no {key}{how}; they take {takes or "none"}'
            )
    return tasks[scope], given


def show_file(
    model: nn.Module,
    file: str | os.PathLike,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> tuple[Path, list[str]]:
    """Show what a model finds in a file, whatever its task.

    Args:
        model: What :func:`mmpetl.apis.init_model` gives; its config says the task.
        file: An image, or a video.
        out: File to write; by default one in the working folder.
        options: ``topk``, ``opacity``, ``threshold``: those that are not None, and are
            the task's.

    Returns:
        The file that was written, and the lines.

    Raises:
        PETLError: An option is of another task, or no task is known.
    """
    (end, function, _), given = of_task(model, TASKS, options)
    out = Path(out or f'{Path(file).stem}{end}')
    return out, function(model, file, out, **given)
