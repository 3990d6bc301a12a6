"""Intervals by the bootstrap: over pictures, and over tasks and seeds.

Percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13), from a fixed seed, so that the same records give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmpetl.benchmark.statistics import Runs, levels, shared_tasks
from mmpetl.core import PETLError

RESAMPLES = 10_000
"""Over pictures, where one costs little."""

RUN_RESAMPLES = 2_000
"""Over tasks and seeds."""

SEED = 0
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        resamples: How many resamples it is of.
        level: Share of them between the ends.
    """

    low: float
    high: float
    resamples: int
    level: float = LEVEL

    @property
    def has_zero(self) -> bool:
        """Whether no difference is within it."""
        return self.low <= 0 <= self.high


def interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """The percentile interval of resampled values (R,)."""
    edge = (1 - level) / 2
    low, high = np.quantile(values, [edge, 1 - edge])
    return Interval(float(low), float(high), len(values), level)


def over_pictures(
    differences: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Interval:
    """Interval of a mean over tasks of mean differences, pictures drawn anew.

    The pictures of each task are drawn with replacement; tasks and trained models stay.
    So it says how much the choice of test pictures matters, and nothing of other tasks
    or seeds.

    Args:
        differences: Per task (N,): what one method has of a picture less what the
            other has, averaged over seeds.
        resamples: How many.
        seed: Of the draws.
        level: Share of the resamples between the ends.

    Raises:
        PETLError: There is no task, or one without a picture.
    """
    if not differences or not all(len(d) for d in differences):
        raise PETLError('no interval over pictures: a task has no picture')
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for values in differences:
        # Pictures with one difference are alike: how often each kind is drawn is
        # multinomial, which is what drawing the pictures would give.
        kinds, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
        num = counts.sum()
        drawn = rng.multinomial(num, counts / num, size=resamples)
        total += drawn @ kinds / num
    return interval(total / len(differences), level)


def over_runs(
    runs: Runs,
    resamples: int = RUN_RESAMPLES,
    seed: int = SEED,
) -> np.ndarray | None:
    """Scores of methods on resampled tasks and seeds.

    Tasks are drawn with replacement, and within each the seeds that all methods have,
    for all methods the same ones.

    Args:
        runs: Scores by method, task and seed.
        resamples: How many.
        seed: Of the draws.

    Returns:
        Means over the seeds drawn (resamples, tasks, methods); None where one task with
        one seed leaves nothing to draw.

    Raises:
        PETLError: The methods share no task, or no seed of one.
    """
    cells = _cells(runs)
    if len(cells) < 2 and all(cell.shape[1] < 2 for cell in cells):
        return None
    rng = np.random.default_rng(seed)
    places = rng.integers(len(cells), size=(resamples, len(cells)))
    scores = np.empty((*places.shape, len(runs)))
    for place, cell in enumerate(cells):
        at = places == place
        drawn = rng.integers(cell.shape[1], size=(at.sum(), cell.shape[1]))
        scores[at] = cell[:, drawn].mean(axis=2).T
    return scores


def _cells(runs: Runs) -> list[np.ndarray]:
    """Per shared task the scores (methods, shared seeds)."""
    tasks = shared_tasks(runs)
    if not tasks:
        raise PETLError(f'no interval: {", ".join(runs)} have no task in common')
    cells = []
    for task in tasks:
        seeds = set.intersection(*(set(row[task]) for row in runs.values()))
        if not seeds:
            raise PETLError(
                f'no interval: the methods have no seed in common on {task}'
            )
        cells.append(
            np.array([[row[task][s] for s in sorted(seeds)] for row in runs.values()])
        )
    return cells


@dataclass(frozen=True)
class Uncertain:
    """A method among others, with what other tasks and seeds might have given.

    Attributes:
        mean: Interval of the mean over tasks.
        rank: Interval of the mean rank; 1 is best.
        best: Share of the resamples in which its mean rank is the best; shared evenly
            where several are.
    """

    mean: Interval
    rank: Interval
    best: float


def uncertainty(
    runs: Runs, resamples: int = RUN_RESAMPLES, seed: int = SEED
) -> Mapping[str, Uncertain] | None:
    """Intervals of every method's mean and mean rank among the others.

    Returns:
        By method; None where one task with one seed leaves nothing to draw.
    """
    from scipy.stats import rankdata

    scores = over_runs(runs, resamples, seed)
    if scores is None:
        return None
    means = scores.mean(axis=1)
    ranks = rankdata(-levels(scores), axis=2).mean(axis=1)
    first = np.isclose(ranks, ranks.min(axis=1, keepdims=True), atol=1e-12)
    shares = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return {
        name: Uncertain(interval(means[:, i]), interval(ranks[:, i]), float(shares[i]))
        for i, name in enumerate(runs)
    }
