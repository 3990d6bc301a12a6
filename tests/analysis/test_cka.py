"""Linear CKA against an independent computation with whole Gram matrices."""

from __future__ import annotations

import numpy as np
import pytest

from mmpetl.analysis.cka import LinearCKA, linear_cka
from mmpetl.core import PETLError


def hsic_unbiased(k: np.ndarray, left: np.ndarray) -> float:
    """Eq. (5) of Song et al., 2012, term by term with points x points matrices."""
    n = len(k)
    k, left = k - np.diag(np.diag(k)), left - np.diag(np.diag(left))
    one = np.ones(n)
    value = np.trace(k @ left)
    value += (one @ k @ one) * (one @ left @ one) / ((n - 1) * (n - 2))
    value -= 2 / (n - 2) * (one @ k @ left @ one)
    return value / (n * (n - 3))


def hsic_biased(k: np.ndarray, left: np.ndarray) -> float:
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ left @ h) / (n - 1) ** 2


def by_grams(x: np.ndarray, y: np.ndarray, hsic) -> float:
    k, left = x @ x.T, y @ y.T
    return hsic(k, left) / (hsic(k, k) * hsic(left, left)) ** 0.5


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(50, 4))

    def layer(dims: int, noise: float) -> np.ndarray:
        values = shared @ rng.normal(size=(4, dims))
        return values + noise * rng.normal(size=(50, dims)) + 3 * rng.normal(size=dims)

    return [layer(6, 0.3), layer(9, 2.0)], [layer(5, 0.1), layer(7, 4.0), layer(3, 1)]


@pytest.mark.parametrize(
    ('estimator', 'hsic'), [('unbiased', hsic_unbiased), ('biased', hsic_biased)]
)
def test_equals_the_definition(layers, estimator, hsic):
    xs, ys = layers
    hand = [[by_grams(x, y, hsic) for y in ys] for x in xs]
    np.testing.assert_allclose(linear_cka(xs, ys, estimator), hand, rtol=1e-9)


@pytest.mark.parametrize('estimator', ['unbiased', 'biased'])
def test_batches_do_not_change_the_value(layers, estimator):
    whole = linear_cka(*layers, estimator)
    for size in (1, 7, 49):
        parts = linear_cka(*layers, estimator, batch_size=size)
        np.testing.assert_allclose(parts, whole, rtol=1e-10)


def test_rotation_scale_and_shift_do_not_matter():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    y = 7 * x @ turn + 100
    assert linear_cka([x], [y])[0, 0] == pytest.approx(1)
    # A rotation is free, a general linear map is not.
    assert linear_cka([x], [x * [9, 1, 1, 1, 1, 1]])[0, 0] < 0.9


def test_unrelated_features_score_zero_where_points_are_few():
    rng = np.random.default_rng(2)
    values = {'unbiased': [], 'biased': []}
    for _ in range(20):
        x, y = rng.normal(size=(2, 30, 200))
        for name in values:
            values[name].append(linear_cka([x], [y], name)[0, 0])
    assert abs(np.mean(values['unbiased'])) < 0.05
    assert np.mean(values['biased']) > 0.8


def test_a_constant_layer_has_no_value():
    x = np.random.default_rng(3).normal(size=(20, 4)).astype(np.float32)
    flat = np.full((20, 5), 0.1, np.float32)
    got = linear_cka([x, flat], [x])
    assert got[0, 0] == pytest.approx(1)
    assert np.isnan(got[1, 0])


def test_bad_input_gets_one_line():
    x = np.zeros((3, 2))
    with pytest.raises(PETLError, match='at least 4 points, got 3'):
        linear_cka([x], [x])
    with pytest.raises(PETLError, match=r'as many rows in each.*\[3, 4\]'):
        linear_cka([x], [np.zeros((4, 2))])
    with pytest.raises(PETLError, match='got 0 and 1 layers'):
        linear_cka([], [x])
    with pytest.raises(PETLError, match='estimators unbiased, biased'):
        linear_cka([np.eye(5)], [np.eye(5)], 'exact')
    sums = LinearCKA()
    sums.update([np.eye(5)], [np.eye(5)])
    with pytest.raises(PETLError, match='began with 1 and 1 layers'):
        sums.update([np.eye(5)] * 2, [np.eye(5)])
    with pytest.raises(PETLError, match='every batch needs the same layers'):
        sums.update([np.zeros((5, 2))], [np.eye(5)])
