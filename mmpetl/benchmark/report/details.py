"""What the page tells of a single run: everything its record knows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmpetl.benchmark.records import Record

ELSEWHERE = ('job', 'curves', 'family', 'task', 'group', 'backbone', 'primary', 'ppt')
"""Fields that the page has in its rows, or draws."""

MAX_TEXT = 4000
"""Characters of an error that the page carries; of longer ones the end."""


def details(
    records: Sequence[Record], verdicts: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[Any]]]:
    """Fields of the records, each distinct value once.

    Args:
        records: Those of the page's rows, in their order.
        verdicts: Standing of runs by their ids.

    Returns:
        Name to ``values`` and ``codes``; a code by the place of the record. What a
        record does not know is None.
    """
    names = [f.name for f in dataclasses.fields(Record) if f.name not in ELSEWHERE]
    fields = {name: [getattr(record, name) for record in records] for name in names}
    fields['search'] = [_search(record) for record in records]
    fields['error'] = [record.error and record.error[-MAX_TEXT:] for record in records]
    known = verdicts or {}
    fields['verified'] = [known.get(record.job.id) for record in records]
    for name in ('recipe', 'options', 'leaf'):
        fields[name] = [getattr(record.job, name) for record in records]
    return {name: _distinct(values) for name, values in fields.items()}


def _search(record: Record) -> dict[str, Any] | None:
    """A search without its trials, which stand in their own table."""
    if record.search is None:
        return None
    found = {k: v for k, v in record.search.items() if k != 'trials'}
    return {**found, 'trials': len(record.search.get('trials', ()))}


def _distinct(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Values by code; equal ones, however deep, have one code."""
    codes: dict[str, int] = {}
    found, places = [], []
    for value in values:
        plain = _plain(value)
        key = json.dumps(plain, sort_keys=True)
        if key not in codes:
            codes[key] = len(found)
            found.append(plain)
        places.append(codes[key])
    return {'values': found, 'codes': places}


def _plain(value: Any) -> Any:
    """A value as JSON; what is empty or not finite is not known."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()} or None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] or None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value) or None
