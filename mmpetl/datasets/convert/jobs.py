"""Many small pieces of work: several at a time, with a bar, all failures told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from mmpetl.core import PETLError

Item = TypeVar('Item')
Result = TypeVar('Result')

MAX_FAILURES = 20
"""So many failures show what is wrong; the rest of a long conversion is spared."""


def default_workers() -> int:
    """Threads to use unless told: decoding and encoding leave the interpreter alone."""
    return min(8, os.cpu_count() or 1)


def run_all(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    workers: int,
    title: str,
    total: int | None = None,
) -> list[Result]:
    """Do ``work`` on each item; results come in the order of the items.

    Items are drawn as workers become free, so that a stream is never held in memory.

    Args:
        items: What to work on. Drawn by the calling thread.
        work: Called in one of ``workers`` threads.
        workers: At least 1.
        title: In front of the bar.
        total: Number of items, if known.

    Raises:
        PETLError: The first failure and how many there were.
    """
    from tqdm import tqdm

    results: dict[int, Result] = {}
    failures: list[str] = []
    pending: dict[Future, int] = {}
    pool = ThreadPoolExecutor(workers)
    # disable=None: no bar where output goes into a file.
    bar = tqdm(total=total, desc=title, unit='file', disable=None)

    def collect(done: Iterable[Future]) -> None:
        for future in done:
            index = pending.pop(future)
            try:
                results[index] = future.result()
            except PETLError as error:
                failures.append(str(error))
            bar.update()

    try:
        for index, item in enumerate(items):
            pending[pool.submit(work, item)] = index
            if len(pending) >= 2 * workers:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
            if len(failures) >= MAX_FAILURES:
                break
        collect(list(wait(pending).done))
    finally:
        bar.close()
        pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        more = f' (and {len(failures) - 1} more failures)' if failures[1:] else ''
        raise PETLError(failures[0] + more)
    return [results[index] for index in sorted(results)]
