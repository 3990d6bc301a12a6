"""Tables say what they average, and never average what they must not."""

from __future__ import annotations

import csv
import io
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from mmengine.config import Config

from mmpetl.benchmark.collect import ppt_of, primary_of
from mmpetl.benchmark.config_digest import config_hash
from mmpetl.benchmark.plan import choose_recipes
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.render import render
from mmpetl.benchmark.scores import (
    METRICS,
    labels_of,
    metric_of,
    percent,
    search_spaces,
)
from mmpetl.benchmark.statistics_tables import compare, draw
from mmpetl.benchmark.tables import build_table, build_tables
from mmpetl.config.compose import compose as compose_recipe
from mmpetl.config.protocols import best_by, check_ranked
from mmpetl.core import PETLError
from mmpetl.evaluation.masked_accuracy import MaskedAccuracy
from mmpetl.evaluation.metric_names import FRACTIONS
from mmpetl.evaluation.ppt import ppt


def record(method='LoRA', task='cifar100', score=70.0, seed=42, **changes):
    job = Job(f'vtab/{task}', method, seed, changes.pop('protocol', 'honest'))
    job = replace(job, **changes.pop('job', {}))
    groups = {'cifar100': 'natural', 'svhn': 'natural', 'dmlab': 'structured'}
    facts = dict(
        family='reparameterisation',
        task=task,
        group=groups.get(task, ''),
        backbone='ViT-B/16',
        metrics={} if score is None else {'accuracy/top1': score},
        primary='' if score is None else 'accuracy/top1',
        counts={} if score is None else {'delta': 294_912, 'head': 76_900},
    )
    status = 'failed' if score is None else 'done'
    return Record(job, status, **{**facts, **changes})


def three_tasks():
    return [
        record('LoRA', 'cifar100', 70.0, 1),
        record('LoRA', 'cifar100', 72.0, 2),
        record('LoRA', 'svhn', 80.0, 1),
        record('LoRA', 'svhn', 84.0, 2),
        record('LoRA', 'dmlab', 40.0, 1),
        record('LoRA', 'dmlab', 46.0, 2),
    ]


def test_means_are_plain_and_by_group_with_their_names():
    (table,) = build_tables(three_tasks())
    (row,) = table.rows
    # Tasks: 71, 82, 43. Groups: natural 76.5, structured 43.
    assert row.means['plain'].value == pytest.approx((71 + 82 + 43) / 3)
    assert row.means['group'].value == pytest.approx((76.5 + 43) / 2)
    assert row.means['plain'].label == 'plain mean (3 tasks)'
    assert row.means['group'].label == 'group mean (2 groups)'
    # Per seed: (70 + 80 + 40) / 3 and (72 + 84 + 46) / 3, n - 1 below.
    gap = (72 + 84 + 46 - 70 - 80 - 40) / 3
    assert row.means['plain'].spread == pytest.approx(gap / 2**0.5)
    text = render(table)
    assert 'plain mean (3 tasks)' in text
    assert 'group mean (2 groups)' in text
    assert ' mean |' not in text.replace('(3 tasks)', '')


def test_ppt_is_of_the_plain_mean_and_the_exact_count():
    (table,) = build_tables(three_tasks())
    value = ppt((71 + 82 + 43) / 300, 294_912)
    assert table.rows[0].ppt == pytest.approx(value)
    assert f'| {value:.3f} |' in render(table)
    assert '294,912' in render(table)


def test_ppt_needs_the_counts_of_every_run():
    found = [
        record('LoRA', 'cifar100', 70.0, counts={'delta': 5_000_000}),
        record('LoRA', 'svhn', 80.0, counts={'delta': 1_000}),
        record('LoRA', 'dmlab', 40.0, counts={}),
        record('LoRA', 'dmlab', None, 7),
    ]
    (table,) = build_tables(found)
    assert (table.rows[0].ppt, table.rows[0].trainable) == (None, None)
    found[2].counts = {'delta': 3_000}
    (table,) = build_tables(found)
    # (5,000,000 + 1,000 + 3,000) / 3 = 1,668,000; log10(1.1668) = 0.0669968
    assert table.rows[0].trainable == (1_000, 5_000_000)
    assert table.rows[0].ppt == pytest.approx(190 / 300 * math.exp(-0.0669968), 1e-6)


def test_scores_at_and_below_zero_are_sorted_like_others():
    found = [
        record(name, 'svhn', metrics={'r2': value}, primary='r2')
        for name, value in (('LoRA', -0.5), ('SSF', 0.0), ('BitFit', -2.0))
    ]
    (table,) = build_tables(found)
    assert [row.label for row in table.rows] == ['SSF', 'LoRA', 'BitFit']


def test_protocols_and_backbones_are_never_mixed():
    mixed = [record(), record(protocol='published'), record(backbone='Swin-B', seed=7)]
    tables = build_tables(mixed)
    assert [(t.protocol, t.backbone) for t in tables] == [
        ('honest', 'Swin-B'),
        ('honest', 'ViT-B/16'),
        ('published', 'ViT-B/16'),
    ]
    assert all(len(table.rows) == 1 for table in tables)
    assert 'published protocol' in tables[2].title
    metric = METRICS['accuracy/top1']
    labels = labels_of(mixed)
    with pytest.raises(PETLError, match='protocols'):
        build_table(mixed[:2], 'vtab', 'ViT-B/16', metric, labels)
    with pytest.raises(PETLError, match='backbones'):
        build_table([mixed[0], mixed[2]], 'vtab', 'ViT-B/16', metric, labels)


def test_metrics_are_never_mixed():
    def dense(task, name, value):
        return record(task=task, metrics={name: value}, primary=name, group='dense')

    rows = [dense('voc', 'pascal_voc/mAP', 0.85), dense('ade20k', 'mIoU', 47.4)]
    tables = build_tables(rows)
    assert {(t.metric.key, t.rows[0].means['plain'].value) for t in tables} == {
        ('ap_box', 85.0),
        ('miou', 47.4),
    }


def test_scales_are_those_of_the_evaluators():
    scaled = {name for name, metric in METRICS.items() if metric.scale == 100}
    assert scaled >= set(FRACTIONS)
    assert all(metric_of(name).scale == 100 for name in FRACTIONS)
    assert metric_of('segmentation/mIoU') == METRICS['mIoU']
    assert metric_of('depth/rmse').label == 'depth/rmse'


def test_a_prefix_of_the_config_hides_no_metric():
    """Of the tasks of ``nyud_mt`` the pixel accuracy stands first and ranks nothing."""
    found = {'segmentation/aAcc': 70.0, 'segmentation/mIoU': 40.0, 'depth/rmse': 0.6}
    config = compose_recipe('nyud_mt', 'LoRA')
    for known in (None, config):
        assert primary_of(found, known) == 'segmentation/mIoU'
    published = compose_recipe('nyud_mt', 'LoRA', protocol='published')
    assert published.default_hooks.checkpoint.save_best == 'segmentation/mIoU'
    counts = {'delta': 10, 'selected': 0, 'head': 5}
    one, other = ppt_of(found, 'segmentation/mIoU', counts), ppt(0.4, 10)
    assert one == pytest.approx(other)
    boxes = {'boxes/bbox_mAP_50': 0.8, 'boxes/bbox_mAP': 0.5}
    assert primary_of(boxes) == 'boxes/bbox_mAP'
    assert ppt_of(boxes, 'boxes/bbox_mAP', counts) == pytest.approx(ppt(0.5, 10))
    assert metric_of('boxes/bbox_mAP') == METRICS['coco/bbox_mAP']
    # The unit of these is known by their prefix alone.
    assert ppt_of({'x/top1': 0.5}, 'x/top1', counts) is None


def test_the_first_evaluator_says_which_metric_ranks():
    found = {'scene/top1': 90.0, 'segmentation/mIoU': 40.0}
    both = [
        {'type': 'IoUMetric', 'prefix': 'segmentation'},
        {'type': 'Accuracy', 'prefix': 'scene'},
    ]
    assert primary_of(found, {'test_evaluator': both}) == 'segmentation/mIoU'
    assert primary_of(found, {'test_evaluator': both[::-1]}) == 'scene/top1'


def test_an_unknown_metric_is_no_rank_unless_the_config_says_it():
    found = {'depth/rmse': 0.6, 'depth/delta1': 0.8}
    with pytest.raises(PETLError, match='of depth/rmse, depth/delta1; say it in the'):
        primary_of(found)
    assert primary_of(found, {'primary': 'depth/delta1'}) == 'depth/delta1'
    with pytest.raises(
        PETLError, match="primary is 'x', and the evaluators give depth"
    ):
        primary_of(found, {'primary': 'x'})
    assert primary_of({}, {'primary': 'x'}) == ''  # a run that failed has none
    with_it = Config({'primary': 'depth/delta1', 'seed': 1})
    assert config_hash(with_it) == config_hash(Config({'seed': 1}))


def test_missing_and_failed_cells_are_shown_and_spoil_the_mean_openly():
    rows = [
        *three_tasks(),
        record('BitFit', 'cifar100', 90.0, 1),
        record('BitFit', 'svhn', None, 1),
        record('BitFit', 'svhn', None, 2),
    ]
    (table,) = build_tables(rows)
    full, bitfit = table.rows
    assert [cell.state for cell in bitfit.cells.values()] == [
        'partial',
        'failed',
        'missing',
    ]
    # 90 is higher than every mean of LoRA, and yet no winner: it is one task of three.
    assert (full.label, full.rank) == ('LoRA', 1.0)
    assert bitfit.ppt is None
    assert bitfit.rank is None
    text = render(table)
    assert '90.00 (n=1) | failed | – ' in text
    assert '71.00 ± 1.41 (n=2) | 82.00 ± 2.83 (n=2) | ' in text
    assert '90.00 (1/3)' in text
    assert 'k of K tasks' in text


def test_a_failed_run_that_knows_only_its_job_finds_its_place():
    lost = Record(Job('vtab/svhn', 'LoRA', 3), 'failed', error='killed')
    (table,) = build_tables([*three_tasks(), lost])
    (row,) = table.rows
    assert row.cells['svhn'].failed == (3,)
    assert row.cells['svhn'].state == 'partial'


def test_tuning_runs_and_the_pruned_are_no_rows():
    tune = record('BitFit', job={'stage': 'tune'})
    pruned = replace(record('SSF', job={'stage': 'tune'}), status='pruned')
    (table,) = build_tables([*three_tasks(), tune, pruned])
    assert [row.label for row in table.rows] == ['LoRA']
    with pytest.raises(PETLError, match='none of 1 records is a final run'):
        build_tables([tune])


def test_variants_are_rows_of_their_own():
    small = record(job={'options': {'a.rank': 2}, 'variant': 'small'})
    (table,) = build_tables([record(), small])
    assert sorted(row.label for row in table.rows) == ['LoRA', 'LoRA (small)']


def test_options_may_differ_from_task_to_task():
    first = record(job={'options': {'lr': 0.1, 'a.rank': 2}})
    second = record(task='svhn', job={'options': {'lr': 0.3, 'a.rank': 4}})
    (table,) = build_tables([first, second])
    assert [row.label for row in table.rows] == ['LoRA']


def test_several_options_on_one_task_are_rows_that_say_what_differs():
    def job(rank, seed=42):
        options = {'train_cfg.max_epochs': 3, 'a.rank': rank}
        return record(seed=seed, job={'options': options})

    # Two seeds with two settings are two rows too, and no spread.
    (table,) = build_tables([job(2), job(4, seed=43), record('BitFit')])
    assert sorted(row.label for row in table.rows) == [
        'BitFit',
        'LoRA (rank=2)',
        'LoRA (rank=4)',
    ]


def test_doubles_are_refused():
    with pytest.raises(PETLError, match='two records are LoRA on cifar100'):
        build_tables([record(), replace(record(), seconds=3.0)])


def test_different_base_weights_are_told():
    rows = three_tasks()
    rows[0].base = {'file': 'a.npz', 'fingerprint': '1'}
    rows[1].base = {'file': 'b.npz', 'fingerprint': '2'}
    (table,) = build_tables(rows)
    assert any('Not like for like' in note for note in table.notes)


def test_different_search_budgets_are_told():
    rows = three_tasks()
    assert not build_tables(rows)[0].warnings
    for row in rows:
        row.search = {'budget': 12}
    (table,) = build_tables(rows)
    assert not table.warnings
    assert any('best of 12 trials' in note for note in table.notes)
    rows[0].search = {'budget': 24}
    (table,) = build_tables(rows)
    assert any('12 trials, 24 trials' in text for text in table.warnings)
    rows[0].search = None
    (table,) = build_tables(rows)
    assert any('none, 12 trials' in text for text in table.warnings)


def searched(method, number, size):
    trials = [{'number': i, 'options': {'lr': i}} for i in range(number)]
    # A setting that was tried twice is one.
    trials.append({'number': number, 'options': {'lr': 0.0}})
    search = {'budget': 12, 'settings': size, 'trials': trials}
    return record(method, search=search)


def test_spaces_that_are_too_small_or_differ_are_told():
    rows = [
        searched('LoRA', 12, None),
        searched('SSF', 5, 5),
        searched('BitFit', 12, 96),
    ]
    (table,) = build_tables(rows)
    assert table.warnings == (
        'Not like for like: settings were searched with different budgets (5 trials, '
        '12 trials).',
        'Not like for like: the search spaces of SSF (5) hold fewer settings than the '
        '12 that others tried.',
        'Settings in the search spaces: BitFit 96, SSF 5; the others have no end.',
    )
    (table,) = build_tables([searched('LoRA', 12, None), searched('SSF', 12, None)])
    assert table.warnings == ()


def test_spaces_are_those_of_all_tasks_in_any_order():
    found = [
        searched('LoRA', 30, None),
        replace(searched('LoRA', 5, None), task='svhn'),
        searched('SSF', 10, 10),
        replace(searched('SSF', 5, 20), task='svhn'),
    ]
    for records in (found, found[::-1]):
        assert search_spaces(records) == [
            'Not like for like: the search spaces of SSF (10) hold fewer settings than '
            'the 30 that others tried.',
            'Settings in the search spaces: SSF 10; the others have no end.',
        ]


def test_a_test_set_that_was_read_twice_is_told():
    rows = three_tasks()
    rows[0].test_reads, rows[1].test_reads = 1, 2
    (table,) = build_tables(rows)
    assert table.warnings == (
        '1 run of the honest protocol scored the test set more than once.',
        'LoRA ‡ is not to be compared: cifar100: scored the test set 2 times.',
    )
    assert all(text in render(table) for text in table.warnings)
    assert table.rows[0].ppt is None


def test_a_stored_ppt_that_does_not_follow_is_told():
    rows = three_tasks()
    rows[0].ppt = 0.123
    (table,) = build_tables(rows)
    assert any('1 record with a stored PPT' in note for note in table.notes)
    assert percent(rows[0]) == 70.0


def test_published_rows_stand_below_ours_with_marks():
    from mmpetl.datasets.vtab import VTAB_TASKS

    rows = [
        record(method, task, 60.0, group=facts.group)
        for method in ('BitFit', 'LoRA')
        for task, facts in VTAB_TASKS.items()
    ]
    (table,) = build_tables(rows, published=True)
    labels = [row.label for row in table.rows]
    assert labels[0] in ('BitFit', 'LoRA')
    place = labels.index('BitFit')
    assert labels[place + 1] == '[BitFit, V-PETL Bench]'
    row = table.rows[place + 1]
    assert row.means['plain'].value == pytest.approx(62.05, abs=0.005)
    assert row.printed_ppt == '0.61†'
    assert row.ppt == pytest.approx(0.6178, abs=1e-4)
    assert any(note.startswith('† BitFit: printed PPT 0.61') for note in table.notes)
    lora = table.rows[labels.index('[LoRA, V-PETL Bench]')]
    assert lora.printed_ppt == '0.71'
    assert lora.rank is None
    # Ours do not change by their company.
    assert '[' not in ''.join(table.scores())


def test_no_published_figure_is_said():
    (table,) = build_tables([record(task='digits', group='natural')], published=True)
    assert 'No published figure' in table.notes[-1]


def test_csv_has_numbers_in_columns_of_their_own():
    (table,) = build_tables(three_tasks())
    (line,) = csv.DictReader(io.StringIO(render(table, 'csv')))
    assert float(line['cifar100']) == 71.0
    assert float(line['cifar100 spread']) == pytest.approx(2**0.5, abs=1e-5)
    assert line['cifar100 seeds'] == '2'
    assert line['protocol'] == 'honest'
    assert line['plain mean (3 tasks) tasks'] == '3/3'


def test_names_cannot_break_a_table():
    evil = record(job={'variant': 'a|b & c_d% [x] <i>'})
    (table,) = build_tables([evil])
    lines = [x for x in render(table).splitlines() if x.startswith('|')]
    assert len({x.replace('\\|', '').count('|') for x in lines}) == 1
    assert '<i>' not in render(table)
    tex = render(table, 'tex')
    assert r'a\textbar{}b \& c\_d\% {[}x{]} $<$i$>$' in tex


def test_latex_rows_have_as_many_cells_as_the_head():
    (table,) = build_tables(three_tasks())
    rows = [x for x in render(table, 'tex').splitlines() if x.endswith('\\\\')]
    assert len({x.count(' & ') for x in rows}) == 1
    assert '$\\pm$' in rows[1]


def test_by_group_leaves_the_tasks_out():
    (table,) = build_tables(three_tasks())
    head = render(table, by='group').splitlines()[2]
    assert 'cifar100' not in head
    assert 'natural (2)' in head
    with pytest.raises(PETLError, match='by task or by group'):
        render(table, by='suite')
    with pytest.raises(PETLError, match='md, csv, tex'):
        render(table, 'xlsx')


def test_comparison_of_a_table(tmp_path):
    rows = [r for r in synthetic.records(1500) if r.job.recipe.startswith('vtab')]
    keep = ('LoRA', 'BitFit', 'LinearProbe', 'Full')
    tables = build_tables([r for r in rows if r.job.method in keep])
    text = compare(tables[0])
    assert 'Friedman' in text
    assert 'not shown to differ, which does not make them equal' in text
    assert '4 methods, 19 tasks, 1 seed: over tasks, this design can reach' in text
    assert 'First and second: ' in text
    assert '2,000 resamples, seed 0' in text
    assert 'correction of Holm' in text
    (path,) = draw(tables, tmp_path / 'cd.png')
    assert path.is_file()


def test_methods_without_a_seed_in_common_have_no_interval_and_it_is_said():
    found = three_tasks()
    for one in three_tasks():
        job = replace(one.job, method='SSF', seed=one.job.seed + 2)
        found.append(replace(one, job=job))
    (table,) = build_tables(found)
    text = compare(table)
    assert 'vtab: 2 methods, 3 tasks, 0 seeds:' in text
    assert 'On some task the methods have no seed in common' in text
    assert 'No interval of a rank: on some task the methods have no seed' in text
    assert 'One task with one seed' not in text


def test_tables_of_a_folder_recompute_from_its_records(tmp_path):
    store = RecordStore(tmp_path)
    for item in three_tasks():
        store.write(item)
    assert build_tables(store.all()) == build_tables(three_tasks())


@pytest.mark.parametrize('form', ['md', 'csv', 'tex'])
def test_the_tool_writes_every_format(form, tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    for item in three_tasks():
        store.write(item)
    target = tmp_path / f'table.{form}'
    tool = Path(__file__).parents[2] / 'tools' / 'benchmark' / 'table.py'
    options = ['--out', str(tmp_path), '--format', form, '--to', str(target)]
    monkeypatch.setattr(sys, 'argv', [str(tool), *options])
    runpy.run_path(str(tool), run_name='__main__')
    table = build_tables(three_tasks(), verdicts={})[0]
    assert target.read_text() == render(table, form)
    assert 'not looked at' in target.read_text() or form == 'csv'


def test_the_tool_refuses_an_empty_folder_in_one_line(tmp_path, monkeypatch, capsys):
    tool = Path(__file__).parents[2] / 'tools' / 'benchmark' / 'table.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), '--out', str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name='__main__')
    assert stop.value.code == 1
    assert capsys.readouterr().err.count('\n') == 1


UNRANKED = {
    'IoUMetric': {'type': 'IoUMetric', 'iou_metrics': ['mFscore']},
    'MultiLabelMetric': {'type': 'MultiLabelMetric'},
    'SingleLabelMetric': {
        'type': 'mmpretrain.SingleLabelMetric',
        'items': ['f1-score'],
    },
    'RetrievalRecall': {'type': 'mmpretrain.RetrievalRecall', 'topk': 1},
    'Accuracy': {'type': 'Accuracy', 'topk': (5,)},
    'AccMetric': {'type': 'AccMetric', 'metric_list': 'mean_class_accuracy'},
    'CocoMetric': {'type': 'CocoMetric', 'metric': ['proposal']},
    'VOCMetric': {'type': 'VOCMetric', 'metric': 'recall'},
    'DepthError': {'type': 'mmpetl.DepthError'},
    # It extends CocoMetric, and calls its metrics otherwise.
    'LVISMetric': {'type': 'mmdet.LVISMetric'},
    'ReIDMetrics': {'type': 'mmdet.ReIDMetrics', 'metric': 'CMC'},
}


@pytest.mark.parametrize('kind', UNRANKED)
def test_a_metric_that_cannot_rank_is_refused_before_training(kind):
    evaluator = UNRANKED[kind]
    for config in ({'test_evaluator': evaluator}, {'val_evaluator': [evaluator]}):
        assert best_by(config) is None
        with pytest.raises(PETLError, match=f'which metric of {kind} tables rank by'):
            check_ranked(config)
        check_ranked({**config, 'primary': 'x'})
    check_ranked({'test_evaluator': [evaluator, {'type': 'Accuracy'}]})


class Stricter(MaskedAccuracy):
    """An evaluator that extends a known one."""


RANKED = [
    {'type': 'CocoMetric', 'metric': 'segm'},
    {'type': 'IoUMetric', 'prefix': 'x', 'iou_metrics': ['mDice', 'mIoU']},
    {'type': 'mmpretrain.AveragePrecision'},
    {'type': 'MultiTasksMetric', 'task_metrics': {'a': [{'type': 'Accuracy'}]}},
    {'type': 'MultiDatasetsEvaluator', 'metrics': [{'type': 'CocoMetric'}]},
    {'type': 'mmpetl.LabelMaps'},
    {'type': 'mmdet.OpenImagesMetric'},
    {'type': 'mmdet.ReIDMetrics', 'metric': ['mAP', 'CMC']},
    {'type': Stricter},
]


@pytest.mark.parametrize('evaluator', RANKED)
def test_evaluators_that_are_known_are_not_refused(evaluator):
    check_ranked({'test_evaluator': evaluator})


def test_no_recipe_is_refused():
    for recipe in choose_recipes(['*']):
        check_ranked(compose_recipe(recipe, 'LinearProbe'))


def test_a_mask_metric_says_what_is_better():
    masks = {'test_evaluator': {'type': 'CocoMetric', 'metric': 'segm'}}
    assert best_by(masks) == 'coco/segm_mAP'


def test_a_run_without_a_ranked_score_is_said_below_its_table():
    blank = record('SSF', 'svhn', metrics={'mFscore': 40.0}, primary='')
    (table,) = build_tables([record('LoRA', 'svhn'), blank])
    said = '1 run ended well with no score that is ranked: which of mFscore'
    assert any(note.startswith(said) for note in table.notes)
    assert 'SSF' not in table.scores()
