"""Which test pictures the runs of a table have right, from their predictions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mmpetl.benchmark.collect import PREDICTIONS
from mmpetl.benchmark.paired import PairOfModels, compare_models
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.table_parts import Table
from mmpetl.benchmark.tables import runs_of

TOP1 = 'top1'
"""The only metric that is a mean over pictures of right and wrong."""


@dataclass(frozen=True)
class Pictures:
    """What is known of the pictures behind a table.

    Attributes:
        hits: Method to task to seed to (N,): whether a picture was right.
        missing: Runs without predictions, by id.
        other: Runs whose labels are not those of most runs of their task, by id: other
            pictures, or another order.
    """

    hits: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]]
    missing: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        return [
            f'{len(names)} runs {why}, {names[0]} for one; they are not compared '
            'picture by picture.'
            for names, why in (
                (self.missing, 'have no predictions'),
                (self.other, 'were tested on other labels than most of their task'),
            )
            if names
        ]


def pictures_of(
    table: Table,
    records: Iterable[Record],
    store: RecordStore,
    rows: Collection[str] | None = None,
) -> Pictures:
    """Read the predictions of a table's runs.

    Args:
        table: What :func:`mmpetl.benchmark.tables.build_tables` gives. One of another
            metric than accuracy has no pictures that are right or wrong.
        records: Those that it was built from.
        store: Where their runs lie.
        rows: Only those of these labels, of the rows that may be compared.

    Raises:
        PETLError: A file of predictions is damaged.
    """
    from mmpetl.engine.hooks.predictions import read_predictions

    known = {row.label for row in table.rows if not row.source and not row.marks}
    if table.metric.key != TOP1:
        return Pictures({})
    found: dict[str, list[tuple[Record, str, np.ndarray, np.ndarray]]] = {}
    missing = []
    for record, label in runs_of(table, records):
        if label not in known or (rows is not None and label not in rows):
            continue
        path = store.folder(record.job) / PREDICTIONS
        if not path.is_file():
            missing.append(record.job.id)
            continue
        logits, labels = read_predictions(path)
        hits = logits.argmax(axis=1) == labels
        found.setdefault(record.task, []).append((record, label, hits, labels))
    result: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    other = []
    for task, runs in found.items():
        texts = [labels.tobytes() for *_, labels in runs]
        usual = max(texts, key=texts.count)
        for (record, label, hits, _), text in zip(runs, texts, strict=True):
            if text != usual:
                other.append(record.job.id)
                continue
            by_task = result.setdefault(label, {})
            by_task.setdefault(task, {})[record.job.seed] = hits
    order = [row.label for row in table.rows if row.label in result]
    return Pictures({x: result[x] for x in order}, tuple(missing), tuple(other))


def pairs_of(pictures: Pictures) -> list[PairOfModels]:
    """Per-picture tests of every two rows."""
    return compare_models(pictures.hits, list(itertools.combinations(pictures.hits, 2)))
