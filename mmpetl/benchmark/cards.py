"""What the trust scorecard has measured of runs, for those who choose between them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.verdicts import digest_of
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json


class Card(msgspec.Struct):
    """What is read of a card of ``mmpetl benchmark scorecard``.

    Attributes:
        key: What it was measured with: ``record`` is the digest of the record's file.
        values: By the name of the measure; a text says why there is no number.
    """

    key: dict[str, Any]
    values: dict[str, float | str | None]


@dataclass(frozen=True)
class Measured:
    """What is known of one run beside its record.

    Attributes:
        latency_seconds: Time of a prediction of one sample; None where not measured.
        folds: Whether the trained model was folded and gave the same; None unknown.
    """

    latency_seconds: float | None
    folds: bool | None


def read_cards(
    out: str | os.PathLike, records: Iterable[Record]
) -> dict[str, Measured]:
    """What was measured of runs, by their ids; cards of another record are left out.

    Args:
        out: The benchmark folder; cards lie below ``scorecard/cells``.
        records: Those of runs.

    Raises:
        PETLError: A card is damaged.
    """
    store = RecordStore(out)
    found = {}
    for record in records:
        path = Path(out) / 'scorecard' / 'cells' / f'{record.job.id}.json'
        if not os.path.lexists(path):
            continue
        card = read_json(path, Card, 'card of a run')
        if card.key.get('record') != digest_of(
            store.folder(record.job) / 'record.json'
        ):
            continue
        latency, folds = card.values.get('latency_ms_1'), card.values.get('folds')
        if isinstance(latency, float | int) and latency < 0:
            raise PETLError(
                f'{path} has a latency of {latency} ms; remove it, and run '
                'tools/benchmark/scorecard.py again'
            )
        found[record.job.id] = Measured(
            latency / 1000 if isinstance(latency, float | int) else None,
            not folds.startswith('no') if isinstance(folds, str) else None,
        )
    return found
