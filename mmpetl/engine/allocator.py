"""Memory of a process that trains on a CPU: kept for its next step."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of ``mallopt``'s settings in glibc's malloc.h."""

KEPT_BYTES = 2**31 - 1
"""Free bytes at the end of the heap from which on some are given back; the most."""
HEAP_BYTES = (2**30, 2**25)
"""From this size on a block is asked of the system alone, and given back when freed;
the second where the first is more than a glibc takes."""

SAID = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'GLIBC_TUNABLES')
"""Variables by which a user says it himself."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, where its C library can be told to.

    A step frees what it has kept for the backward pass, and the next one asks for the
    same again. By default glibc gives large blocks back to the system in between, which
    clears each page anew. The peak of memory is the same; between two peaks the process
    holds on to it.

    Returns:
        Whether it does: not where the library is another one, or the user has said how
        memory is to be kept.
    """
    if not sys.platform.startswith('linux') or any(name in os.environ for name in SAID):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    # The other way round a failure would leave small blocks to the system, too.
    larger = any(library.mallopt(MMAP_THRESHOLD, size) for size in HEAP_BYTES)
    return larger and bool(library.mallopt(TRIM_THRESHOLD, KEPT_BYTES))
