"""Local files that are whole or absent."""

from __future__ import annotations

import os

from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend


class AtomicLocalBackend(LocalBackend):
    """Local files that are whole or absent: written beside, flushed, then renamed."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes."""
        part = f'{os.fspath(filepath)}.part'
        os.makedirs(os.path.dirname(os.path.abspath(part)), exist_ok=True)
        with open(part, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, filepath)

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmpetl.atomic', AtomicLocalBackend, force=True)
