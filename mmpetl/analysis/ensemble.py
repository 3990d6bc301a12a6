"""Ensembles of tuned models: what different methods gain, and what seeds gain.

Follows the ensembles of Mai et al., https://arxiv.org/abs/2409.16434; ensembles of the
seeds of one method are the control that tells diversity of methods from plain
averaging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from mmpetl.analysis.agreement import predictions_of, similarity, softmax
from mmpetl.core import PETLError, check_range

RULES = ('mean_softmax', 'mean_logits', 'vote')
"""How members are averaged; the first is the primary one."""


def combine(logits: np.ndarray, rule: str = 'mean_softmax') -> np.ndarray:
    """Classes that an ensemble predicts.

    ``vote``: the class that most members name. Of classes with equally many votes
    that whose voters have the highest mean confidence (largest soft-max output), and
    of equals in this too the lowest.

    Args:
        logits: (M, N, C).
        rule: One of :data:`RULES`.

    Returns:
        (N,).

    Raises:
        PETLError: Unknown rule.
    """
    if rule == 'mean_softmax':
        return softmax(logits).mean(0).argmax(-1)
    if rule == 'mean_logits':
        return logits.astype(np.float64).mean(0).argmax(-1)
    if rule != 'vote':
        raise PETLError(f'an ensemble has rule {", ".join(RULES)}, got {rule!r}')
    probabilities = softmax(logits)
    predicted, sure = logits.argmax(-1), probabilities.max(-1)
    _, n, c = logits.shape
    votes, trust = np.zeros((n, c)), np.zeros((n, c))
    rows = np.arange(n)
    for member, score in zip(predicted, sure, strict=True):
        votes[rows, member] += 1
        trust[rows, member] += score
    mean = np.divide(trust, votes, out=np.zeros_like(trust), where=votes > 0)
    tied = votes == votes.max(-1, keepdims=True)
    return np.where(tied, mean, -1.0).argmax(-1)


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Per cent."""
    return 100.0 * float((predicted == labels).mean())


@dataclass(frozen=True)
class Gain:
    """An ensemble beside its members; accuracies and gains in per cent."""

    rule: str
    members: int
    accuracy: float
    worst: float
    mean: float
    best: float

    @property
    def over_worst(self) -> float:
        """Gain over the worst member."""
        return self.accuracy - self.worst

    @property
    def over_mean(self) -> float:
        """Gain over the mean of the members."""
        return self.accuracy - self.mean

    @property
    def over_best(self) -> float:
        """Gain over the best member, which nobody knows beforehand."""
        return self.accuracy - self.best


class Members:
    """Models of which any subset may form an ensemble.

    Args:
        logits: (M, N, C).
        labels: (N,).
        rule: One of :data:`RULES`.
    """

    def __init__(
        self, logits: np.ndarray, labels: np.ndarray, rule: str = 'mean_softmax'
    ) -> None:
        if rule not in RULES:
            raise PETLError(f'an ensemble has rule {", ".join(RULES)}, got {rule!r}')
        self.logits = logits
        self.labels = labels
        self.rule = rule
        self.single = [accuracy(z.argmax(-1), labels) for z in logits]
        # Many subsets share members, whose soft-max is the costly part.
        self._scores = softmax(logits) if rule == 'mean_softmax' else logits

    def predict(self, chosen: Sequence[int]) -> np.ndarray:
        """Classes that the ensemble of these members predicts, (N,)."""
        chosen = list(chosen)
        if self.rule == 'vote':
            return combine(self.logits[chosen], 'vote')
        return self._scores[chosen].mean(0, dtype=np.float64).argmax(-1)

    def gain(self, chosen: Sequence[int] | None = None) -> Gain:
        """The ensemble of these members, all by default, against each of them."""
        chosen = range(len(self.logits)) if chosen is None else chosen
        single = [self.single[i] for i in chosen]
        return Gain(
            rule=self.rule,
            members=len(single),
            accuracy=accuracy(self.predict(chosen), self.labels),
            worst=min(single),
            mean=float(np.mean(single)),
            best=max(single),
        )


def gain(logits: np.ndarray, labels: np.ndarray, rule: str = 'mean_softmax') -> Gain:
    """An ensemble of all members against each of them; see :class:`Members`."""
    return Members(logits, labels, rule).gain()


def pairs(
    logits: np.ndarray, labels: np.ndarray, rule: str = 'mean_softmax'
) -> list[tuple[int, int, float, Gain]]:
    """Every ensemble of two: both indices, their dissimilarity ``1 - S``, the gain."""
    alike = similarity(predictions_of(logits))
    members = Members(logits, labels, rule)
    return [
        (i, j, float(1 - alike[i, j]), members.gain((i, j)))
        for i, j in combinations(range(len(logits)), 2)
    ]


def subsets(total: int, size: int, limit: int, seed: int = 0) -> list[tuple[int, ...]]:
    """All subsets of a size, or ``limit`` different ones drawn without preference."""
    check_range('subsets', 'size', size, 1, total)
    check_range('subsets', 'limit', limit, 1)
    if comb(total, size) <= limit:
        return list(combinations(range(total), size))
    rng = np.random.default_rng((seed, total, size))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < limit:
        draw = rng.choice(total, size, replace=False)
        found[tuple(sorted(draw.tolist()))] = None
    return list(found)


def growth(
    logits: np.ndarray,
    labels: np.ndarray,
    rule: str = 'mean_softmax',
    limit: int = 50,
    seed: int = 0,
) -> dict[int, list[Gain]]:
    """Ensembles of k members for every k, at most ``limit`` of each size."""
    members = Members(logits, labels, rule)
    return {
        k: [members.gain(chosen) for chosen in subsets(len(logits), k, limit, seed)]
        for k in range(1, len(logits) + 1)
    }


def seed_growth(
    groups: Mapping[str, np.ndarray],
    labels: np.ndarray,
    rule: str = 'mean_softmax',
    limit: int = 50,
) -> dict[int, list[Gain]]:
    """The control: ensembles of k seeds of one method, over all methods.

    Args:
        groups: Method to the logits of its seeds, (seeds, N, C).
        labels: (N,).
        rule: One of :data:`RULES`.
        limit: Most ensembles per method and size.
    """
    found: dict[int, list[Gain]] = {}
    for logits in groups.values():
        for k, gains in growth(logits, labels, rule, limit).items():
            found.setdefault(k, []).extend(gains)
    return found


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    array = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - counts + 1 + last) / 2)[inverse]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of values; NaN for fewer than three or a constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float('nan')
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of ranks; NaN for fewer than three or a constant."""
    return pearson(ranks(x), ranks(y))
