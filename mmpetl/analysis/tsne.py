"""t-SNE of features, with scores that say whether the picture tells the truth.

Paper: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008. Groups
that the eye sees in two dimensions need not exist, and distances between them mean
little, so neighbourhoods are scored in the original space too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmpetl.core import PETLError, check_range

Engine = Literal['sklearn', 'opentsne']
ENGINES = ('sklearn', 'opentsne')


@dataclass(frozen=True)
class Scores:
    """How well labels are told apart in one space.

    Attributes:
        knn: Leave-one-out accuracy of the k nearest neighbours, percent.
        silhouette: Mean silhouette of the labels, in [-1, 1].
    """

    knn: float
    silhouette: float


@dataclass(frozen=True)
class Embedding:
    """Features in two dimensions.

    Attributes:
        places: (N, 2).
        original: Scores in the space of the features.
        flat: Scores in the picture.
        trustworthiness: Share of neighbours in the picture that are neighbours in the
            original space, in [0, 1] (Venna and Kaski, 2001).
    """

    places: np.ndarray
    original: Scores
    flat: Scores
    trustworthiness: float


def _check(features: np.ndarray, labels: np.ndarray | None = None) -> None:
    if features.ndim != 2 or not np.isfinite(features).all():
        raise PETLError(
            f'features must be finite and (N, D), got shape {features.shape}'
        )
    if labels is not None and labels.shape != (len(features),):
        raise PETLError(
            f'{len(features)} points need as many labels, got {labels.shape}'
        )


def knn_accuracy(features: np.ndarray, labels: np.ndarray, k: int = 20) -> float:
    """Leave-one-out accuracy of a vote among the k nearest points, percent.

    Args:
        features: (N, D); distances are Euclidean.
        labels: (N,) int64.
        k: 1 <= k < N. Ties go to the smallest label.

    Raises:
        PETLError: Fewer points than neighbours, or shapes that do not fit.
    """
    from sklearn.neighbors import NearestNeighbors

    _check(features, labels)
    check_range('kNN', 'k', k, 1)
    if k >= len(features):
        raise PETLError(
            f'{k} neighbours need more than {k} points, got {len(features)}; draw more '
            'points or lower k'
        )
    # Without a query a point is not its own neighbour.
    near = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()[1]
    classes, codes = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(features), len(classes)), dtype=np.int64)
    for column in codes[near].T:
        votes[np.arange(len(votes)), column] += 1
    return float(100 * (votes.argmax(1) == codes).mean())


def silhouette(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean over points of (b - a) / max(a, b), in [-1, 1].

    a is the mean distance to its own class, b that to the nearest other class.

    Raises:
        PETLError: Labels do not fall into 2 to N - 1 classes.
    """
    from sklearn.metrics import silhouette_score

    _check(features, labels)
    classes = len(np.unique(labels))
    if not 2 <= classes < len(features):
        raise PETLError(
            f'a silhouette needs 2 to {len(features) - 1} classes among '
            f'{len(features)} points, got {classes}'
        )
    return float(silhouette_score(features, labels))


def embed(
    features: np.ndarray,
    perplexity: float = 30.0,
    seed: int = 0,
    engine: Engine = 'sklearn',
) -> np.ndarray:
    """t-SNE from a PCA start.

    Args:
        features: (N, D).
        perplexity: Neighbours that count, at least 1 and below N.
        seed: Same seed and features, same picture.
        engine: ``'sklearn'`` (Barnes-Hut), or ``'opentsne'`` for many points
            (interpolated by FFT, linear in N).

    Returns:
        (N, 2) float64, centred.

    Raises:
        PETLError: Too few points for the perplexity, or openTSNE is not installed.
    """
    _check(features)
    if engine not in ENGINES:
        raise PETLError(f't-SNE has engines {", ".join(ENGINES)}, got {engine!r}')
    check_range('t-SNE', 'perplexity', perplexity, 1)
    if perplexity >= len(features):
        raise PETLError(
            f't-SNE with perplexity {perplexity:g} needs more than {perplexity:g} '
            f'points, got {len(features)}; draw more points or lower the perplexity'
        )
    if engine == 'opentsne':
        try:
            from openTSNE import TSNE
        except ImportError:
            raise PETLError(
                'the engine opentsne needs the package openTSNE: pip install openTSNE'
            ) from None
        made = TSNE(perplexity=perplexity, initialization='pca', random_state=seed)
        places = np.asarray(made.fit(features.astype(np.float64)))
    else:
        from sklearn.manifold import TSNE

        made = TSNE(perplexity=perplexity, init='pca', random_state=seed)
        places = made.fit_transform(features.astype(np.float32))
    places = places.astype(np.float64)
    return places - places.mean(0)


def align(places: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Turn or mirror a picture to lie as ``like`` does; distances stay."""
    u, _, v = np.linalg.svd(places.T @ like)
    return places @ (u @ v)


def compare_embeddings(
    features: Mapping[str, np.ndarray],
    labels: np.ndarray,
    perplexity: float = 30.0,
    k: int = 20,
    seed: int = 0,
    engine: Engine = 'sklearn',
) -> dict[str, Embedding]:
    """One embedding per model on the same points, each turned to match the first.

    Args:
        features: (N, D) by name of the model, rows in the same order.
        labels: (N,) int64.
        perplexity: See :func:`embed`.
        k: Neighbours of the accuracy.
        seed: See :func:`embed`.
        engine: See :func:`embed`.
    """
    from sklearn.manifold import trustworthiness

    result: dict[str, Embedding] = {}
    for name, values in features.items():
        _check(values, labels)
        original = Scores(knn_accuracy(values, labels, k), silhouette(values, labels))
        places = embed(values, perplexity, seed, engine)
        if result:
            places = align(places, next(iter(result.values())).places)
        flat = Scores(knn_accuracy(places, labels, k), silhouette(places, labels))
        near = min(k, (len(values) - 1) // 2)
        trust = float(trustworthiness(values, places, n_neighbors=near))
        result[name] = Embedding(places, original, flat, trust)
    return result
