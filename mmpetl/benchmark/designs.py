"""What a design can show at all, and how much of it would be needed.

A test over few observations has a least p: with three tasks a signed-rank test of two
methods cannot go below 0.25, whatever is measured. This is known before a run. Sources:
Wilcoxon (1945) and McNemar (1947) for the exact distributions, whose most extreme
outcome has probability ``2 * 2 ** -n`` on both sides; Friedman (1937); Demsar, JMLR 7
(2006), for Nemenyi's critical difference; Connor, Biometrics 43 (1987), for pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmpetl.benchmark.records import Job
from mmpetl.benchmark.statistics import critical_difference
from mmpetl.core import PETLError

ALPHA = 0.05
POWER = 0.8

MOST = 1_000_000
"""More observations than this are said to be out of reach."""


def least_p(num: int) -> float:
    """Least two-sided p of a sign test, signed-rank test or exact McNemar's test.

    Args:
        num: Observations that differ: tasks, seeds, or discordant pictures.
    """
    return min(1.0, 2.0 ** (1 - num))


def least_p_friedman(num_methods: int, num_tasks: int) -> float:
    """Probability that every task ranks the methods alike by chance.

    By counting: ``k!`` orders of each task but the first, of which one will do. The
    chi-squared that Friedman's test is computed by may give less, and is then wrong.
    """
    return math.exp(-(num_tasks - 1) * math.lgamma(num_methods + 1))


def num_needed(alpha: float = ALPHA, num_tests: int = 1) -> int:
    """Observations with which :func:`least_p` times the tests is below alpha (Holm)."""
    _check(alpha)
    num = 1
    while num_tests * 2.0 ** (1 - num) >= alpha:
        num += 1
    return num


def num_needed_nemenyi(num_methods: int, alpha: float = ALPHA) -> int:
    """Tasks with which the best and the worst of k methods can differ by Nemenyi."""
    one = critical_difference(num_methods, 1, alpha)
    return math.floor((one / (num_methods - 1)) ** 2) + 1


def num_for_effect(
    effect: float, spread: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Tasks (or seeds) for a mean difference to be found with a given power.

    The number of a paired t-test, from the noncentral t distribution, over 3 / pi, the
    asymptotic efficiency of the signed-rank test for normal differences; at least
    :func:`num_needed`.

    Args:
        effect: Mean of the differences, in points.
        spread: Their standard deviation over tasks, in points.
        alpha: Two-sided error of the first kind.
        power: Probability to find it.

    Returns:
        None where no number below a million is enough.
    """
    _check(alpha)
    _check(power)
    least = num_needed(alpha)
    if effect == 0:
        return None
    if spread == 0:
        return least
    size = abs(effect) / spread
    high = 2
    while _t_power(high, size, alpha) < power:
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if _t_power(middle, size, alpha) < power:
            low = middle
        else:
            high = middle
    return max(least, math.ceil(high * math.pi / 3))


def _t_power(num: int, size: float, alpha: float) -> float:
    from scipy.stats import nct, t

    if num < 2:
        return 0.0
    edge, shift = t.ppf(1 - alpha / 2, num - 1), size * math.sqrt(num)
    above = nct.sf(edge, num - 1, shift)
    below = nct.cdf(-edge, num - 1, shift)
    # Far out, the lower tail is beyond what scipy computes, and nothing.
    return float(above) + (0.0 if math.isnan(below) else float(below))


def num_pictures(
    difference: float, discordant: float, alpha: float = ALPHA, power: float = POWER
) -> int:
    """Pictures for McNemar's test to find a difference of accuracy.

    ``((z_a sqrt(D) + z_b sqrt(D - d^2)) / d)^2`` of Connor (1987), with D the share of
    pictures on which exactly one of the two is right.

    Args:
        difference: d, of the two accuracies, parts of one.
        discordant: D, parts of one; at least ``|d|``.
        alpha: Two-sided error of the first kind.
        power: Probability to find it.
    """
    from scipy.stats import norm

    _check(alpha)
    _check(power)
    if not 0 < abs(difference) <= discordant <= 1:
        raise PETLError(
            f'no number of pictures for a difference of {difference} with '
            f'{discordant} discordant; it takes 0 < |difference| <= discordant <= 1'
        )
    at_null = norm.isf(alpha / 2) * math.sqrt(discordant)
    at_effect = norm.isf(1 - power) * math.sqrt(discordant - difference**2)
    return math.ceil(((at_null + at_effect) / difference) ** 2)


def _check(part: float) -> None:
    if not 0 < part < 1:
        raise PETLError(f'alpha and power lie between 0 and 1, not at {part}')


@dataclass(frozen=True)
class Design:
    """Methods on tasks with seeds, before anything was measured.

    Attributes:
        name: Name of the set of tasks.
        num_methods: Methods that do every task.
        num_tasks: Tasks.
        num_seeds: Seeds that every method has on every task.
        alpha: The p to stay below.
    """

    name: str
    num_methods: int
    num_tasks: int
    num_seeds: int
    alpha: float = ALPHA

    @property
    def num_pairs(self) -> int:
        """Pairs of methods."""
        return self.num_methods * (self.num_methods - 1) // 2

    @property
    def reaches(self) -> bool:
        """Whether a test of two methods over tasks can be below alpha."""
        return least_p(self.num_tasks) < self.alpha

    @property
    def reaches_all(self) -> bool:
        """Whether it can with the correction of Holm over all pairs."""
        return self.num_pairs * least_p(self.num_tasks) < self.alpha

    @property
    def ranks_reach(self) -> bool:
        """Whether two mean ranks can be as far apart as Nemenyi asks."""
        return self.num_tasks >= num_needed_nemenyi(self.num_methods, self.alpha)

    def to_json(self) -> dict[str, object]:
        """The same as numbers, for the page and for programs."""
        pairs = self.num_pairs
        return {
            'name': self.name,
            'methods': self.num_methods,
            'tasks': self.num_tasks,
            'seeds': self.num_seeds,
            'alpha': self.alpha,
            'least_p_tasks': least_p(self.num_tasks),
            'least_p_tasks_corrected': min(1.0, pairs * least_p(self.num_tasks)),
            'least_p_seeds': least_p(self.num_seeds),
            'tasks_needed': num_needed(self.alpha),
            'tasks_needed_corrected': num_needed(self.alpha, max(1, pairs)),
            'seeds_needed': num_needed(self.alpha),
            'tasks_needed_ranks': num_needed_nemenyi(self.num_methods, self.alpha)
            if pairs
            else None,
        }

    def sentences(self) -> list[str]:
        """What the design can show and what it cannot, in a line each."""
        head = (
            f'{self.name}: {counted(self.num_methods, "method")}, '
            f'{counted(self.num_tasks, "task")}, {counted(self.num_seeds, "seed")}'
        )
        if self.num_methods < 2:
            return [f'{head}: nothing to compare']
        return [
            f'{head}: {self._over_tasks()}',
            f'{self._over_ranks()} {self._over_seeds()}',
        ]

    def _over_tasks(self) -> str:
        p, alpha = least_p(self.num_tasks), self.alpha
        needed = num_needed(alpha)
        if not self.reaches:
            text = (
                f'over tasks, this design cannot reach p < {alpha:g} for two methods '
                f'(least p {p:.3g}; {needed} tasks can'
            )
        else:
            text = (
                f'over tasks, this design can reach p < {alpha:g} for two methods '
                f'(least p {p:.3g}'
            )
        if self.num_pairs > 1:
            all_needed = num_needed(alpha, self.num_pairs)
            corrected = min(1.0, self.num_pairs * p)
            text += (
                f'; corrected for all {self.num_pairs} pairs '
                f'{"can" if self.reaches_all else "cannot"}, least p {corrected:.3g}'
            )
            if not self.reaches_all:
                text += f', {all_needed} tasks can'
        return f'{text}).'

    def _over_ranks(self) -> str:
        if self.num_methods < 3:
            return ''
        gap = critical_difference(self.num_methods, self.num_tasks, self.alpha)
        needed = num_needed_nemenyi(self.num_methods, self.alpha)
        text = (
            f'Mean ranks must be {gap:.2f} apart (Nemenyi) and can be '
            f'{self.num_methods - 1}: '
        )
        if self.ranks_reach:
            return f'{text}this can be reached.'
        return f'{text}this cannot be reached, {needed} tasks can.'

    def _over_seeds(self) -> str:
        p, needed = least_p(self.num_seeds), num_needed(self.alpha)
        if self.num_seeds < 1:
            return (
                'On some task the methods have no seed in common: what a seed does is '
                'not told from what a method does.'
            )
        if self.num_seeds < 2:
            return (
                'One seed has no spread: what a seed does is not told from what a '
                f'method does; {needed} seeds can reach p < {self.alpha:g} in one task.'
            )
        word = 'can' if p < self.alpha else 'cannot'
        text = (
            f'Within one task, {self.num_seeds} seeds {word} reach p < {self.alpha:g} '
            f'(least p {p:.3g}'
        )
        return f'{text}).' if p < self.alpha else f'{text}; {needed} seeds can).'


def counted(number: int, noun: str) -> str:
    """``1 task``, ``3 tasks``."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


@dataclass(frozen=True)
class Place:
    """The table that runs of a recipe go to, with others of the same three.

    Attributes:
        suite: Name of the set of tasks.
        backbone: Name of the backbone.
        metric: What the table ranks by, as the published tables name it.
    """

    suite: str
    backbone: str = ''
    metric: str = ''


def designs_of(
    jobs: Iterable[Job],
    alpha: float = ALPHA,
    places: Mapping[str, Place] | None = None,
) -> list[Design]:
    """Designs of planned jobs: one for each set of recipes that becomes one table.

    Methods that lack a recipe are not counted.

    Args:
        jobs: What is planned; final runs count.
        alpha: The p to stay below.
        places: Where recipes go, by name. One of which this is not known goes with
            those of its folder.
    """
    known = places or {}
    found: dict[tuple[str, Place], dict[tuple[str, str], dict[str, set[int]]]] = {}
    for job in jobs:
        if job.stage != 'final':
            continue
        place = known.get(job.recipe) or Place(job.recipe.partition('/')[0])
        rows = found.setdefault((job.protocol, place), {})
        seeds = rows.setdefault((job.method, job.variant), {})
        seeds.setdefault(job.recipe, set()).add(job.seed)
    designs = []
    for (_, place), rows in found.items():
        alike = {other for _, other in found if other.suite == place.suite}
        differ = [
            part
            for part in ('backbone', 'metric')
            if len({getattr(other, part) for other in alike}) > 1
        ]
        parts = (place.suite, *(getattr(place, part) for part in differ))
        suite = ', '.join(filter(None, parts))
        recipes = {recipe for row in rows.values() for recipe in row}
        whole = [row for row in rows.values() if set(row) == recipes]
        seeds = min((len(s) for row in whole for s in row.values()), default=0)
        designs.append(Design(suite, len(whole), len(recipes), seeds, alpha))
    return designs
