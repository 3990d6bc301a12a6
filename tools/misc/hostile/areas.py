"""All rows of the table, in its order."""

from __future__ import annotations

from hostile import (
    converters,
    dense,
    kept,
    lists,
    options,
    plans,
    published,
    records,
    runs,
    weights,
)
from hostile.case import Area, Case

AREAS: tuple[Area, ...] = (
    weights.AREA,
    weights.REGISTRIES,
    runs.AREA,
    published.AREA,
    published.PACKED,
    published.FOLD,
    lists.VTAB,
    lists.FGVC,
    lists.PICTURES,
    dense.AREA,
    converters.AREA,
    plans.AREA,
    plans.SEARCH,
    records.AREA,
    kept.AREA,
    options.OPTIONS,
    options.SYSTEM,
)


def all_cases() -> list[Case]:
    """Every row."""
    return [case for area in AREAS for case in area.cases]
