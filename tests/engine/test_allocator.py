"""A run on a CPU asks the system once for the memory of its steps."""

from __future__ import annotations

import os
import subprocess
import sys

from mmpetl.engine import allocator

STEPS = """
import resource, runpy, sys
import numpy
found = runpy.run_path(sys.argv[1])  # alone: mmpetl takes seconds to import
kept = found["keep_freed_memory"]() if sys.argv[2:] else None
def step():  # 64 blocks of 1 MiB
    return sum(t.sum() for t in [numpy.ones(2**17) for _ in range(64)])
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*args: str, **more: str) -> tuple[str, int]:
    """What the function answers, and pages that four further steps ask for."""
    env = {k: v for k, v in os.environ.items() if k not in allocator.SAID} | more
    done = subprocess.run(
        [sys.executable, '-c', STEPS, allocator.__file__, *args],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def test_freed_memory_serves_the_next_step() -> None:
    pages = 64 * 2**20 // os.sysconf('SC_PAGE_SIZE')
    kept, count = faults('keep')
    assert kept == 'True'
    assert count < pages / 10
    assert faults()[1] > pages, 'it would have been kept anyhow'


def test_what_the_user_has_said_stands() -> None:
    assert faults('keep', MALLOC_TRIM_THRESHOLD_='131072')[0] == 'False'
