"""What a folder of a person's own pictures is for: told by what lies in it."""

from __future__ import annotations

from pathlib import Path

from mmpetl.datasets.own.boxes import coco_files
from mmpetl.datasets.own.masks import mask_folders

PICTURES, BOXES, MASKS = 'pictures', 'boxes', 'masks'


def kind_of(data: Path, leave: Path | None = None) -> str:
    """``boxes`` where files of COCO lie, ``masks`` beside images, else ``pictures``.

    COCO files come first: a set of boxes may well have a folder ``labels`` too.

    Args:
        data: A folder or a file.
        leave: The work folder, resolved, which may lie below.
    """
    if data.exists():
        if coco_files(data, leave):
            return BOXES
        if mask_folders(data, leave):
            return MASKS
    return PICTURES
