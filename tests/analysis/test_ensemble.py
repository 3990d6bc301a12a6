"""Ensembles, correlations, and the spread of methods."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from made_up_runs import check_picture, make_bench, refused, run_tool

from mmpetl.analysis import ensemble, selection, spread
from mmpetl.cli.commands.analyse import spread as spread_tool
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


RATE = 'optim_wrapper.optimizer.lr'


def rewrite(store, change, keep=True):
    """Write each record again as ``change`` makes it, with its predictions."""
    for record in store.all():
        old, new = store.folder(record.job), change(record)
        store.write(new)
        if new.job == record.job:
            continue
        shutil.copy(old / 'predictions.npz', store.folder(new.job))
        if not keep:
            shutil.rmtree(old)


def searched(record):
    """A final run of a search, whose settings differ from task to task."""
    options = {RATE: len(record.task) / 1000}
    return replace(record, job=replace(record.job, variant='searched', options=options))


def test_searched_runs_are_analysed_and_stand_apart(tmp_path, monkeypatch, capsys):
    store = make_bench(tmp_path / 'alone', trials=True, seeds=[42, 43])
    rewrite(store, searched, keep=False)
    for tool in ('spread', 'agreement', 'ensemble'):
        run_tool(monkeypatch, tool, tmp_path / 'alone')
    found = tmp_path / 'alone' / 'analysis' / 'spread' / 'spread.numbers.json'
    found = json.loads(found.read_text())
    assert found['sensitivity']['LoRA (searched)']['tasks'] == 2
    assert 'Full (searched)' in found['methods']
    # Beside those of the recipe they have names of their own; references stay such.
    store = make_bench(tmp_path / 'both', methods=['Full', 'LoRA', 'SSF'])
    rewrite(store, searched)
    _, methods, values = selection.mean_scores(store.all())
    assert methods[:2] == ['Full', 'Full (searched)']
    assert set(methods[2:]) == {'LoRA', 'LoRA (searched)', 'SSF', 'SSF (searched)'}
    assert np.isfinite(values).all()
    run_tool(monkeypatch, 'spread', tmp_path / 'both')
    found = tmp_path / 'both' / 'analysis' / 'spread' / 'spread.numbers.json'
    scores = np.array(json.loads(found.read_text())['scores'])
    spans = scores[:, 2:].max(1) - scores[:, 2:].min(1)
    assert json.loads(found.read_text())['spread'] == pytest.approx(list(spans))


def test_settings_are_no_seeds(tmp_path):
    """Runs of two ranks without a variant: rows of their own, as in tables."""
    store = make_bench(
        tmp_path, tasks=['digits'], methods=['LoRA', 'SSF'], seeds=[1, 2]
    )
    rank = 'model.backbone.method.rank'

    def ranked(record):
        options = {} if record.job.method == 'SSF' else {rank: 3 + record.job.seed}
        return replace(record, job=replace(record.job, options=options))

    rewrite(store, ranked, keep=False)
    records = selection.finished(tmp_path)
    names = ['LoRA (rank=4)', 'LoRA (rank=5)', 'SSF']
    assert sorted(set(selection.names_of(records).values())) == names
    assert selection.mean_scores(records)[1] == names
    assert list(selection.load_seeds(tmp_path, records)) == ['SSF']
    assert [r.name for r in selection.load_task(tmp_path, records, 1)] == [
        'LoRA (rank=4)',
        'SSF',
    ]


def test_runs_of_one_name_task_and_seed_are_refused(tmp_path):
    store = make_bench(tmp_path, tasks=['digits'], methods=['LoRA'], seeds=[1])
    rewrite(store, lambda r: replace(r, job=replace(r.job, recipe='mini/digits_again')))
    with pytest.raises(
        PETLError, match='are both LoRA on digits with seed 1; give one'
    ):
        selection.mean_scores(store.all())


def test_a_task_of_two_sets_is_two(tmp_path):
    store = make_bench(tmp_path, tasks=['digits'], methods=['LoRA'], seeds=[1])
    rewrite(store, lambda r: replace(r, job=replace(r.job, recipe='own/digits')))
    tasks, methods, values = selection.mean_scores(store.all())
    assert (tasks, methods) == (['digits-mini', 'digits-own'], ['LoRA'])
    assert values.shape == (2, 1)


def test_fractions_and_percent_are_one_unit(tmp_path):
    store = make_bench(tmp_path, methods=['LoRA', 'SSF'], trials=True)

    def of_clips(record):
        if record.task == 'digits':
            return record
        score = record.score / 100
        trials = [{**t, 'value': t['value'] / 100} for t in record.search['trials']]
        return replace(
            record,
            metrics={'acc/top1': score},
            primary='acc/top1',
            search={'trials': trials},
        )

    plain, sensitive = selection.mean_scores(store.all())[2], spread_tool.searched
    known = sensitive(store.all())
    for record in store.all():
        store.write(of_clips(record))
    assert selection.mean_scores(store.all())[2] == pytest.approx(plain)
    for name, tasks in sensitive(store.all()).items():
        for (_, one), (_, other) in zip(tasks, known[name], strict=True):
            values = [t['value'] for t in other]
            assert [t['value'] for t in one] == pytest.approx(values)


def test_the_spread_tool_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path, methods=['Full', 'LoRA'])
    line = refused(monkeypatch, capsys, 'spread', tmp_path)
    assert 'has 1 tuning method, a spread needs two' in line
