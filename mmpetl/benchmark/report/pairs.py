"""Method against method, as the page shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmpetl.benchmark.statistics import Runs, compare_pairs

LEVEL = 0.95
"""Confidence of the intervals."""

INTERVAL = (
    'The interval is that of Student’s t over the means of tasks, or over seeds where '
    'there is one task, of each pair by itself; a dash where there is one observation.'
)

TESTS = (
    'p: two-sided signed-rank tests (Wilcoxon), corrected over all pairs of the suite '
    '(Holm). Runs of one task are not independent: trust the one over tasks.'
)


def pairs(runs: Runs) -> dict[str, Any]:
    """Every two methods on the tasks and seeds that both have.

    Returns:
        ``labels``, ``pairs`` with the places of two labels and what was found, and what
        must be said of it.
    """
    labels = list(runs)
    place = {label: i for i, label in enumerate(labels)}
    found = []
    for pair in compare_pairs(runs):
        gaps = _gaps(runs, pair.a, pair.b)
        low, high = interval(gaps if len(gaps) > 1 else _by_seed(runs, pair.a, pair.b))
        found.append(
            {
                'a': place[pair.a],
                'b': place[pair.b],
                'difference': round(pair.difference, 4),
                'low': low,
                'high': high,
                'wins': pair.wins,
                'ties': pair.ties,
                'losses': pair.losses,
                'tasks': len(gaps),
                'runs': pair.num_runs,
                'p_tasks': _digits(pair.p_tasks) if len(gaps) > 1 else None,
                'p_runs': _digits(pair.p_runs) if pair.num_runs > 1 else None,
            }
        )
    return {
        'labels': labels,
        'pairs': found,
        'level': f'{100 * LEVEL:g} %',
        'interval': INTERVAL,
        'tests': TESTS,
    }


def _gaps(runs: Runs, a: str, b: str) -> list[float]:
    """Mean difference of each task that both have."""
    found = []
    for task in runs[a]:
        seeds = set(runs[a][task]) & set(runs[b].get(task, ()))
        if seeds:
            gaps = [runs[a][task][seed] - runs[b][task][seed] for seed in seeds]
            found.append(sum(gaps) / len(gaps))
    return found


def _by_seed(runs: Runs, a: str, b: str) -> list[float]:
    """Differences of all runs of one task and seed."""
    return [
        runs[a][task][seed] - other
        for task in runs[a]
        for seed, other in runs[b].get(task, {}).items()
        if seed in runs[a][task]
    ]


def interval(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's interval of a mean of paired differences; None below two of them."""
    from scipy.stats import t

    count = len(gaps)
    if count < 2:
        return None, None
    mean = sum(gaps) / count
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (count - 1) / count)
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return round(mean - reach, 4), round(mean + reach, 4)


def _digits(value: float) -> float:
    return float(f'{value:.3g}')
