"""How far a classifier may be trusted: calibration, and pictures that are none of its.

Formulas and sources stand in ``docs/scorecard.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp

from mmpetl.analysis.agreement import softmax
from mmpetl.core import PETLError

BINS = 15
"""Bins of equal width, as Guo et al. 2017 have them."""


@dataclass(frozen=True)
class Reliability:
    """Samples by their confidence, in bins of equal width over (0, 1].

    Attributes:
        count: Samples in each bin, (B,).
        confidence: Their mean confidence, NaN of an empty bin, (B,).
        accuracy: The share that is right, NaN of an empty bin, (B,).
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]."""
        there = self.count > 0
        gaps = np.abs(self.accuracy[there] - self.confidence[there])
        return float((self.count[there] * gaps).sum() / self.count.sum())


def reliability(
    logits: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> Reliability:
    """Confidence against accuracy.

    Args:
        logits: (N, C).
        labels: (N,).
        bins: Bins (0, 1/B], (1/B, 2/B], ..., (1 - 1/B, 1].

    Raises:
        PETLError: There is no sample or no bin.
    """
    if bins < 1 or not len(labels):
        raise PETLError(f'reliability of {len(labels)} samples in {bins} bins')
    scores = softmax(logits)
    top = scores.max(-1)
    right = scores.argmax(-1) == labels
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid='ignore'):
        confidence = np.bincount(place, top, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    return Reliability(count, confidence, accuracy)


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> float:
    """Mean of ``-log p(label)``, in nats, of ``softmax(logits / temperature)``."""
    scaled = log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    return float(-scaled[np.arange(len(labels)), labels].mean())


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities to the label, in [0, 2]."""
    scores = softmax(logits)
    scores[np.arange(len(labels)), labels] -= 1
    return float((scores**2).sum(-1).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least negative log-likelihood, in [0.05, 20].

    To be fitted on data that neither trained the model nor score it.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, float(np.exp(t))),
        bounds=(np.log(0.05), np.log(20.0)),
        method='bounded',
        options={'xatol': 1e-6},
    )
    return float(np.exp(found.x))


def max_softmax(logits: np.ndarray) -> np.ndarray:
    """Largest probability, (N,); high where the model knows the picture."""
    return softmax(logits).max(-1)


def energy(logits: np.ndarray) -> np.ndarray:
    """``log sum exp`` of the logits, the negative energy, (N,); high where known."""
    return logsumexp(logits.astype(np.float64), axis=-1)


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """How often a known picture scores above a strange one, ties half, in [0, 1]."""
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.ones(len(known)), np.zeros(len(strange))])
    return float(roc_auc_score(truth, np.concatenate([known, strange])))


def false_positive_rate(
    known: np.ndarray, strange: np.ndarray, recall: float = 0.95
) -> float:
    """Share of strange pictures that pass where ``recall`` of the known ones do.

    The threshold is the highest that lets at least that share of the known pass; what
    scores as high as it does passes too.
    """
    ordered = np.sort(known)
    # As an integer: 0.95 * 20 is a little more than 19.
    most_out = int(np.floor(len(known) * (1 - recall) + 1e-9))
    threshold = ordered[most_out]
    return float((strange >= threshold).mean())
