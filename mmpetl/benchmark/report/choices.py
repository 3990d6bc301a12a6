"""What the page needs to answer which method to take, as the command does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmpetl.benchmark.cards import Measured
from mmpetl.benchmark.choosing import KINDS, facts_of, kind_of
from mmpetl.benchmark.choosing_text import resampling_note
from mmpetl.benchmark.designs import ALPHA
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.resampling import LEVEL, RUN_RESAMPLES, SEED
from mmpetl.benchmark.statistics import EDGE, wilcoxon_ps
from mmpetl.benchmark.table_parts import Table
from mmpetl.benchmark.tables import runs_of


def draws() -> dict[str, Any]:
    """Where the bootstrap's generator begins, and what is made of its draws."""
    found = np.random.default_rng(SEED).bit_generator.state
    return {
        # 128 bits are more than a number of JSON holds.
        'state': str(found['state']['state']),
        'increment': str(found['state']['inc']),
        'resamples': RUN_RESAMPLES,
        'level': LEVEL,
        'alpha': ALPHA,
        'edge': EDGE,
        'note': resampling_note(),
    }


def choice(
    table: Table,
    records: Sequence[Record],
    cards: Mapping[str, Measured] | None = None,
) -> dict[str, Any]:
    """Costs and tests of a table's rows, whichever limits will be set.

    Args:
        table: The table.
        records: Those that it may be of.
        cards: What the scorecard has measured of runs, by their ids.
    """
    by_label: dict[str, list[Record]] = {}
    kinds = set()
    for record, label in runs_of(table, records):
        by_label.setdefault(label, []).append(record)
        kinds.add(kind_of(record))
    kinds &= set(KINDS.values())
    facts = {}
    for row in table.rows:
        found = facts_of(by_label.get(row.label, ()), cards)
        facts[row.label] = {
            'memory': found.memory_bytes,
            'trainable': found.trainable,
            'step': found.step_seconds,
            'latency': found.latency_seconds,
            'folds': found.folds,
        }
    scores = table.scores()
    whole = list(scores)
    columns = [[scores[label][task] for task in table.tasks] for label in whole]
    gaps = [
        [a - b for a, b in zip(one, other, strict=True)]
        for one, other in combinations(columns, 2)
    ]
    return {
        'title': table.title,
        'kind': kinds.pop() if len(kinds) == 1 else None,
        'tasks': list(table.tasks),
        'facts': facts,
        'whole': whole,
        # Pairs in the order of itertools.combinations over `whole`.
        'p': wilcoxon_ps(gaps),
    }
