"""How far methods lie apart, who ranks where, and how settings matter.

Follows Mai et al., https://arxiv.org/abs/2409.16434. The test of ranks stands with the
tables (:mod:`mmpetl.benchmark`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmpetl.analysis.ensemble import ranks
from mmpetl.benchmark.statistics import levels
from mmpetl.core import PETLError

COLLAPSED = 0.5
"""A trial has collapsed whose score is below this share of the method's best."""


def accuracy_spread(values: np.ndarray) -> np.ndarray:
    """Best minus worst method per task, (tasks, methods) -> (tasks,); NaN is skipped.

    A task with fewer than two values has no spread, NaN.
    """
    known = np.isfinite(values)
    high = np.where(known, values, -np.inf).max(1)
    low = np.where(known, values, np.inf).min(1)
    return np.where(known.sum(1) > 1, high - low, np.nan)


def rank_table(values: np.ndarray) -> np.ndarray:
    """Rank of every method on every task, 1 for the best; ties share the mean.

    Args:
        values: (tasks, methods), NaN where there is none.

    Returns:
        The same shape, NaN where there is none.
    """
    table = np.full(values.shape, np.nan)
    for row, out in zip(values, table, strict=True):
        known = np.isfinite(row)
        out[known] = ranks(-levels(row[known]))
    return table


def rank_frequency(values: np.ndarray) -> np.ndarray:
    """How often each method takes each place, (methods, places).

    Methods that tie share their places: two at rank 1.5 count half at 1 and half at 2.
    So every row sums to the tasks that the method has.
    """
    table = rank_table(values)
    count = values.shape[1]
    found = np.zeros((count, count))
    for row in table:
        for method, rank in enumerate(row):
            if np.isfinite(rank):
                tied = int((row == rank).sum())
                first = round(rank - (tied - 1) / 2)
                found[method, first - 1 : first - 1 + tied] += 1 / tied
    return found


def trials_of(
    search: Mapping[str, Any], source: str = 'the record'
) -> list[dict[str, Any]]:
    """Finished trials of a search as ``{'options': {...}, 'value': float}``.

    Trials that failed or were pruned have no value and are left out.

    Args:
        search: What a record holds of the search that chose its settings.
        source: The record, for messages.

    Raises:
        PETLError: The search has no trials of this form.
    """
    trials = search.get('trials')
    if not isinstance(trials, Sequence):
        raise PETLError(f'{source} holds a search without trials')
    found = []
    for trial in trials:
        value, options = trial.get('value'), trial.get('options')
        if not isinstance(options, Mapping):
            raise PETLError(f'{source} holds a trial without options')
        if value is not None and np.isfinite(value):
            found.append({'options': dict(options), 'value': float(value)})
    return found


def sensitivity(values: Sequence[float]) -> dict[str, float]:
    """What the scores of one method's trials say of its sensitivity.

    Args:
        values: Validation scores, higher is better, 0 the worst possible.

    Returns:
        ``best``, ``median``, ``worst``, ``spread`` (best - worst), ``iqr``,
        ``collapse_rate`` (share below half of the best) and ``trials``.

    Raises:
        PETLError: There are none.
    """
    if not len(values):
        raise PETLError('a sensitivity needs at least one finished trial')
    array = np.asarray(values, np.float64)
    low, middle, high = np.quantile(array, (0.25, 0.5, 0.75))
    best = float(array.max())
    return {
        'best': best,
        'median': float(middle),
        'worst': float(array.min()),
        'spread': best - float(array.min()),
        'iqr': float(high - low),
        'collapse_rate': float((array < COLLAPSED * best).mean()),
        'trials': float(len(array)),
    }


def chosen_frequency(best: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each value of each setting was the best one; numbers to two digits."""
    found: dict[str, dict[str, int]] = {}
    for options in best:
        for key, value in options.items():
            row = found.setdefault(key, {})
            word = f'{value:.2g}' if isinstance(value, float) else str(value)
            row[word] = row.get(word, 0) + 1
    return found
