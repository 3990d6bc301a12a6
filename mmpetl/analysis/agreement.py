"""How alike the predictions of several models are, beyond being equally good.

Follows the analysis of Mai et al., "Lessons and Insights from a Unifying Study of
Parameter-Efficient Fine-Tuning (PEFT) in Visual Recognition", CVPR 2025,
https://arxiv.org/abs/2409.16434; Cohen's kappa and the agreement on shared errors are
additions, since two accurate models agree often by being right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from mmpetl.core import PETLError, check_range

REGIONS = ('100', '010', '001', '110', '101', '011', '111')
"""The seven regions of three sets: which of them hold a sample."""


def predictions_of(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Predicted classes of M models, (M, N).

    Raises:
        PETLError: Shapes differ.
    """
    shapes = {array.shape for array in logits}
    if len(shapes) != 1:
        raise PETLError(
            f'models to compare have logits of different shapes: '
            f'{", ".join(map(str, sorted(shapes)))}'
        )
    return np.stack([array.argmax(1) for array in logits])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(-1, keepdims=True)


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest soft-max output, (..., C) -> (...)."""
    return softmax(logits).max(-1)


def similarity(predicted: np.ndarray) -> np.ndarray:
    """``S[i, j]``, the share of samples on which i and j predict the same class.

    Args:
        predicted: (M, N).

    Returns:
        (M, M), in [0, 1], one on the diagonal.
    """
    return (predicted[:, None] == predicted[None]).mean(-1)


def agreement_on_errors(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the samples that both get wrong on which both name the same class.

    Args:
        predicted: (M, N).
        labels: (N,).

    Returns:
        (M, M), NaN where no sample is wrong for both.
    """
    wrong = predicted != labels
    both = wrong[:, None] & wrong[None]
    same = (predicted[:, None] == predicted[None]) & both
    count = both.sum(-1)
    return np.divide(
        same.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0
    )


def error_overlap(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Samples wrong for both over samples wrong for either (Jaccard), (M, M).

    NaN where neither is ever wrong.
    """
    wrong = predicted != labels
    both = (wrong[:, None] & wrong[None]).sum(-1)
    either = (wrong[:, None] | wrong[None]).sum(-1)
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def kappa(predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Cohen's kappa, ``(S - E) / (1 - E)`` with E the agreement of chance.

    E[i, j] is the sum over classes of the products of both models' frequencies.

    Args:
        predicted: (M, N).
        num_classes: C.

    Returns:
        (M, M), NaN where both name one and the same class for all.
    """
    shares = np.stack(
        [np.bincount(row, minlength=num_classes) / row.size for row in predicted]
    )
    chance = shares @ shares.T
    observed = similarity(predicted)
    certain = np.isclose(chance, 1.0, rtol=0, atol=1e-12)
    return np.divide(
        observed - chance,
        1 - chance,
        out=np.full(chance.shape, np.nan),
        where=~certain,
    )


def regions(sets: Sequence[np.ndarray]) -> dict[str, int]:
    """Sizes of the seven Venn regions of three sets.

    Args:
        sets: Three masks, (N,) of bool.

    Returns:
        ``'110'`` is what the first two share and the third does not have.
    """
    if len(sets) != 3:
        raise PETLError(f'the regions are those of three sets, got {len(sets)}')
    found = {}
    for key in REGIONS:
        inside = np.ones(len(sets[0]), bool)
        for flag, mask in zip(key, sets, strict=True):
            inside &= mask if flag == '1' else ~mask
        found[key] = int(inside.sum())
    return found


def most_confident(logits: np.ndarray, k: int, least: bool = False) -> np.ndarray:
    """Mask (N,) of the k samples with the highest (or lowest) confidence.

    Of equals, those that stand first are taken.

    Raises:
        PETLError: k is not in 1..N.
    """
    check_range('most_confident', 'k', k, 1, len(logits))
    score = confidence(logits)
    order = np.argsort(score if least else -score, kind='stable')
    mask = np.zeros(len(logits), bool)
    mask[order[:k]] = True
    return mask


def confidence_overlap(
    logits: Sequence[np.ndarray], labels: np.ndarray, k: int
) -> dict[str, dict[str, int]]:
    """Whether three models are sure, and unsure, of the same samples.

    Args:
        logits: Three arrays (N, C).
        labels: (N,).
        k: How many of each model's samples are looked at; the study takes half.

    Returns:
        ``right``: regions of the right ones among each model's k most confident
        samples; ``wrong``: of the wrong ones among its k least confident.
    """
    right = [most_confident(z, k) & (z.argmax(1) == labels) for z in logits]
    wrong = [most_confident(z, k, least=True) & (z.argmax(1) != labels) for z in logits]
    return {'right': regions(right), 'wrong': regions(wrong)}


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The entries above the diagonal, (M (M - 1) / 2,)."""
    return matrix[np.triu_indices(len(matrix), 1)]


def seed_similarity(predicted: np.ndarray) -> float:
    """Mean similarity of the seeds of one method, the yardstick for two methods.

    Args:
        predicted: (seeds, N), two or more.
    """
    return float(off_diagonal(similarity(predicted)).mean())


def block_means(matrix: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Means within and between groups, the diagonal left out.

    Args:
        matrix: (M, M), symmetric.
        groups: Of each row.

    Returns:
        ``'adapter | prompt'`` to the mean; NaN entries are skipped.
    """
    names = list(dict.fromkeys(groups))
    found = {}
    rows = np.asarray(groups)
    apart = ~np.eye(len(matrix), dtype=bool)
    for a, b in product(names, names):
        if names.index(a) > names.index(b):
            continue
        cells = np.outer(rows == a, rows == b) & apart & np.isfinite(matrix)
        if cells.any():
            found[f'{a} | {b}'] = float(matrix[cells].mean())
    return found
