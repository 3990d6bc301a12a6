"""Two methods on the same test pictures: McNemar's test and the paired bootstrap.

Both ask whether one trained model is right more often than the other on pictures of
this kind. They say nothing of other seeds and tasks: two runs of one method with two
seeds may differ by them. Source of the test: McNemar, Psychometrika 12 (1947), with the
continuity correction of Edwards, Psychometrika 13 (1948).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmpetl.benchmark.designs import least_p
from mmpetl.benchmark.resampling import Interval, over_pictures
from mmpetl.benchmark.statistics import holm
from mmpetl.core import PETLError

EXACT_BELOW = 25
"""Discordant pictures below which McNemar's test is the exact binomial one."""


@dataclass(frozen=True)
class McNemar:
    """Whether two models are right on equally many pictures.

    Attributes:
        only_a: Pictures that only a has right.
        only_b: Pictures that only b has right.
        p: Two-sided.
        exact: Whether p is of the binomial distribution; else of chi-squared with the
            correction for continuity.
    """

    only_a: int
    only_b: int
    p: float
    exact: bool

    @property
    def discordant(self) -> int:
        """Pictures that exactly one of the two has right."""
        return self.only_a + self.only_b

    @property
    def least_p(self) -> float:
        """The p that as many discordant pictures can give at least, by counting."""
        return least_p(self.discordant)


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """McNemar's test of the pictures that only one of two models has right.

    Exact below :data:`EXACT_BELOW` of them; from there on
    ``(|a - b| - 1)^2 / (a + b)``, chi-squared with one degree of freedom.
    """
    from scipy.stats import binomtest, chi2

    num = only_a + only_b
    if num == 0:
        return McNemar(only_a, only_b, 1.0, True)
    if num < EXACT_BELOW:
        p = binomtest(only_a, num, 0.5).pvalue
        return McNemar(only_a, only_b, float(p), True)
    statistic = max(0, abs(only_a - only_b) - 1) ** 2 / num
    return McNemar(only_a, only_b, float(chi2.sf(statistic, 1)), False)


Hits = Mapping[str, Mapping[int, np.ndarray]]
"""Task to seed to (N,): whether a picture was right."""


@dataclass(frozen=True)
class PairOfModels:
    """Two methods on the pictures of the runs that both have.

    Attributes:
        a: A method.
        b: The other.
        tests: By task and seed; p as it is.
        corrected: The same p's after Holm's correction over all tests of the table.
        difference: Mean over tasks of a minus b, in points.
        interval: Of the difference, over pictures.
        pictures: Pictures by task.
    """

    a: str
    b: str
    tests: Mapping[tuple[str, int], McNemar]
    corrected: Mapping[tuple[str, int], float]
    difference: float
    interval: Interval
    pictures: Mapping[str, int]

    def found(self, alpha: float) -> tuple[int, int]:
        """Tests below alpha, corrected, in favour of a and of b."""
        low = [t for key, t in self.tests.items() if self.corrected[key] < alpha]
        return (
            sum(t.only_a > t.only_b for t in low),
            sum(t.only_a < t.only_b for t in low),
        )


@dataclass
class _Found:
    """What is known of a pair before the correction."""

    tests: dict[tuple[str, int], McNemar] = field(default_factory=dict)
    gaps: dict[str, np.ndarray] = field(default_factory=dict)


def compare_models(
    hits: Mapping[str, Hits], pairs: Sequence[tuple[str, str]]
) -> list[PairOfModels]:
    """Per-picture tests of pairs of methods.

    Args:
        hits: By method. Runs of one task must have seen the same pictures in the same
            order.
        pairs: Names of methods. A pair with no task and seed in common is left out.

    Raises:
        PETLError: Runs of one task have another number of pictures.
    """
    found = {}
    for a, b in pairs:
        one = _compare(hits[a], hits[b], f'{a} and {b}')
        if one.tests:
            found[a, b] = one
    keys = [(pair, key) for pair, one in found.items() for key in one.tests]
    values = holm([found[pair].tests[key].p for pair, key in keys])
    adjusted = dict(zip(keys, values, strict=True))
    return [
        PairOfModels(
            a,
            b,
            one.tests,
            {key: adjusted[(a, b), key] for key in one.tests},
            float(np.mean([100 * gap.mean() for gap in one.gaps.values()])),
            over_pictures([100 * gap for gap in one.gaps.values()]),
            {task: len(gap) for task, gap in one.gaps.items()},
        )
        for (a, b), one in found.items()
    ]


def _compare(a: Hits, b: Hits, names: str) -> _Found:
    found = _Found()
    for task in a:
        seeds = sorted(set(a[task]) & set(b.get(task, ())))
        gaps = []
        for seed in seeds:
            one, other = a[task][seed], b[task][seed]
            if one.shape != other.shape:
                raise PETLError(
                    f'{names} on {task}, seed {seed}: {len(one)} and {len(other)} '
                    'pictures; a paired test needs the same ones'
                )
            found.tests[task, seed] = mcnemar(
                int((one & ~other).sum()), int((other & ~one).sum())
            )
            gaps.append(one.astype(np.int8) - other.astype(np.int8))
        if gaps:
            found.gaps[task] = np.mean(gaps, axis=0)
    return found
