"""Ensembles, correlations, and the spread of methods."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from made_up_runs import check_picture, make_bench, refused, run_tool

from mmpetl.analysis import ensemble, spread
from mmpetl.core import PETLError


def _logits(probabilities):
    return np.log(np.asarray(probabilities, np.float64))


def test_three_rules_by_hand():
    # Two lean to class 1, one is sure of class 0.
    z = _logits([[[0.98, 0.02]], [[0.45, 0.55]], [[0.4, 0.6]]])
    assert ensemble.combine(z, 'vote').tolist() == [1]
    assert ensemble.combine(z, 'mean_softmax').tolist() == [0]  # 0.61 against 0.39
    # Of the logits the mean is one up to a constant per member, that of log odds.
    odds = (z[:, 0, 0] - z[:, 0, 1]).mean()
    assert ensemble.combine(z, 'mean_logits').tolist() == [int(odds < 0)]
    with pytest.raises(PETLError, match='an ensemble has rule'):
        ensemble.combine(z, 'median')


def test_a_tied_vote_goes_to_the_surer_voters():
    z = _logits(
        [
            [[0.5, 0.3, 0.2]],
            [[0.1, 0.7, 0.2]],
            [[0.6, 0.3, 0.1]],
            [[0.2, 0.65, 0.15]],
        ]
    )
    # Two votes each; voters of 0 are sure by 0.55, those of 1 by 0.675.
    assert ensemble.combine(z, 'vote').tolist() == [1]
    # A class without a vote never wins, however the others tie.
    assert ensemble.combine(z[:, :, [2, 0, 1]], 'vote').tolist() == [2]


def test_gains_are_those_of_all_members():
    labels = np.array([0, 1, 1, 0])
    z = np.zeros((2, 4, 2))
    z[0, :, 0] = [2, 1, -1, 3]  # right at 0, 2, 3
    z[1, :, 0] = [-1, -2, -3, 1]  # right at 1, 2, 3
    found = ensemble.gain(z, labels, 'mean_logits')
    assert (found.worst, found.mean, found.best) == (75, 75, 75)
    assert found.accuracy == 100
    assert found.over_best == 25


@pytest.mark.parametrize('rule', ensemble.RULES)
def test_subsets_equal_ensembles_of_their_own(rule):
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(4, 50, 3)), rng.integers(3, size=50)
    members = ensemble.Members(z, labels, rule)
    for chosen in ((0, 2), (1, 2, 3)):
        want = ensemble.combine(z[list(chosen)], rule)
        assert (members.predict(chosen) == want).all()
    pairs = ensemble.pairs(z, labels, rule)
    assert len(pairs) == 6
    disagree = (z[0].argmax(1) != z[3].argmax(1)).mean()
    assert next(p for p in pairs if p[:2] == (0, 3))[2] == pytest.approx(disagree)


def test_subsets_are_all_or_a_draw_without_repeats():
    assert len(ensemble.subsets(5, 2, 100)) == 10
    drawn = ensemble.subsets(30, 15, 20)
    assert len(set(drawn)) == 20
    assert all(len(set(s)) == 15 for s in drawn)
    assert drawn == ensemble.subsets(30, 15, 20)


def test_correlations_equal_scipy():
    from scipy import stats

    rng = np.random.default_rng(1)
    x = rng.integers(5, size=40).astype(float)  # many ties
    y = x + rng.normal(size=40)
    assert ensemble.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert ensemble.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    assert np.isnan(ensemble.pearson(np.ones(5), y[:5]))
    assert (ensemble.ranks(x) == stats.rankdata(x)).all()


def test_places_of_ties_are_shared():
    values = np.array([[3.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
    assert spread.rank_table(values).tolist() == [[1, 2.5, 2.5], [3, 2, 1]]
    found = spread.rank_frequency(values)
    assert found.tolist() == [[1, 0, 1], [0, 1.5, 0.5], [1, 0.5, 0.5]]
    assert (found.sum(1) == 2).all()


def test_a_spread_skips_what_is_not_there():
    values = np.array([[1.0, np.nan, 4.0], [np.nan, np.nan, 2.0]])
    found = spread.accuracy_spread(values)
    assert found[0] == 3
    assert np.isnan(found[1])


def test_sensitivity_counts_collapsed_trials():
    found = spread.sensitivity([80.0, 40.0, 39.9, 10.0])
    assert found['best'] == 80
    assert found['spread'] == 70
    assert found['collapse_rate'] == 0.5  # below 40, not at it
    with pytest.raises(PETLError, match='at least one finished trial'):
        spread.sensitivity([])


def test_trials_without_a_value_do_not_count():
    pruned = {'options': {'lr': 1}, 'value': None, 'status': 'pruned'}
    search = {'trials': [pruned, {'options': {}, 'value': 2}]}
    assert spread.trials_of(search) == [{'options': {}, 'value': 2.0}]
    with pytest.raises(PETLError, match='without trials'):
        spread.trials_of({'budget': 3})
    with pytest.raises(PETLError, match='without options'):
        spread.trials_of({'trials': [{'value': 3}]})


def test_the_ensemble_tool(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path)
    run_tool(monkeypatch, 'ensemble', tmp_path, '--limit', 5)
    to = tmp_path / 'analysis' / 'ensemble'
    for task in ('digits', 'letters'):
        check_picture(to / f'{task}-growth.png')
        check_picture(to / f'{task}-pairs.png')
    found = json.loads((to / 'digits.numbers.json').read_text())
    assert set(found['all_methods']) == set(ensemble.RULES)
    assert found['methods_by_size']['2']['ensembles'] == 5
    assert found['seeds_by_size']['2']['ensembles'] == 6  # one pair per method
    rows = list(csv.DictReader((to / 'gains.csv').open()))
    mean = [r for r in rows if r['task'] == 'mean of all tasks']
    assert {r['rule'] for r in mean} == set(ensemble.RULES)
    one = [float(r['accuracy']) for r in rows if r['rule'] == 'vote' and r['members']]
    vote = next(r for r in mean if r['rule'] == 'vote')
    assert float(vote['accuracy']) == pytest.approx(np.mean(one), abs=1e-3)
    assert '6 methods together' in capsys.readouterr().out


def test_the_ensemble_tool_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path, tasks=['digits'], methods=['LoRA'], seeds=[42])
    line = refused(monkeypatch, capsys, 'ensemble', tmp_path)
    assert 'holds no two runs of one task' in line
    line = refused(monkeypatch, capsys, 'ensemble', tmp_path, '--limit', 0)
    assert '--limit of at least 1' in line


def test_the_spread_tool(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path, trials=True)
    run_tool(monkeypatch, 'spread', tmp_path)
    to = tmp_path / 'analysis' / 'spread'
    for name in ('spread', 'ranks', 'sensitivity'):
        check_picture(to / f'{name}.png')
    found = json.loads((to / 'spread.numbers.json').read_text())
    # Trials score 1, 1/2 and 1/3 of the best: one of three is below half.
    assert found['sensitivity']['LoRA']['collapse_rate'] == pytest.approx(1 / 3)
    assert found['sensitivity']['LoRA']['chosen'] == {'lr': {'1': 2}}
    assert len(found['mean_rank']) == 6
    assert 'digits: spread' in capsys.readouterr().out


def test_the_spread_tool_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path, methods=['Full', 'LoRA'])
    line = refused(monkeypatch, capsys, 'spread', tmp_path)
    assert 'has 1 tuning method, a spread needs two' in line
