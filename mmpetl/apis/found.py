"""What a model finds in files, as rows of a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from mmpetl.apis.predict import (
    predict_detection,
    predict_image,
    predict_segmentation,
    predict_video,
)
from mmpetl.apis.show import of_task
from mmpetl.core import PETLError
from mmpetl.core.errors import shorten
from mmpetl.datasets.walk import is_utf8

Row = tuple[Any, ...]


def image_rows(model: nn.Module, image: str | os.PathLike, topk: int = 1) -> list[Row]:
    """(class, score in [0, 1]) of the most probable classes, best first."""
    return [(p.name, f'{p.score:.4f}') for p in predict_image(model, image, topk)]


def video_rows(model: nn.Module, video: str | os.PathLike, topk: int = 1) -> list[Row]:
    """As of :func:`image_rows`."""
    return [(p.name, f'{p.score:.4f}') for p in predict_video(model, video, topk)]


def segmentation_rows(model: nn.Module, image: str | os.PathLike) -> list[Row]:
    """(class, pixels, share in [0, 1]) of the classes that are there, largest first."""
    found = predict_segmentation(model, image)
    return [
        (found.classes[label], round(share * found.labels.size), f'{share:.4f}')
        for label, share in found.shares().items()
    ]


def detection_rows(
    model: nn.Module, image: str | os.PathLike, threshold: float = 0.3
) -> list[Row]:
    """(class, score, left, top, right, bottom) of each box, in pixels, best first."""
    return [
        (box.name, f'{box.score:.4f}', *(f'{side:.1f}' for side in box.corners))
        for box in predict_detection(model, image, threshold)
    ]


SCORED = ('file', 'class', 'score')

TABLES: dict[str, tuple[Row, Callable[..., list[Row]], str]] = {
    'mmpretrain': (SCORED, image_rows, 'topk'),
    'mmaction': (SCORED, video_rows, 'topk'),
    'mmseg': (('file', 'class', 'pixels', 'share'), segmentation_rows, ''),
    'mmdet': ((*SCORED, 'left', 'top', 'right', 'bottom'), detection_rows, 'threshold'),
}
"""By a config's ``default_scope``: header, rows of a file, option that they take."""


def check_names(files: Iterable[str | os.PathLike]) -> None:
    """Raise PETLError where a file has a name that can be neither written nor said."""
    odd = [ascii(os.fspath(file)) for file in files if not is_utf8(os.fspath(file))]
    if odd:
        raise PETLError(
            f'{len(odd)} files have a name that is no UTF-8: {shorten(odd, 5)}; rename '
            'them'
        )


def write_table(
    model: nn.Module,
    files: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    **options: Any,
) -> int:
    """Write what a model finds in files as CSV, with a line of names on top.

    The file has its name once all is written; until then it is called ``<out>.part``.

    Args:
        model: What :func:`mmpetl.apis.init_model` gives; its config says the task.
        files: Images, or videos.
        out: File to write, UTF-8.
        options: ``topk`` (1) of classes, ``threshold`` (0.3) of boxes.

    Returns:
        How many lines there are below the names.

    Raises:
        FileNotFoundError: A file is not there.
        PETLError: A file cannot be read or has a name that is no UTF-8, an option is of
            another task, or no task is known.
    """
    (header, rows_of, _), given = of_task(model, TABLES, options, ' as a table')
    files = list(files)
    check_names(files)
    out, lines = Path(out), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'{out.name}.part')
    with part.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(header)
        for path in files:
            rows = rows_of(model, path, **given)
            writer.writerows((os.fspath(path), *row) for row in rows)
            file.flush()
            lines += len(rows)
    part.replace(out)
    return lines
