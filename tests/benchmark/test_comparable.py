"""Where rows of a table differ in more than the method, a reader is told by name."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from mmpetl.benchmark.comparable import compare, leaks
from mmpetl.benchmark.records import DataRead, Job, Record
from mmpetl.benchmark.scores import labels_of
from mmpetl.benchmark.tables import build_tables

TEST = DataRead('a' * 64, 8000, 'VTAB', 'content', 0)
TRAIN = DataRead('b' * 64, 1000, 'VTAB', 'content')


def run(method='LoRA', task='svhn', seed=1, score=70.0, **changes):
    job = Job(f'vtab/{task}', method, seed)
    job = replace(job, **changes.pop('job', {}))
    facts = dict(
        family='adapter',
        task=task,
        group='structured',
        backbone='ViT-B/16',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        counts={'delta': 1000},
        base={'file': 'base.npz', 'fingerprint': 'f0'},
        preprocessing={'normalisation': 'half', 'size': 224},
        test_reads=1,
        device='GPU',
        versions={'torch': '2.0'},
        commit='1' * 40,
        data={'train': TRAIN, 'test': TEST},
        recipe_digest='r' * 16,
        steps=1600,
        epochs=100,
        batch=64,
        resolution=[224, 224],
        processes=1,
        threads=1,
        host='here',
        shared=1,
    )
    return Record(job, 'done', **{**facts, **changes})


def fair():
    return [run('LoRA'), run('SSF', score=71.0), run('BitFit', score=60.0)]


def found(records):
    return compare(records, labels_of(records))


def test_rows_that_differ_in_the_method_alone_have_no_note():
    seeds = [run(m, seed=s) for m in ('LoRA', 'SSF') for s in (1, 2)]
    tasks = [run(m, task=t) for m in ('LoRA', 'SSF') for t in ('svhn', 'dtd')]
    for records in (fair(), seeds, tasks):
        assert found(records).warnings == ()
        assert found(records).unknown == ()
    searched = [
        replace(
            r,
            job=replace(r.job, options={'optim_wrapper.optimizer.lr': i}),
            search={'budget': 12},
            recipe_digest=f'{i}' * 16,
        )
        for i, r in enumerate(fair())
    ]
    assert found(searched).warnings == ()  # what a search chooses is the method's


MARKS = {
    'longer': ({'epochs': 400, 'steps': 6400}, 'svhn: trained longer, on 400,000'),
    'shorter': ({'epochs': 50, 'steps': 800}, 'svhn: trained shorter, on 50,000'),
    'test subset': (
        {'data': {'train': TRAIN, 'test': DataRead('c' * 64, 100)}},
        'svhn: tested on 100 samples (cccccccc), not 8,000 samples (aaaaaaaa)',
    ),
    'part of the loader': (
        {'data': {'train': TRAIN, 'test': DataRead('', 64)}},
        'svhn: tested on 64 samples of unknown identity',
    ),
    'test for training': (
        {'data': {'train': TEST, 'test': TEST}},
        'svhn: trained on the test data',
    ),
    'copies': (
        {'data': {'train': TRAIN, 'test': replace(TEST, copies=200)}},
        '200 of 8,000 test samples are copies of training samples',
    ),
    'other training data': (
        {'data': {'train': DataRead('d' * 64, 1000), 'test': TEST}},
        'svhn: trained on 1,000 samples (dddddddd)',
    ),
    'test for validation': (
        {'data': {'train': TRAIN, 'val': TEST, 'test': TEST}},
        'svhn: validated on the test data',
    ),
    'reads': ({'test_reads': 2}, 'svhn: scored the test set 2 times'),
    'edited': (
        {'curves': {'loss': [[1, 2.0], [6400, 0.1]]}},
        'its record contradicts itself: 1,600 steps, and a curve that ends at 6,400',
    ),
}


def test_curves_of_older_versions_count_passes():
    accumulates = {'options': {'optim_wrapper.accumulative_counts': 4}}
    for recipe in ('vtab/svhn', 'elsewhere/unknown'):
        job = {**accumulates, 'recipe': recipe}
        for last, marked in ((1600, False), (6398, False), (6401, True), (800, True)):
            curves = {'loss': [[1, 2.0], [last, 0.1]]}
            record = run('Mona', job=job, curves=curves)
            assert record.steps == 1600
            assert bool(leaks(record)) is marked
    for wrong in ('x', 0, -2, [4], {'a': 1}):
        options = {'optim_wrapper.accumulative_counts': wrong}
        assert leaks(run('Mona', job={'options': options}, curves=curves))
    # An option that reaches further than data is not composed.
    evil = {**job['options'], 'custom_imports': {'imports': ['antigravity']}}
    assert leaks(run('Mona', job={'options': evil}, curves=curves))
    assert 'antigravity' not in sys.modules


@pytest.mark.parametrize('name', MARKS)
def test_what_makes_a_row_incomparable_is_a_mark(name):
    change, reason = MARKS[name]
    records = [*fair(), run('Mona', score=99.0, **change)]
    (table,) = build_tables(records)
    row = next(r for r in table.rows if r.method == 'Mona')
    assert any(reason in text for text in row.marks)
    assert (row.rank, row.ppt) == (None, None)
    assert table.rows[-1] is row  # whatever its score
    assert 'Mona' not in table.scores()
    assert 'Mona' not in table.runs()
    others = [r for r in table.rows if r is not row]
    assert not any(r.marks for r in others)
    assert sorted(r.rank for r in others) == [1, 2, 3]
    assert any('Mona ‡ is not to be compared' in text for text in table.warnings)


DIFFERENCES = {
    'batch': ({'batch': 32, 'steps': 3200}, 'batch of svhn. 64: BitFit, LoRA, SSF; 32'),
    'resolution': ({'resolution': [384, 384]}, 'resolution of svhn. 224 x 224'),
    'preprocessing': (
        {'preprocessing': {'normalisation': 'imagenet'}},
        'normalisation imagenet: Mona',
    ),
    'leaf': ({'job': {'leaf': True}}, "a published leaf's: Mona"),
    'option': (
        {'job': {'options': {'optim_wrapper.optimizer.lr': 0.1}}},
        'option optim_wrapper.optimizer.lr of svhn. as in the recipe: BitFit',
    ),
    'test option': (
        {'job': {'options': {'test_evaluator.topk': [5]}}},
        'The test of svhn is changed by options: test_evaluator.topk.',
    ),
    'resolved config': ({'recipe_digest': 'q' * 16}, 'qqqqqqqq: Mona'),
    'commit': ({'commit': '2' * 40 + '-dirty'}, '2222222222-dirty: Mona'),
    'device': ({'device': 'CPU'}, 'device. GPU: BitFit, LoRA, SSF; CPU: Mona'),
    'versions': ({'versions': {'torch': '2.1'}}, 'torch 2.1: Mona'),
    'threads': ({'threads': 2}, 'threads. 1: BitFit, LoRA, SSF; 2: Mona'),
    'processes': ({'processes': 2}, 'processes'),
    'features': (
        {'features': {'train': {'key': 'a' * 32}}},
        'from disk (its times). none: BitFit, LoRA, SSF; train: Mona',
    ),
    'base': ({'base': {'file': 'x', 'fingerprint': 'f1'}}, 'fingerprint f1: Mona'),
    'search': ({'search': {'budget': 12}}, 'different budgets (none, 12 trials)'),
    'seeds': ({'seed': 2}, 'seeds. 1: BitFit, LoRA, SSF; 2: Mona'),
    'validation': (
        {'data': {'train': TRAIN, 'val': DataRead('e' * 64, 9), 'test': TEST}},
        'validation of svhn. False: BitFit, LoRA, SSF; True: Mona',
    ),
}


@pytest.mark.parametrize('name', DIFFERENCES)
def test_what_else_differs_is_told_by_name(name):
    change, sentence = DIFFERENCES[name]
    records = [*fair(), run('Mona', **change)]
    (table,) = build_tables(records)
    assert any(sentence in text for text in table.warnings), table.warnings
    assert not any(row.marks for row in table.rows)


def test_a_copy_that_a_public_set_holds_is_told_and_marks_nothing():
    twin = {'train': TRAIN, 'test': replace(TEST, copies=3)}
    records = [run('LoRA', data=twin), run('SSF', data=twin)]
    assert found(records).marks == {}
    assert found(records).warnings == (
        '3 test samples of svhn have the content of a training sample.',
    )


def test_runs_within_a_row_may_differ_too():
    records = [run('LoRA', seed=1), run('LoRA', seed=2, device='CPU')]
    assert 'All rows mix device: CPU and GPU.' in found(records).warnings


def test_many_rows_are_counted_and_not_all_named():
    records = [run(f'M{i}') for i in range(20)] + [run('X', device='CPU')]
    assert found(records).warnings == (
        'Rows differ in device. GPU: M0, M1, M10 and 17 more; CPU: X.',
    )


def test_records_of_format_1_leave_it_unknown():
    data = run('Mona', epochs=None, steps=None, batch=None, data={}).to_json()
    data = {k: v for k, v in data.items() if k not in ('data', 'steps', 'batch')}
    old = Record.from_json({**data, 'format': 1})
    (table,) = build_tables([*fair(), old])
    assert not any(row.marks for row in table.rows)
    assert any('1 of 4 runs do not say what they' in note for note in table.notes)


def test_leaves_are_not_held_to_the_length_of_recipes():
    leaf = run('Mona', epochs=500, steps=8000, job={'leaf': True})
    comparison = found([*fair(), leaf])
    assert comparison.marks == {}
    assert any('epochs of svhn. 100' in text for text in comparison.warnings)
