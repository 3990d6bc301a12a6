"""What a process has loaded is spared when MMEngine collects garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heap_spared() -> Iterator[None]:
    """Let a collection look only at what is made from here on.

    MMEngine's data sets collect garbage when they are built, to be rid of what their
    lists were read into. Over all modules that a run has imported each collection takes
    a fifth of a second, and finds nothing there. Behind this they are looked at as
    before, so nothing is kept for good.
    """
    if gc.get_freeze_count():  # the process has decided for itself
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
