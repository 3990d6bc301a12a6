"""Against values that others printed or computed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmpetl.benchmark.resampling import uncertainty
from mmpetl.benchmark.statistics import (
    cliques,
    compare_pairs,
    critical_difference,
    draw_critical_difference,
    friedman,
    holm,
    iman_davenport,
    levels,
    mean_ranks,
    wilcoxon_p,
    wilcoxon_ps,
)
from mmpetl.core import PETLError

# Demsar (2006), table 6: AUC of C4.5 and three variants on 14 data sets. The tie that
# its ranks break on `voting` is broken here in the same way.
DEMSAR = {
    'C4.5': (
        *(0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661),
        *(0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957),
    ),
    'C4.5+m': (
        *(0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668),
        *(0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978),
    ),
    'C4.5+cf': (
        *(0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609),
        *(0.563, 0.866, 1.000, 0.965, 0.614, 0.9751, 0.946),
    ),
    'C4.5+m+cf': (
        *(0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685),
        *(0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970),
    ),
}


def demsar():
    return {name: dict(enumerate(column)) for name, column in DEMSAR.items()}


def test_mean_ranks_are_those_of_demsar():
    ranks = mean_ranks(demsar())
    printed = {'C4.5+m+cf': 1.964, 'C4.5+m': 2.0, 'C4.5+cf': 2.893, 'C4.5': 3.143}
    assert list(ranks) == list(printed)
    assert ranks == pytest.approx(printed, abs=5e-4)


def test_means_that_differ_by_the_order_of_their_sum_tie():
    one, other = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert one != other
    ranks = mean_ranks({'a': {'t': one}, 'b': {'t': other}, 'c': {'t': 0.1}})
    assert ranks == {'a': 1.5, 'b': 1.5, 'c': 3.0}


@pytest.mark.parametrize('noise', [3.6e-15, 2e-6])
def test_noise_is_a_tie_in_every_test(noise):
    """Of the order of a sum, and of float32, on both sides of where rounding breaks."""
    tasks = [f't{i}' for i in range(6)]
    means = {t: 12.34565 + 10 * i for i, t in enumerate(tasks)}
    row = {t: {1: v - noise, 2: v + 1 - noise} for t, v in means.items()}
    above = {t: {1: v + noise, 2: v + 1 + noise} for t, v in means.items()}
    (pair,) = compare_pairs({'a': row, 'b': above})
    assert (pair.wins, pair.ties, pair.losses) == (0, 6, 0)
    assert (pair.p_tasks, pair.p_runs, pair.difference) == (1.0, 1.0, 0.0)
    gaps = [row[t][1] - above[t][1] for t in tasks]
    assert (wilcoxon_p(gaps), wilcoxon_ps([gaps])) == (1.0, [1.0])
    scores = {'a': row, 'b': above, 'c': row}
    scores = {m: {t: v[1] for t, v in r.items()} for m, r in scores.items()}
    assert set(mean_ranks(scores).values()) == {2.0}
    assert friedman(scores).p == 1.0
    runs = {'a': row, 'b': above}
    assert {u.best for u in uncertainty(runs, resamples=50).values()} == {0.5}


def test_one_picture_of_many_is_no_noise():
    assert levels([[50.0, 50.002, 49.998], [1.0, 1.0, 2.0]]).tolist() == [
        [1, 2, 0],
        [0, 0, 1],
    ]


def test_friedman_is_that_of_demsar_corrected_for_ties():
    test = friedman(demsar())
    # Printed: 9.28, without the correction. Ties: two pairs of two, one more pair, and
    # four of four, each t^3 - t, over N (k^3 - k).
    correction = 1 - (6 + 6 + 6 + 60) / (14 * 60)
    assert test.chi2 * correction == pytest.approx(9.28, abs=0.005)
    assert iman_davenport(9.28, 4, 14) == pytest.approx(3.69, abs=0.005)
    assert (test.num_methods, test.num_tasks) == (4, 14)
    assert test.f_p < test.p < 0.05


@pytest.mark.parametrize(
    ('num_methods', 'q'),
    # Demsar (2006), table 5(a), alpha = 0.05.
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)],
)
def test_critical_values_are_those_of_the_table(num_methods, q):
    # One task makes the root sqrt(k (k + 1) / 6).
    root = (num_methods * (num_methods + 1) / 6) ** 0.5
    assert critical_difference(num_methods, 1) / root == pytest.approx(q, abs=1.1e-3)


def test_critical_differences_are_those_of_demsar():
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.1) == pytest.approx(1.12, abs=0.005)


def test_methods_under_one_bar_do_not_differ():
    ranks = {'a': 1.0, 'b': 1.5, 'c': 2.4, 'd': 4.0}
    assert cliques(ranks, 1.0) == [('a', 'b'), ('b', 'c')]
    assert cliques(ranks, 0.1) == []
    assert cliques(ranks, 9.0) == [('a', 'b', 'c', 'd')]


def test_holm_steps_down():
    # Worked by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04; never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_signed_rank_equals_counting_all_signs():
    gaps = [0.3, 1.1, -0.2, 0.8, 2.0, 1.7, 0.9, -0.1]
    order = sorted(range(8), key=lambda i: abs(gaps[i]))
    rank = {i: place + 1 for place, i in enumerate(order)}
    seen = sum(rank[i] for i in range(8) if gaps[i] > 0)
    sums = [
        sum(r for r, up in zip(range(1, 9), signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=8)
    ]
    extreme = sum(s >= seen for s in sums) / len(sums)
    assert wilcoxon_p(gaps) == pytest.approx(2 * extreme)
    assert wilcoxon_p([0.0, 0.0]) == 1.0


def test_pairs_use_only_what_both_have():
    runs = {
        'a': {'x': {1: 80.0, 2: 82.0}, 'y': {1: 50.0}, 'z': {1: 10.0}},
        'b': {'x': {1: 79.0, 2: 81.0, 3: 99.0}, 'y': {1: 50.2}},
        'c': {'z': {2: 1.0}},
    }
    (pair,) = compare_pairs(runs, margin=0.5)
    assert (pair.a, pair.b) == ('a', 'b')
    assert (pair.wins, pair.ties, pair.losses, pair.num_runs) == (1, 1, 0, 3)
    assert pair.difference == pytest.approx((1.0 - 0.2) / 2)


def test_a_clear_winner_is_found_and_equals_are_not():
    tasks = [f't{i}' for i in range(12)]
    base = {t: {s: 50.0 + i + s / 10 for s in (1, 2)} for i, t in enumerate(tasks)}
    better = {t: {s: v + 3 + s / 7 for s, v in row.items()} for t, row in base.items()}
    same = {t: dict(row) for t, row in base.items()}
    pairs = {
        (p.a, p.b): p
        for p in compare_pairs({'base': base, 'better': better, 'same': same})
    }
    assert pairs['base', 'better'].losses == 12
    assert pairs['base', 'better'].p_tasks < 0.01
    assert pairs['base', 'same'].ties == 12
    assert pairs['base', 'same'].p_runs == 1.0


def test_all_ties_are_no_difference():
    scores = {m: {'x': 1.0, 'y': 1.0} for m in 'abc'}
    assert friedman(scores).p == 1.0


def test_too_little_is_refused():
    with pytest.raises(PETLError, match='three methods'):
        friedman({'a': {'x': 1.0}, 'b': {'x': 2.0}})
    with pytest.raises(PETLError, match='two methods'):
        critical_difference(1, 5)


def test_the_picture_is_written(tmp_path):
    path = draw_critical_difference(
        mean_ranks(demsar()), critical_difference(4, 14), tmp_path / 'cd.png', 'AUC'
    )
    assert path.read_bytes().startswith(b'\x89PNG')
    assert [p.name for p in tmp_path.iterdir()] == ['cd.png']


def test_the_axis_of_ranks_holds_every_interval(tmp_path, monkeypatch):
    """And a difference that no line can show is said to be longer than its own."""
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, 'plot', lambda self, *a, **k: drawn.append(a) or plot(self, *a, **k)
    )
    said = []
    text = Axes.text
    monkeypatch.setattr(
        Axes, 'text', lambda self, *a, **k: said.append(a[2]) or text(self, *a, **k)
    )
    ranks = {'a': 1.4, 'b': 1.6, 'c': 3.0}
    intervals = {'a': (1.0, 3.6), 'b': (1.0, 3.8), 'c': (2.0, 4.0)}
    draw_critical_difference(ranks, 4.5, tmp_path / 'cd.png', intervals=intervals)
    assert drawn[0][0] == [1, 4]
    assert 'critical difference 4.50, longer than this line' in said
    said.clear()
    draw_critical_difference(ranks, 1.5, tmp_path / 'cd.png', intervals=intervals)
    assert 'critical difference 1.50' in said


def test_many_signed_rank_tests_are_those_of_each():
    rng = np.random.default_rng(0)
    rows = [list(rng.normal(0.3, 1, n)) for n in (5, 6, 19, 19, 19, 57, 57, 6)]
    rows[1][2] = 0.0
    rows[2][1] = -rows[2][0]
    rows += [[0.0, 0.0], [1.0], []]
    found = wilcoxon_ps(rows)
    assert found == pytest.approx([wilcoxon_p(row) for row in rows], rel=1e-12)
    assert len(set(found)) > 6
