"""Tests picture by picture, against counting and other functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmpetl.benchmark.paired import compare_models, mcnemar
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.resampling import interval, over_pictures, uncertainty
from mmpetl.benchmark.samples import pictures_of
from mmpetl.benchmark.statistics_tables import check_rows, compare
from mmpetl.benchmark.tables import build_tables
from mmpetl.core import PETLError
from mmpetl.engine.hooks.predictions import write_predictions


@pytest.mark.parametrize(('a', 'b'), [(1, 8), (0, 6), (12, 12), (3, 21), (5, 5)])
def test_few_discordant_pictures_are_counted(a, b):
    num = a + b
    tail = sum(math.comb(num, k) for k in range(min(a, b) + 1)) / 2**num
    test = mcnemar(a, b)
    assert test.exact
    assert test.p == pytest.approx(min(1.0, 2 * tail))
    assert test.p >= test.least_p


@pytest.mark.parametrize(('a', 'b'), [(150, 86), (10, 15), (40, 41)])
def test_many_are_tested_by_chi_squared_with_the_correction(a, b):
    # chi2 with one degree of freedom is the square of a normal one.
    statistic = (abs(a - b) - 1) ** 2 / (a + b)
    test = mcnemar(a, b)
    assert not test.exact
    assert test.p == pytest.approx(math.erfc(math.sqrt(statistic / 2)))


def test_approval_ratings_of_agresti():
    # Agresti, Categorical Data Analysis: 86 and 150 of 1,600 change their mind; the
    # z of the uncorrected test is -4.17, so p is a little above 3.1e-5 corrected.
    assert 3.1e-5 < mcnemar(86, 150).p < 5e-5


def test_equals_are_no_difference():
    assert mcnemar(0, 0).p == 1.0
    assert mcnemar(30, 30).p == 1.0


def test_the_bootstrap_is_that_of_scipy_and_of_the_normal():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(3)
    gap = rng.choice([-1, 0, 1], size=400, p=[0.1, 0.7, 0.2])
    ours = over_pictures([gap])
    other = bootstrap(
        (gap,),
        np.mean,
        n_resamples=9999,
        method='percentile',
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert ours.low == pytest.approx(other.low, abs=0.004)
    assert ours.high == pytest.approx(other.high, abs=0.004)
    half = 1.96 * gap.std() / 20
    assert ours.low == pytest.approx(gap.mean() - half, abs=0.004)
    assert ours == over_pictures([gap])
    assert (ours.resamples, ours.level) == (10_000, 0.95)


def test_tasks_weigh_alike_whatever_their_pictures():
    # 10 pictures that differ by 1 and 1,000 that never do: the mean over tasks is 0.5.
    found = over_pictures([np.ones(10), np.zeros(1000)])
    assert (found.low, found.high) == (0.5, 0.5)
    with pytest.raises(PETLError, match='no picture'):
        over_pictures([np.ones(0)])


def test_an_interval_is_made_of_percentiles():
    found = interval(np.arange(1001.0))
    assert (found.low, found.high) == pytest.approx((25.0, 975.0))
    assert not found.has_zero
    assert interval(np.array([-1.0, 1.0])).has_zero


def hits(text):
    return np.array([x == '1' for x in text])


def test_pairs_of_models_by_hand():
    a = {'t': {1: hits('1111110000'), 2: hits('1111100000')}, 'only a': {1: hits('1')}}
    b = {'t': {1: hits('1000000000'), 2: hits('1000000001')}}
    (pair,) = compare_models({'a': a, 'b': b}, [('a', 'b')])
    assert set(pair.tests) == {('t', 1), ('t', 2)}
    assert (pair.tests['t', 1].only_a, pair.tests['t', 1].only_b) == (5, 0)
    assert (pair.tests['t', 2].only_a, pair.tests['t', 2].only_b) == (4, 1)
    # 2 / 2 ** 5, and 2 * (1 + 5) / 2 ** 5; Holm: 2 * 0.0625, then 0.375.
    assert pair.tests['t', 1].p == pytest.approx(0.0625)
    assert pair.corrected['t', 1] == pytest.approx(0.125)
    assert pair.corrected['t', 2] == pytest.approx(0.375)
    assert pair.difference == pytest.approx(100 * (0.5 + 0.3) / 2)
    assert pair.found(0.2) == (1, 0)
    assert pair.pictures == {'t': 10}


def test_other_numbers_of_pictures_are_refused():
    with pytest.raises(PETLError, match='2 and 3 pictures'):
        compare_models(
            {'a': {'t': {1: hits('10')}}, 'b': {'t': {1: hits('101')}}}, [('a', 'b')]
        )


# ------------------------------------------------------------- from the records


def fill(out, odd=False):
    """LoRA is right on all pictures, SSF on three in four, BitFit left none."""
    store = RecordStore(out)
    rng = np.random.default_rng(0)
    for task in ('digits', 'textures'):
        labels = rng.integers(5, size=120)
        for method, every in (('LoRA', 0), ('SSF', 4), ('BitFit', 0)):
            for seed in (1, 2):
                wrong = np.zeros(120, bool)
                if every:
                    wrong[seed::every] = True
                said = (labels + wrong) % 5
                seen = labels[::-1] if odd and (method, seed) == ('SSF', 2) else labels
                job = Job(f'mini/{task}', method, seed)
                score = 100 * float((said == seen).mean())
                store.write(
                    Record(
                        job,
                        'done',
                        task=task,
                        group='natural',
                        backbone='ViT',
                        metrics={'accuracy/top1': score},
                        primary='accuracy/top1',
                        counts={'delta': 10},
                    )
                )
                if method != 'BitFit':
                    path = store.folder(job) / 'predictions.npz'
                    write_predictions(path, np.eye(5)[said], seen)
    return store


def test_predictions_become_tests_beside_those_over_tasks(tmp_path):
    store = fill(tmp_path)
    records = store.all()
    (table,) = build_tables(records)
    pictures = pictures_of(table, records, store)
    assert set(pictures.hits) == {'LoRA', 'SSF'}
    assert len(pictures.missing) == 4
    for task, runs in pictures.hits['SSF'].items():
        for seed, found in runs.items():
            cell = next(r for r in table.rows if r.label == 'SSF').cells[task]
            assert 100 * found.mean() == pytest.approx(cell.scores[seed])
    text = compare(table, pictures=pictures)
    assert '| LoRA | SSF | 240 | +25.00 | ' in text
    # 30 discordant pictures each, all of one side: (30 - 1)^2 / 30, four tests.
    assert '| 4 | 0 | 4 |' in text
    assert '0 exact and 4 with the correction' in text
    assert '4 runs have no predictions' in text
    assert 'Iman-Davenport has no F' in text
    # Three methods that both tasks rank alike, by chance: one in six.
    assert 'By counting, no p is below 0.17.' in text
    assert '2 tasks, 2 seeds: over tasks, this design cannot reach p < 0.05' in text
    every = compare(table, pictures=pictures, rows=['LoRA', 'SSF'])
    assert every.count('| continuity |') == 4
    assert 'over the 1 pair shown' in every
    assert 'Holm over the 4 tests shown' in every


def test_runs_on_other_pictures_are_left_out_and_named(tmp_path):
    store = fill(tmp_path, odd=True)
    records = store.all()
    (table,) = build_tables(records)
    pictures = pictures_of(table, records, store)
    assert sorted(pictures.other) == ['mini-digits--ssf--s2', 'mini-textures--ssf--s2']
    assert 'were tested on other labels' in pictures.notes[1]
    assert set(pictures.hits['SSF']['digits']) == {1}
    only = pictures_of(table, records, store, ['LoRA', 'BitFit'])
    assert set(only.hits) == {'LoRA'}
    check_rows([table], ['LoRA', 'SSF'])
    with pytest.raises(PETLError, match="no row 'Lora'.*mean 'LoRA'.*BitFit,"):
        check_rows([table], ['LoRA', 'Lora'])


def test_a_marked_row_is_compared_in_no_table_though_it_is_named(tmp_path):
    store = fill(tmp_path)
    records = store.all()
    for record in records:
        record.test_reads = 1 + (record.job.method == 'SSF')
    (table,) = build_tables(records)
    assert [row.label for row in table.rows if row.marks] == ['SSF']
    # Where another table has a row SSF that may be compared, it can be asked for.
    for rows in (None, ['LoRA', 'SSF']):
        assert set(pictures_of(table, records, store, rows).hits) == {'LoRA'}


# ------------------------------------------------------------- tasks and seeds


def runs_of(level, tasks=8, seeds=3):
    return {
        f't{t}': {s: level + t + 0.1 * s for s in range(seeds)} for t in range(tasks)
    }


def test_a_method_that_is_always_first_is_certainly_first():
    found = uncertainty({'good': runs_of(60.0), 'bad': runs_of(50.0)})
    assert found['good'].best == 1.0
    assert (found['good'].rank.low, found['bad'].rank.high) == (1.0, 2.0)
    assert found['good'].mean.low < 60 + 3.5 + 0.1 < found['good'].mean.high


def test_equals_share_the_first_place():
    found = uncertainty({'a': runs_of(60.0), 'b': runs_of(60.0)})
    assert (found['a'].best, found['b'].best) == (0.5, 0.5)
    assert found['a'].rank.low == found['a'].rank.high == 1.5


def test_the_interval_of_a_mean_is_that_of_the_normal_over_tasks():
    rng = np.random.default_rng(1)
    scores = rng.normal(70, 10, size=40)
    runs = {'a': {f't{i}': {0: float(s)} for i, s in enumerate(scores)}}
    (found,) = uncertainty(runs).values()
    half = 1.96 * scores.std() / math.sqrt(40)
    assert found.mean.low == pytest.approx(scores.mean() - half, abs=0.4)
    assert found.mean.high == pytest.approx(scores.mean() + half, abs=0.4)


def test_one_task_with_one_seed_gives_no_interval():
    assert uncertainty({'a': {'t': {1: 5.0}}, 'b': {'t': {1: 6.0}}}) is None
    with pytest.raises(PETLError, match='no seed in common on t'):
        uncertainty({'a': {'t': {1: 5.0}}, 'b': {'t': {2: 6.0}}})
