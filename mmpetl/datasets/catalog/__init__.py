"""Every data set that the project speaks of: what it is and where it lies on disk.

One row per data set, read by the dataset classes, the mini generator, the verifier and
the documentation. Names are those of the published result tables. A path is
``<data root>/<base>/<folder>/<split's list>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mmpetl.core import PETLError, suggest
from mmpetl.datasets.catalog.dense_rows import DENSE_ROWS
from mmpetl.datasets.catalog.entry import (
    Benchmark,
    DatasetFacts,
    Family,
    Layout,
    Split,
)
from mmpetl.datasets.catalog.fgvc_rows import FGVC_ROWS
from mmpetl.datasets.catalog.study_rows import STUDY_ROWS
from mmpetl.datasets.catalog.video_rows import VIDEO_ROWS
from mmpetl.datasets.catalog.vtab_rows import VTAB_ROWS

__all__ = [
    'BENCHMARK_IDS',
    'CATALOG',
    'Benchmark',
    'DatasetFacts',
    'Family',
    'Layout',
    'Split',
    'facts_of',
    'select',
]

_ROWS = (*VTAB_ROWS, *FGVC_ROWS, *VIDEO_ROWS, *DENSE_ROWS, *STUDY_ROWS)

CATALOG: Mapping[str, DatasetFacts] = {facts.id: facts for facts in _ROWS}
"""Every data set by its id: the benchmark's thirty first, then the others."""

BENCHMARK_IDS: tuple[str, ...] = tuple(
    facts.id
    for facts in CATALOG.values()
    if facts.benchmark != 'study' and facts.id != 'voc_seg'
)
"""The thirty data sets of the benchmark."""


def facts_of(name: str) -> DatasetFacts:
    """A data set by id or alias.

    Raises:
        PETLError: There is none of that name.
    """
    if name in CATALOG:
        return CATALOG[name]
    for facts in CATALOG.values():
        if name in facts.aliases:
            return facts
    raise PETLError(
        f"There is no data set '{name}'.{suggest(name, CATALOG)} "
        f'There are: {", ".join(CATALOG)}.'
    )


def select(names: Iterable[str] = ()) -> tuple[DatasetFacts, ...]:
    """Data sets by id, alias, benchmark (``vtab``), group or family; all without names.

    Raises:
        PETLError: A name that is none of these.
    """
    found: dict[str, DatasetFacts] = {}
    wanted = list(names)
    if not wanted:
        return tuple(CATALOG.values())
    for name in wanted:
        if name in CATALOG:
            found[name] = CATALOG[name]
            continue
        members = _where(lambda facts, n=name: n in (facts.benchmark, facts.group))
        members = members or _where(lambda facts, n=name: n == facts.family)
        for facts in members or (facts_of(name),):
            found[facts.id] = facts
    return tuple(found.values())


def _where(test: Callable[[DatasetFacts], bool]) -> tuple[DatasetFacts, ...]:
    return tuple(facts for facts in CATALOG.values() if test(facts))
