"""Whole or absent: how a mini set reaches the disk.

A set is written into a sibling folder and renamed when it is complete, with a stamp
that names the recipe it came from. A killed run therefore leaves nothing that looks
like a set, and a second run knows what is already there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

STAMP = '.mmpetl-mini.json'
"""File that says a folder was drawn by us, and from which recipe."""


def is_complete(folder: Path, recipe: dict) -> bool:
    """Whether ``folder`` holds the set that ``recipe`` describes, whole."""
    try:
        return json.loads((folder / STAMP).read_text('utf-8')) == recipe
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def write_once(folder: Path, recipe: dict, write: Callable[[Path], None]) -> bool:
    """Write a set unless it is there; replace one of ours that came of another recipe.

    Args:
        folder: Where the set belongs.
        recipe: What it is made of (name, size, seed, counts, version), JSON values.
        write: Fills the folder that it is given.

    Returns:
        False if the set was already complete and nothing was done.

    Raises:
        FileExistsError: ``folder`` holds files that the generator did not write, such
            as the official data.
    """
    if is_complete(folder, recipe):
        return False
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
        raise FileExistsError(
            f'{folder} holds files that this generator did not write; the mini set '
            f'{recipe["name"]!r} was not made. Choose another root.'
        )
    partial = folder.with_name(f'.{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    (partial / STAMP).write_text(json.dumps(recipe, indent=1), 'utf-8')
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return True


def save_picture(path: Path, picture: np.ndarray, quality: int = 95) -> None:
    """Write (H, W, 3) RGB, or (H, W) labels, uint8, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture[..., ::-1] if picture.ndim == 3 else picture
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == '.jpg' else []
    if not cv2.imwrite(str(path), pixels, options):
        raise OSError(f'could not write {path}')


def save_lines(path: Path, lines: list[str]) -> None:
    """Write a list file, one entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines), 'utf-8')


def save_json(path: Path, content: object) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), 'utf-8')
