"""Files below a folder, through links, and which of them are pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mmpetl.core import PETLError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
"""What is taken for a picture in a folder, in lower case."""


def is_hidden(name: str) -> bool:
    """Of no interest to a person: hidden, or what macOS puts beside into archives."""
    return name.startswith('.') or name == '__MACOSX'


def is_picture(path: Path) -> bool:
    """Whether a file bears the suffix of a picture, and is not hidden.

    A link that leads nowhere is one too, so that it is named and not passed over.
    """
    named = path.suffix.lower() in SUFFIXES and path.name[0] != '.'
    return named and (path.is_file() or (path.is_symlink() and not path.exists()))


def pictures_in(folder: Path) -> list[str]:
    """Names of the pictures that lie in a folder itself, sorted.

    As :func:`is_picture`, without a look at each file: folders of ImageNet hold many.

    Raises:
        OSError: There is no such folder, or it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES
            and not is_hidden(entry.name)
            and not entry.is_dir()
        )


def is_utf8(name: str) -> bool:
    """Whether a name can be written down: a file system holds any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_utf8(path: str | os.PathLike[str]) -> None:
    """See that a path can be handed to OpenCV, which ends the process at others.

    Raises:
        PETLError: It is no UTF-8.
    """
    if not is_utf8(os.fspath(path)):
        raise PETLError(
            f'{ascii(os.fspath(path))} is no UTF-8; rename the file or folder'
        )


def files_below(folder: Path, leave: Path | None = None) -> list[Path]:
    """What is not hidden at any depth in a folder and is none, by path.

    Folders behind links are entered, and none within itself.

    Args:
        folder: The folder.
        leave: A folder below, resolved, that is left out.

    Raises:
        PETLError: A folder cannot be read.
    """
    return sorted(_below(folder, leave, ()))


def _below(folder: Path, leave: Path | None, above: tuple[str, ...]) -> Iterator[Path]:
    above = (*above, os.path.realpath(folder))
    try:
        entries = [e for e in os.scandir(folder) if not is_hidden(e.name)]
    except OSError as error:
        raise PETLError(
            f"the folder '{folder}' cannot be read: {error.strerror}"
        ) from None
    for entry in entries:
        if not entry.is_dir():
            yield Path(entry.path)
            continue
        real = os.path.realpath(entry.path)
        # A link may lead back to where it lies.
        if real not in above and (leave is None or real != str(leave)):
            yield from _below(Path(entry.path), leave, above)
