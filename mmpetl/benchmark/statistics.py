"""What differences between methods are worth: ranks, paired tests, critical difference.

All functions take scores, higher is better, and know nothing of records. Sources:
Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7 (2006),
for Friedman, Iman-Davenport and Nemenyi; Holm (1979) for the correction.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.core import PETLError
from mmpetl.core.part_files import whole_file

Scores = Mapping[str, Mapping[str, float]]
"""Method to task to score."""

Runs = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Method to task to seed to score."""


DECIMALS = 4
"""Of percent, to which scores are told apart.

Metrics of upstream are float32, whose last digits are noise at 1e-6 percent, and a mean
depends on the order of its sum; one picture of 50,000 is 0.002.
"""

EDGE = 0.5 * 10**-DECIMALS
"""Scores that lie nearer than this are one: their difference rounds to nothing."""


def rounded(gaps: Iterable[float]) -> list[float]:
    """Differences of scores without what is noise in them."""
    return [round(gap, DECIMALS) for gap in gaps]


def levels(scores: Any) -> np.ndarray:
    """Whole numbers in place of scores along the last axis, higher for higher ones.

    Scores that are not told apart have one level. Rounding them would part two that
    lie on both sides of where it breaks.

    Args:
        scores: (..., n).

    Returns:
        The same shape.
    """
    scores = np.asarray(scores, np.float64)
    order = scores.argsort(axis=-1)
    steps = np.diff(np.take_along_axis(scores, order, -1), axis=-1) >= EDGE
    found = np.zeros(scores.shape, np.int64)
    np.put_along_axis(found, order[..., 1:], steps.cumsum(axis=-1), -1)
    return found


def shared_tasks(scores: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Tasks that every method has, in the order of the first method."""
    rows = list(scores.values())
    return [t for t in rows[0] if all(t in row for row in rows)] if rows else []


def shared_seeds(runs: Runs) -> int:
    """Fewest seeds that every method has on a shared task; 0 where there is no task."""
    return min(
        (
            len(set.intersection(*(set(row[task]) for row in runs.values())))
            for task in shared_tasks(runs)
        ),
        default=0,
    )


def task_ranks(scores: Scores) -> dict[str, dict[str, float]]:
    """Rank of each method on each shared task: 1 is best, ties share their mean.

    What is not told apart (:func:`levels`) ties.
    """
    from scipy.stats import rankdata

    methods = list(scores)
    ranks: dict[str, dict[str, float]] = {method: {} for method in methods}
    for task in shared_tasks(scores):
        column = rankdata(-levels([scores[method][task] for method in methods]))
        for method, rank in zip(methods, column, strict=True):
            ranks[method][task] = float(rank)
    return ranks


def mean_ranks(scores: Scores) -> dict[str, float]:
    """Mean over the shared tasks of a method's rank, best first."""
    means = {
        method: sum(row.values()) / len(row)
        for method, row in task_ranks(scores).items()
        if row
    }
    return dict(sorted(means.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class Friedman:
    """Whether any method differs from any other.

    Attributes:
        chi2: Friedman's statistic, corrected for ties.
        p: Its p-value, ``num_methods - 1`` degrees of freedom.
        f: The statistic of Iman and Davenport, less conservative.
        f_p: Its p-value.
        num_methods: Methods compared.
        num_tasks: Tasks they were compared on.
    """

    chi2: float
    p: float
    f: float
    f_p: float
    num_methods: int
    num_tasks: int


def iman_davenport(chi2: float, num_methods: int, num_tasks: int) -> float:
    """``(N - 1) chi2 / (N (k - 1) - chi2)``, F with (k-1), (k-1)(N-1) degrees."""
    rest = num_tasks * (num_methods - 1) - chi2
    return (num_tasks - 1) * chi2 / rest if rest > 1e-12 else math.inf


def friedman(scores: Scores) -> Friedman:
    """Friedman's test over the tasks that all methods share.

    Raises:
        PETLError: Fewer than three methods or two shared tasks.
    """
    from scipy.stats import f as f_distribution
    from scipy.stats import friedmanchisquare

    methods, tasks = list(scores), shared_tasks(scores)
    if len(methods) < 3 or len(tasks) < 2:
        raise PETLError(
            f'the Friedman test needs three methods that share two tasks; there are '
            f'{len(methods)} methods with {len(tasks)} shared tasks'
        )
    k, n = len(methods), len(tasks)
    columns = levels([[scores[m][task] for m in methods] for task in tasks]).T
    if (columns == columns[0]).all():
        # Nothing but ties: the statistic is 0 / 0.
        return Friedman(0.0, 1.0, 0.0, 1.0, k, n)
    chi2, p = friedmanchisquare(*columns)
    f = iman_davenport(float(chi2), k, n)
    f_p = float(f_distribution.sf(f, k - 1, (k - 1) * (n - 1)))
    return Friedman(float(chi2), float(p), f, f_p, k, n)


def critical_difference(num_methods: int, num_tasks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference between two mean ranks.

    ``q sqrt(k (k + 1) / (6 N))`` with q of the studentised range over sqrt(2).

    Args:
        num_methods: k, two or more.
        num_tasks: N, one or more.
        alpha: Error over all pairs, in (0, 1).
    """
    from scipy.stats import studentized_range

    if num_methods < 2 or num_tasks < 1 or not 0 < alpha < 1:
        raise PETLError(
            f'no critical difference for {num_methods} methods, {num_tasks} tasks and '
            f'alpha {alpha}; it takes two methods, one task and 0 < alpha < 1'
        )
    q = studentized_range.ppf(1 - alpha, num_methods, math.inf) / math.sqrt(2)
    k = num_methods
    return float(q) * math.sqrt(k * (k + 1) / (6 * num_tasks))


def cliques(ranks: Mapping[str, float], difference: float) -> list[tuple[str, ...]]:
    """Largest groups of methods whose mean ranks lie within a critical difference."""
    names = sorted(ranks, key=lambda name: ranks[name])
    found: list[tuple[int, int]] = []
    for start in range(len(names)):
        end = start
        while (
            end + 1 < len(names)
            and ranks[names[end + 1]] - ranks[names[start]] < difference
        ):
            end += 1
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return [tuple(names[start : end + 1]) for start, end in found]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the signed-rank test; 1 where nothing differs.

    Differences count without their noise (:func:`rounded`).
    """
    from scipy.stats import wilcoxon

    differences = rounded(differences)
    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def wilcoxon_ps(rows: Sequence[Sequence[float]]) -> list[float]:
    """:func:`wilcoxon_p` of each row, in few calls.

    Rows of one length go together where nothing is zero and no two sizes tie: scipy
    chooses one test for all that it gets, and for these it is the one of each.
    """
    from scipy.stats import wilcoxon

    rows = [rounded(row) for row in rows]
    found = [1.0] * len(rows)
    alike: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        sizes = {abs(value) for value in row}
        if row and 0 not in sizes and len(sizes) == len(row):
            alike[len(row)].append(place)
        else:
            found[place] = wilcoxon_p(row)
    for places in alike.values():
        p_values = wilcoxon([rows[place] for place in places], axis=1).pvalue
        for place, p in zip(places, p_values, strict=True):
            found[place] = float(p)
    return found


@dataclass(frozen=True)
class Pair:
    """Two methods on what both have done.

    Attributes:
        a: A method.
        b: The other.
        wins: Tasks on which a's mean over the shared seeds is higher.
        ties: Tasks on which the means differ by at most the margin, or by noise.
        losses: Tasks on which b's mean is higher.
        difference: Mean over tasks of a minus b, in points.
        num_runs: Pairs of the same task and seed.
        p_runs: Signed-rank test over these pairs, corrected over all pairs of methods.
            Seeds of a task are not independent, so it is the more lenient of the two.
        p_tasks: The same with each task's mean as one observation.
    """

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    difference: float
    num_runs: int
    p_runs: float
    p_tasks: float


def compare_pairs(runs: Runs, margin: float = 0.0) -> list[Pair]:
    """Win, tie and loss of every two methods, with paired tests.

    Args:
        runs: Scores by method, task and seed. What both have counts.
        margin: Differences of a task's mean up to this many points are ties.
    """
    rows = []
    for a, b in itertools.combinations(runs, 2):
        by_run: list[float] = []
        by_task: list[float] = []
        for task in runs[a]:
            seeds = sorted(set(runs[a][task]) & set(runs[b].get(task, ())))
            if seeds:
                gaps = [runs[a][task][s] - runs[b][task][s] for s in seeds]
                by_run += gaps
                by_task.append(sum(gaps) / len(gaps))
        if by_task:
            rows.append((a, b, by_run, rounded(by_task)))
    p_runs = holm(wilcoxon_ps([by_run for _, _, by_run, _ in rows]))
    p_tasks = holm(wilcoxon_ps([by_task for _, _, _, by_task in rows]))
    return [
        Pair(
            a,
            b,
            wins=sum(gap > margin for gap in by_task),
            ties=sum(abs(gap) <= margin for gap in by_task),
            losses=sum(gap < -margin for gap in by_task),
            difference=sum(by_task) / len(by_task),
            num_runs=len(by_run),
            p_runs=p_run,
            p_tasks=p_task,
        )
        for (a, b, by_run, by_task), p_run, p_task in zip(
            rows, p_runs, p_tasks, strict=True
        )
    ]


BAR = 'a bar: not shown to differ at the {:g} % level (Nemenyi), which is not equal'
"""What the picture says of its bars."""


def draw_critical_difference(
    ranks: Mapping[str, float],
    difference: float,
    path: str | os.PathLike,
    title: str = '',
    num_tasks: int | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    alpha: float = 0.05,
) -> Path:
    """The picture of Demsar: methods on a line of mean ranks.

    Bars join methods that are not shown to differ, and the picture says so.

    Args:
        ranks: Mean rank per method, 1 is best.
        difference: The critical difference.
        path: A file that matplotlib can write: PNG, SVG, PDF.
        title: A line above the picture.
        num_tasks: Tasks that the ranks are over, to be named.
        intervals: Ends of an interval of the mean rank per method, drawn as a line with
            caps beside its name.
        alpha: What the critical difference is for.

    Raises:
        PETLError: Fewer than two methods.
    """
    if len(ranks) < 2:
        raise PETLError(f'a picture of ranks needs two methods; there are {len(ranks)}')
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(ranks, key=lambda name: ranks[name])
    half = math.ceil(len(names) / 2)
    bars = cliques(ranks, difference)
    ends = [end for both in (intervals or {}).values() for end in both]
    low, high = 1, max(math.ceil(max([*ranks.values(), *ends])), 2)
    pad = (high - low) * 0.05
    bar_gap, row_gap = 0.22, 0.42
    depth = 0.35 + bar_gap * len(bars)
    height = 1.8 + 0.3 * (depth + row_gap * half)
    figure = Figure(figsize=(8.5, height + 0.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    # Best on the left, as one reads.
    axes.plot([low, high], [0, 0], color='black', lw=1)
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, 0.14], color='black', lw=1)
        if high - low <= 16 or (tick - low) % 2 == 0:
            axes.text(tick, 0.22, str(tick), ha='center', va='bottom', fontsize=9)
    axes.plot([low, min(low + difference, high)], [1.0, 1.0], color='black', lw=2)
    over = f', {num_tasks} tasks' if num_tasks else ''
    beyond = ', longer than this line' if difference > high - low else ''
    text = f'critical difference {difference:.2f}{over}{beyond}'
    axes.text(low, 1.12, text, fontsize=9)
    for level, bar in enumerate(bars):
        y = -0.2 - bar_gap * level
        start, end = ranks[bar[0]], ranks[bar[-1]]
        wide = pad * 0.25
        axes.plot([start - wide, end + wide], [y, y], color='#0b6e6e', lw=3)
    for place, name in enumerate(names):
        left = place < half
        row = place if left else len(names) - 1 - place
        y = -depth - row_gap * (row + 0.5)
        if intervals and not left:
            y -= row_gap / 2  # between those of the left, so that none overlaps
        edge = low - pad if left else high + pad
        rank = ranks[name]
        axes.plot([rank, rank, edge], [0, y, y], color='0.35', lw=0.8)
        if intervals and name in intervals:
            axes.plot(
                intervals[name], [y, y], color='#b3541e', lw=1.6, marker='|', ms=6
            )
        axes.text(
            edge - pad * 0.3 if left else edge + pad * 0.3,
            y,
            f'{name}  {rank:.2f}' if left else f'{rank:.2f}  {name}',
            ha='right' if left else 'left',
            va='center',
            fontsize=9,
        )
    room = (high - low) * 0.3
    axes.set_xlim(low - pad - room, high + pad + room)
    lines = [BAR.format(100 * alpha)] if bars else []
    if intervals:
        lines.append(
            'orange: 95 % interval of the mean rank, tasks and seeds resampled'
        )
    floor = -depth - row_gap * (half + 1)
    for place, line in enumerate(lines):
        y = floor - row_gap * (place + 0.2)
        axes.text(low - pad - room, y, line, fontsize=8, color='0.25', va='center')
    axes.set_ylim(floor - row_gap * (len(lines) + 0.2), 1.5)
    if title:
        axes.set_title(title, fontsize=10, loc='left')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, path.suffix) as part:
        figure.savefig(part, dpi=160)
    return path
