"""Local files that are whole or absent."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend

from mmpetl.core.part_files import part_name

_PART = re.compile(r'.+\.part')


def remove_parts(folder: str | os.PathLike) -> None:
    """Remove what writers that were killed have left; call it with the folder held."""
    folder = Path(folder)
    for path in folder.glob('*.part') if folder.is_dir() else ():
        if _PART.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


class AtomicLocalBackend(LocalBackend):
    """Local files that are whole or absent: written beside, flushed, then renamed."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes; where that fails, the file is as it was."""
        part = part_name(filepath)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, filepath)
        except OSError as error:
            if error.errno is not None:
                error.filename = os.fspath(filepath)
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmpetl.atomic', AtomicLocalBackend, force=True)


class Pace:
    """How often a file of some size may be written.

    Args:
        most_mb_per_s: Megabytes (10^6 bytes) for each second; None for no limit.
    """

    def __init__(self, most_mb_per_s: float | None = None) -> None:
        self.most = most_mb_per_s
        self._size = 0
        self._since = 0.0

    def is_soon(self) -> bool:
        """Whether the last one was written so short ago that another is too much."""
        if self.most is None or not self._size:
            return False
        return self._size > self.most * 1e6 * (time.monotonic() - self._since)

    def written(self, path: str | os.PathLike) -> None:
        """Note a file that was written; one that is elsewhere has no size."""
        with contextlib.suppress(OSError):
            self._size = os.path.getsize(path)
        self._since = time.monotonic()
