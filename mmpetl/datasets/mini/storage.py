"""Whole or absent: how a mini set reaches the disk.

A set is written below a scratch folder of the same root and renamed when it is
complete, with a stamp that names the recipe it came from and what is in it. A killed
run therefore leaves nothing that looks like a set, a second run knows what is already
there, and nobody takes a drawn set for the official one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from mmpetl.core import PETLError
from mmpetl.core.boundary import checked, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STAMP = '.mmpetl-mini.json'
"""File that says a folder was drawn by us, from which recipe, and what it holds."""

SCRATCH = '.mmpetl-mini-partial'
"""Folder below the root where sets are written before they are whole."""


class _Entry(msgspec.Struct):
    """What a manifest says of a list."""

    count: int
    labels: list[int] = []
    sha256: str = ''


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """What the stamp of a drawn set says, or None where there is none."""
    try:
        stamp = read_json(folder / STAMP, dict[str, Any])
        checked(stamp.get('manifest', {}), dict[str, _Entry], STAMP)
        return stamp
    except (FileNotFoundError, PETLError):
        return None


def is_complete(folder: Path, recipe: dict) -> bool:
    """Whether ``folder`` holds the set that ``recipe`` describes, whole."""
    stamp = read_stamp(folder) or {}
    return 'manifest' in stamp and all(stamp.get(k) == v for k, v in recipe.items())


def write_once(
    root: Path,
    name: str,
    recipe: dict,
    write: Callable[[Path], None],
    describe: Callable[[Path], dict[str, Any]],
) -> bool:
    """Write a set unless it is there; replace one of ours that came of another recipe.

    Args:
        root: Data root.
        name: Where the set belongs below it.
        recipe: What it is made of (name, size, seed, counts, version), JSON values.
        write: Fills the folder that it is given.
        describe: Given a data root that holds the new set alone, what goes into the
            stamp's ``manifest``.

    Returns:
        False if the set was already complete and nothing was done.

    Raises:
        FileExistsError: The folder holds files that the generator did not write, such
            as the official data.
    """
    folder = root / name
    if is_complete(folder, recipe):
        return False
    if folder.exists() and any(folder.iterdir()) and read_stamp(folder) is None:
        raise FileExistsError(
            f'{folder} holds files that this generator did not write; the mini set '
            f'{recipe["name"]!r} was not made. Choose another root.'
        )
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        if is_complete(folder, recipe):  # another process has made it meanwhile
            return False
        scratch = root / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        partial = scratch / name
        partial.mkdir(parents=True)
        write(partial)
        stamp = {**recipe, 'manifest': describe(scratch)}
        (partial / STAMP).write_text(json.dumps(stamp), 'utf-8')
        if os.path.lexists(folder):
            # At once: half removed, without its stamp, it would not be known as ours.
            folder.rename(scratch / 'replaced')
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
        shutil.rmtree(scratch)
    return True


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes from writing below ``root``, where the system can."""
    if fcntl is None:
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save_picture(path: Path, picture: np.ndarray, quality: int = 95) -> None:
    """Write (H, W, 3) RGB, or (H, W) labels, uint8, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture[..., ::-1] if picture.ndim == 3 else picture
    is_jpeg = path.suffix.lower() in ('.jpg', '.jpeg')
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if is_jpeg else []
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
