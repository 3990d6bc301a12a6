"""Which method to take: what fits, how it ranks, and what is not known."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmpetl.benchmark.cards import read_cards
from mmpetl.benchmark.choosing import Limits, choose, facts_of
from mmpetl.benchmark.choosing_text import choice_text, limits_text, verdict
from mmpetl.benchmark.records import DataRead, Job, Record, RecordStore, write_json
from mmpetl.benchmark.verdicts import digest_of
from mmpetl.core import PETLError

TASKS = ('caltech101', 'cifar100', 'dtd', 'oxford_flowers102', 'svhn', 'sun397')
MB = 2**20


def record(method, task, score, seed=1, **changes):
    facts = dict(
        status='done',
        family='f',
        task=task,
        group='natural',
        backbone='ViT-B/16',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        counts={'delta': 1000, 'selected': 0, 'head': 5},
        peak_memory_bytes=100 * MB,
        step_seconds=0.1,
        device='one',
        data={'train': DataRead(count=1000)},
    )
    return Record(Job(f'vtab/{task}', method, seed), **{**facts, **changes})


def rows(method, level, tasks=TASKS, seeds=(1, 2), **changes):
    return [
        record(method, task, level + i + seed / 10, seed, **changes)
        for i, task in enumerate(tasks)
        for seed in seeds
    ]


def field():
    """LoRA is best, SSF a little behind, Mona costs too much, VPTDeep cannot fold."""
    return [
        *rows('LoRA', 70.0, peak_memory_bytes=300 * MB),
        *rows('SSF', 69.0, counts={'delta': 200}),
        *rows('Mona', 80.0, peak_memory_bytes=900 * MB, counts={'delta': 9000}),
        *rows('VPTDeep', 75.0, counts={'delta': 500}),
        *rows('BitFit', 60.0, counts={'delta': 0, 'selected': 100}),
    ]


def labels(choice):
    return [candidate.label for candidate in choice.candidates]


def test_without_limits_all_are_ranked_and_the_order_is_that_of_the_ranks():
    (choice,) = choose(field())
    assert labels(choice) == ['Mona', 'VPTDeep', 'LoRA', 'SSF', 'BitFit']
    assert [c.rank for c in choice.candidates] == [1, 2, 3, 4, 5]
    assert choice.candidates[0].mean == pytest.approx(80 + 2.5 + 0.15)
    assert choice.candidates[0].best == 1.0
    assert choice.candidates[0].p is None
    # Six tasks, all of one sign: 2 / 2 ** 6, times four comparisons.
    assert {c.p for c in choice.candidates[1:]} == {4 / 32}
    assert choice.tasks == dict.fromkeys(TASKS, 1000)


def test_limits_leave_out_and_say_why_and_ranks_are_among_the_rest():
    limits = Limits(memory_bytes=400 * MB, trainable=5000, folds=True)
    (choice,) = choose(field(), limits)
    assert labels(choice) == ['LoRA', 'SSF', 'BitFit']
    assert [c.rank for c in choice.candidates] == [1, 2, 3]
    assert choice.excluded == {
        'Mona': ('memory 900 MB', 'trainable parameters 9,000', 'does not fold'),
        'VPTDeep': ('does not fold',),
    }
    # Six tasks, two comparisons: 2 * 2 / 2 ** 6 = 0.0625, which shows nothing.
    assert [c.label for c in choice.tied] == ['LoRA', 'SSF', 'BitFit']
    text = choice_text(choice, limits)
    assert text.count('| 1= |') == 3
    assert '2 do not fit: Mona (memory 900 MB, ' in text
    assert 'With 6 tasks no difference can be shown: the least p is 0.0625; 7' in text
    assert (
        'Of these, least in memory SSF, BitFit (100 MB); in trainable parameters '
        'BitFit (100); in step LoRA, SSF, BitFit (100 ms).'
    ) in text
    assert limits_text(limits) == (
        'memory at most 400 MB; trainable parameters at most 5,000; folds'
    )


def test_enough_tasks_tell_the_first_from_the_second():
    (choice,) = choose([*rows('LoRA', 70.0), *rows('SSF', 69.0)])
    assert [c.p for c in choice.candidates] == [None, 2 / 64]
    assert [c.label for c in choice.tied] == ['LoRA']
    assert verdict(choice)[0].startswith('LoRA is first, and all others are shown')
    assert '| 1 | LoRA |' in choice_text(choice, Limits())


def test_what_no_record_tells_excludes_nobody_and_is_said():
    found = [*field(), *rows('RepAdapter', 50.0, peak_memory_bytes=None)]
    limits = Limits(memory_bytes=400 * MB, latency_seconds=0.01)
    (choice,) = choose(found, limits)
    assert labels(choice) == ['VPTDeep', 'LoRA', 'SSF', 'BitFit', 'RepAdapter']
    assert choice.candidates[-1].unknown == ('memory', 'latency')
    assert (
        choice.unknown[0] == 'memory: no record tells it of RepAdapter, kept with a ?'
    )
    assert 'this limit excludes nothing' in choice.unknown[1]
    assert '| RepAdapter ? |' in choice_text(choice, limits)
    with_strict = Limits(memory_bytes=400 * MB, strict=True)
    (choice,) = choose(found, with_strict)
    assert choice.excluded['RepAdapter'] == ('memory is not known',)


def test_a_card_that_is_no_file_or_has_a_negative_latency_is_named(tmp_path):
    one, store = field()[0], RecordStore(tmp_path)
    store.write(one)
    key = {'record': digest_of(store.folder(one.job) / 'record.json')}
    card = tmp_path / 'scorecard' / 'cells' / f'{one.job.id}.json'
    write_json(card, {'key': key, 'values': {'latency_ms_1': -1.0}})
    with pytest.raises(PETLError, match=r'has a latency of -1\.0 ms'):
        read_cards(tmp_path, [one])
    card.unlink()
    card.symlink_to(card)
    with pytest.raises((PETLError, OSError), match=re.escape(card.name)):
        read_cards(tmp_path, [one])


def test_cards_of_the_scorecard_tell_latency_and_folding(tmp_path):
    store = RecordStore(tmp_path)
    for one in field():
        store.write(one)
    records = store.all()
    for one in records:
        name = one.job.method
        # A card of VPTDeep is of another record, and SSF was never measured.
        path = store.folder(one.job) / 'record.json'
        digest = 'another' if name == 'VPTDeep' else digest_of(path)
        values = {
            'latency_ms_1': 3.0 if name == 'Mona' else 2.0,
            'folds': 'yes' if name == 'Mona' else 'no: it adds a bias',
        }
        if name != 'SSF':
            card = tmp_path / 'scorecard' / 'cells' / f'{one.job.id}.json'
            write_json(card, {'key': {'record': digest}, 'values': values})
    cards = read_cards(tmp_path, records)
    limits = Limits(latency_seconds=0.0025, folds=True)
    (choice,) = choose(records, limits, cards)
    assert choice.excluded == {
        'Mona': ('latency 3 ms',),
        'LoRA': ('does not fold',),
        'BitFit': ('does not fold',),
        'VPTDeep': ('does not fold',),
    }
    # What was measured is stronger than what a method says of itself.
    assert facts_of([r for r in records if r.job.method == 'LoRA']).folds is True
    assert labels(choice) == ['SSF']
    assert choice.candidates[0].unknown == ('latency',)


def test_one_run_that_does_not_tell_makes_the_row_unknown():
    some = rows('LoRA', 70.0)
    some[3] = replace(some[3], peak_memory_bytes=None, counts={})
    facts = facts_of(some)
    assert (facts.memory_bytes, facts.trainable, facts.step_seconds) == (
        None,
        None,
        0.1,
    )
    assert facts.folds is True
    assert facts_of(rows('NoSuchMethod', 1.0)).folds is None


def test_only_tasks_like_ones_own_count():
    found = field()
    for one in found:
        if one.task == 'svhn':
            one.data = {'train': DataRead(count=50_000)}
        if one.task == 'dtd':
            one.data = {}
    (choice,) = choose(found, Limits(pictures=2000))
    assert set(choice.tasks) == set(TASKS) - {'svhn'}
    assert choice.tasks['dtd'] is None
    assert choice.unknown == (
        'training pictures: records do not tell, or not alike, how many dtd has; kept',
    )
    (choice,) = choose(found, Limits(pictures=40_000))
    assert set(choice.tasks) == {'svhn', 'dtd'}
    every = [replace(r, data={'train': DataRead(count=1000)}) for r in found]
    with pytest.raises(PETLError, match='with 66,667 to 600,000 training pictures'):
        choose(every, Limits(pictures=200_000))


def test_kinds_of_tasks_are_told_by_their_metrics():
    dense = record('LoRA', 'ade20k', 0.0, metrics={'mIoU': 40.0}, primary='mIoU')
    found = [*field(), dense]
    assert len(choose(found)) == 2
    (choice,) = choose(found, Limits(kind='segmentation'))
    assert labels(choice) == ['LoRA']
    assert verdict(choice) == ['Only LoRA fits; there is nothing to rank.']
    with pytest.raises(PETLError, match="no kind of task 'image'.*Kinds: detection"):
        choose(found, Limits(kind='image'))
    with pytest.raises(PETLError, match='no run is of kind videos; there are images'):
        choose(field(), Limits(kind='videos'))


def test_rows_that_lack_tasks_are_named_and_not_ranked():
    (choice,) = choose([*field(), *rows('GPS', 99.0, tasks=TASKS[:2])])
    assert 'GPS' not in labels(choice)
    assert len(choice.incomplete['GPS']) == 4
    assert 'tasks are missing: GPS (4)' in choice_text(choice, Limits())


def test_a_row_that_lacks_a_seed_says_where():
    lost = [r for r in rows('SSF', 69.0) if (r.task, r.job.seed) != ('dtd', 1)]
    failed = record('SSF', 'dtd', 0.0, status='failed', metrics={}, error='killed')
    # With or without the record of a failure, one seed of dtd is not there.
    for found in (lost, [*lost, failed]):
        (choice,) = choose([*rows('LoRA', 70.0), *found])
        assert choice.candidates[1].mean == pytest.approx((71.65 * 6 + 0.05) / 6)
        assert choice.design.num_seeds == 1
        said = 'over fewer seeds than the table has: SSF (dtd 1 of 2).'
        assert said in choice_text(choice, Limits())


def test_seeds_that_no_row_shares_are_none_of_the_design():
    found = [*rows('LoRA', 70.0, seeds=(1, 2)), *rows('SSF', 69.0, seeds=(2, 3))]
    (choice,) = choose(found)
    assert choice.design.num_seeds == 1
    (choice,) = choose([*found, *rows('BitFit', 60.0, seeds=(3, 4))])
    assert choice.design.num_seeds == 0
    assert choice.candidates[0].rank_interval is None


def test_nothing_that_fits_is_an_answer():
    limits = Limits(trainable=1)
    (choice,) = choose(field(), limits)
    assert choice.candidates == ()
    assert '- No method fits.' in choice_text(choice, limits)


def test_one_task_with_one_seed_has_no_interval_and_shows_nothing():
    found = rows('LoRA', 70.0, TASKS[:1], (1,)) + rows('SSF', 60.0, TASKS[:1], (1,))
    (choice,) = choose(found)
    assert choice.candidates[0].rank_interval is None
    assert len(choice.tied) == 2
    text = choice_text(choice, Limits())
    assert 'No intervals' in text
    assert 'With 1 task no difference can be shown: the least p is 1; 6 tasks' in text


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        (Limits(memory_bytes=-1), 'above 0, not -1'),
        (Limits(step_seconds=float('nan')), 'above 0, not nan'),
        (Limits(pictures=0), 'above 0, not 0'),
        (Limits(backbone='Swin'), "of backbone 'Swin'; there are ViT-B/16"),
        (Limits(suites=['fgvc']), 'of fgvc; there are vtab'),
        (Limits(protocol='published'), 'final run of the published protocol'),
    ],
)
def test_limits_that_are_none_are_refused_in_a_line(limits, message):
    with pytest.raises(PETLError, match=message) as caught:
        choose(field(), limits)
    assert '\n' not in str(caught.value)


def test_a_row_that_is_not_to_be_compared_is_no_candidate_and_the_reason_is_said():
    found = field()
    assert found[0].job.method == 'LoRA'
    found[0].test_reads = 5
    (choice,) = choose(found)
    assert labels(choice) == ['Mona', 'VPTDeep', 'SSF', 'BitFit']
    assert choice.excluded == {'LoRA': ('is not to be compared ‡',)}
    assert any('scored the test set 5 times' in line for line in choice.warnings)
    assert 'scored the test set 5 times' in choice_text(choice, Limits())


TOOL = Path(__file__).parents[2] / 'tools' / 'benchmark' / 'choose.py'


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_the_tool_prints_and_writes_the_answer(tmp_path, monkeypatch, capsys):
    store = RecordStore(tmp_path)
    for one in field():
        store.write(one)
    path = tmp_path / 'choice.json'
    run_tool(
        monkeypatch, '--out', tmp_path, '--memory-gb', 0.5, '--folds', '--json', path
    )
    said = capsys.readouterr().out
    limits = Limits(memory_bytes=2**29, folds=True)
    (choice,) = choose(store.all(), limits)
    assert said == f'{choice_text(choice, limits)}{path}\n'
    data = json.loads(path.read_text())
    assert data['asked']['memory_bytes'] == 2**29
    (found,) = data['choices']
    assert found == json.loads(json.dumps(choice.to_json()))
    assert found['tied'] == ['LoRA', 'SSF', 'BitFit']
    assert found['design']['tasks_needed_corrected'] == 7


def test_the_tool_refuses_in_a_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, '--out', tmp_path / 'nothing')
    assert stop.value.code == 1
    assert capsys.readouterr().err.count('\n') == 1
