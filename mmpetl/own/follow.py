"""What other processes write to a file, shown as it comes."""

from __future__ import annotations

import codecs
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 0.5


@contextmanager
def shown(path: Path) -> Iterator[None]:
    """Print what is added to a file meanwhile; it need not be there yet."""
    begin = path.stat().st_size if path.is_file() else 0
    decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')

    def show() -> None:
        nonlocal begin
        if not path.is_file():
            return
        with open(path, 'rb') as file:
            file.seek(begin)
            added = file.read()
        begin += len(added)
        sys.stdout.write(decoder.decode(added))
        sys.stdout.flush()

    done = threading.Event()

    def follow() -> None:
        while not done.wait(PERIOD_S):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()
