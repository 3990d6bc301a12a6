"""Files that are whole or absent: written beside their names, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_name(path: str | os.PathLike, suffix: str = '') -> Path:
    """A name beside ``path`` that no other writer uses; it ends with ``.part``.

    Two processes that write the same file must not write the same temporary file: what
    is renamed would hold a part of each.

    Args:
        path: The file that is to be.
        suffix: What follows ``.part``, for writers that go by the ending.
    """
    path = Path(os.path.abspath(path))
    # The number of a process is not enough where machines share a folder.
    writer = f'{os.getpid()}-{secrets.token_hex(4)}'
    name = os.fsdecode(os.fsencode(path.name)[:160])  # file systems count bytes
    return path.with_name(f'{name}.{writer}.part{suffix}')


@contextmanager
def whole_file(path: str | os.PathLike, suffix: str = '') -> Iterator[Path]:
    """A file to write to that takes its name at the end; with an error, it goes.

    Args:
        path: The file that is to be.
        suffix: As in :func:`part_name`.
    """
    part = part_name(path, suffix)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
