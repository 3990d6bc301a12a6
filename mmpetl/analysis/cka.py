"""Linear CKA: how alike two representations of the same points are.

Papers: Kornblith et al., "Similarity of Neural Network Representations Revisited",
ICML 2019, https://arxiv.org/abs/1905.00414, eq. (2)-(3); the unbiased estimator of HSIC
is that of Song et al., JMLR 13, 2012, eq. (5), in CKA as in Nguyen et al., ICLR 2021,
https://arxiv.org/abs/2010.15327, eq. (3).

With few points and many channels the biased estimate is close to 1 even for unrelated
features, so the unbiased one is the default; it may fall a little below 0. Nguyen et
al. average it over minibatches, which adds the noise of small batches. Here sums over
points are kept instead, from which the value over *all* points follows exactly, however
they came in batches, and without a matrix of points by points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmpetl.core import PETLError

Estimator = Literal['unbiased', 'biased']
ESTIMATORS = ('unbiased', 'biased')


class _Sums:
    """What one representation contributes to the sums."""

    def __init__(self, first: np.ndarray) -> None:
        # Both estimates ignore a shift; near the mean less is lost to rounding.
        self.origin = first.mean(0, dtype=np.float64)
        self.total = np.zeros(first.shape[1])

    def centred(self, x: np.ndarray) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] != len(self.origin):
            raise PETLError(
                f'features have shape {x.shape}, those before them were '
                f'(N, {len(self.origin)}); every batch needs the same layers'
            )
        return x.astype(np.float64) - self.origin


class _Cross:
    """Sums over points of what HSIC needs of two representations x and y.

    With rows x_i, y_i, squared lengths d_i = |x_i|^2 and e_i = |y_i|^2.
    """

    def __init__(self, x: _Sums, y: _Sums) -> None:
        self.x, self.y = x, y
        self.xy = np.zeros((len(x.origin), len(y.origin)))
        self.xe = np.zeros(len(x.origin))
        self.yd = np.zeros(len(y.origin))
        self.de = self.d = self.e = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        d, e = (x * x).sum(1), (y * y).sum(1)
        self.xy += x.T @ y
        self.xe += x.T @ e
        self.yd += y.T @ d
        self.de += float(d @ e)
        self.d += float(d.sum())
        self.e += float(e.sum())

    def hsic(self, n: int, estimator: Estimator) -> float:
        s, t = self.x.total, self.y.total
        if estimator == 'biased':
            # |X^T H Y|^2 with H the centring of points.
            centred = self.xy - np.outer(s, t) / n
            return float((centred**2).sum()) / (n - 1) ** 2
        # K and L are X X^T and Y Y^T with zeros on the diagonal.
        trace = float((self.xy**2).sum()) - self.de
        total_k, total_l = float(s @ s) - self.d, float(t @ t) - self.e
        product = float(s @ self.xy @ t - s @ self.xe - t @ self.yd) + self.de
        mean = total_k * total_l / ((n - 1) * (n - 2))
        return (trace + mean - 2 * product / (n - 2)) / (n * (n - 3))


class LinearCKA:
    """CKA between every layer of one model and every layer of another.

    Feed batches with :meth:`update`; memory is the product of the layers' widths.
    """

    def __init__(self) -> None:
        self.count = 0
        self._xs: list[_Sums] = []

    def update(self, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> None:
        """Add points: one (B, C) per layer of either model, rows in the same order.

        Raises:
            PETLError: Layers or rows differ in number.
        """
        rows = {len(a) for a in (*xs, *ys)}
        if not len(xs) or not len(ys) or len(rows) != 1:
            raise PETLError(
                'CKA needs layers on both sides and as many rows in each; got '
                f'{len(xs)} and {len(ys)} layers with rows {sorted(rows)}'
            )
        if not self._xs:
            self._xs, self._ys = [_Sums(x) for x in xs], [_Sums(y) for y in ys]
            self._xx = [_Cross(x, x) for x in self._xs]
            self._yy = [_Cross(y, y) for y in self._ys]
            self._xy = [[_Cross(x, y) for y in self._ys] for x in self._xs]
        if len(xs) != len(self._xs) or len(ys) != len(self._ys):
            raise PETLError(
                f'CKA began with {len(self._xs)} and {len(self._ys)} layers, this '
                f'batch has {len(xs)} and {len(ys)}'
            )
        left = [s.centred(x) for s, x in zip(self._xs, xs, strict=True)]
        right = [s.centred(y) for s, y in zip(self._ys, ys, strict=True)]
        for sums, values in zip((*self._xs, *self._ys), (*left, *right), strict=True):
            sums.total += values.sum(0)
        for cross, values in zip((*self._xx, *self._yy), (*left, *right), strict=True):
            cross.add(values, values)
        for row, x in zip(self._xy, left, strict=True):
            for cross, y in zip(row, right, strict=True):
                cross.add(x, y)
        self.count += len(left[0])

    def value(self, estimator: Estimator = 'unbiased') -> np.ndarray:
        """(layers of the first, layers of the second); nan where a layer is constant.

        Raises:
            PETLError: Too few points, or no such estimator.
        """
        if estimator not in ESTIMATORS:
            raise PETLError(f'CKA has estimators {", ".join(ESTIMATORS)}')
        if self.count < 4:
            raise PETLError(f'CKA needs at least 4 points, got {self.count}')
        n = self.count
        xx = [self._own(c, estimator) for c in self._xx]
        yy = [self._own(c, estimator) for c in self._yy]
        result = np.full((len(xx), len(yy)), np.nan)
        for i, row in enumerate(self._xy):
            for j, cross in enumerate(row):
                if xx[i] > 0 and yy[j] > 0:
                    value = cross.hsic(n, estimator)
                    result[i, j] = value / (xx[i] * yy[j]) ** 0.5
        return result

    def _own(self, cross: _Cross, estimator: Estimator) -> float:
        """HSIC of a layer with itself, 0 where its points differ by rounding only."""
        size = float((cross.x.origin**2).sum())
        spread = cross.d / self.count
        return 0.0 if spread <= 1e-12 * size else cross.hsic(self.count, estimator)


def linear_cka(
    xs: Sequence[np.ndarray],
    ys: Sequence[np.ndarray],
    estimator: Estimator = 'unbiased',
    batch_size: int = 1024,
) -> np.ndarray:
    """CKA between layers; see :class:`LinearCKA`.

    Args:
        xs: One (N, C) per layer of the first model.
        ys: One (N, C') per layer of the second, the same points in the same order.
        estimator: ``'unbiased'`` or ``'biased'``.
        batch_size: Points per step; the result does not depend on it.
    """
    sums = LinearCKA()
    for start in range(0, max(len(xs[0]) if len(xs) else 0, 1), batch_size):
        part = slice(start, start + batch_size)
        sums.update([x[part] for x in xs], [y[part] for y in ys])
    return sums.value(estimator)
