"""Curves over the number of training images, and the jobs that they need."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from made_up_runs import check_picture, make_bench, refused, run_tool
from mmengine.config import Config

from mmpetl.analysis import further_runs, many_shot
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.core import PETLError


def _config(**more):
    return Config(
        dict(
            train_cfg=dict(max_epochs=40, by_epoch=True),
            train_dataloader=dict(batch_size=64),
            param_scheduler=[
                dict(type='LinearLR', begin=0, end=4),
                dict(type='CosineAnnealingLR', T_max=36, begin=4, end=40),
            ],
            **more,
        )
    )


def test_every_beginning_holds_all_classes_alike():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [40, 40, 40, 40, 8]))
    order = many_shot.balanced_order(labels, seed=1)
    assert sorted(order) == list(range(168))
    for n in (5, 10, 40):
        counts = np.bincount(labels[order[:n]], minlength=5)
        assert counts.tolist() == [n // 5] * 5
    # The small class has run out, the others go on alike.
    counts = np.bincount(labels[order[:88]], minlength=5)
    assert counts.tolist() == [20, 20, 20, 20, 8]
    assert (order == many_shot.balanced_order(labels, seed=1)).all()
    assert (order != many_shot.balanced_order(labels, seed=2)).any()


def test_fewer_images_take_as_many_steps():
    labels = np.arange(1000) % 10
    found = many_shot.shot_options(_config(), labels, 100, seed=0)
    # 16 steps an epoch on all images, 2 on a hundred.
    assert found['train_cfg.max_epochs'] == 320
    assert found['param_scheduler.0.end'] == 32
    assert found['param_scheduler.1.T_max'] == 288
    assert found['default_hooks.checkpoint.interval'] == 8
    assert len(set(found[many_shot.INDICES])) == 100
    config = _config()
    config.merge_from_dict({k: v for k, v in found.items() if 'hooks' not in k})
    assert config.param_scheduler[1].end == 320
    only = many_shot.shot_options(_config(), labels, 100, seed=0, same_steps=False)
    assert set(only) == {many_shot.INDICES}
    assert many_shot.shot_options(_config(), labels, 1000, seed=0) == {}
    with pytest.raises(PETLError, match='shots of at least 1 and at most 1000'):
        many_shot.shot_options(_config(), labels, 1001, seed=0)


def test_one_schedule_that_is_no_list_follows_too():
    config = _config()
    config.param_scheduler = {'type': 'CosineAnnealingLR', 'T_max': 40}
    found = many_shot.shot_options(config, np.arange(1000) % 10, 100, seed=0)
    assert found['param_scheduler.T_max'] == 320


def _longer(shots, *schedules, **loader):
    """A config as options make it: 1,000 images in batches of 64, 10 epochs."""
    config = Config(
        {
            'train_cfg': {'max_epochs': 10, 'by_epoch': True},
            'train_dataloader': {'batch_size': 64, **loader},
            'param_scheduler': [dict(node) for node in schedules],
        }
    )
    labels = np.arange(1000) % 10
    options = many_shot.shot_options(config, labels, shots, seed=0)
    config.merge_from_dict({k: v for k, v in options.items() if 'hooks' not in k})
    return config, options


def test_every_count_of_a_schedule_is_stretched():
    """16 steps of an epoch become 2: eight times as many epochs."""
    config, _ = _longer(
        100,
        {'type': 'MultiStepLR', 'milestones': [6, 9], 'end': 10},
        {'type': 'StepLR', 'step_size': 3},
        {'type': 'mmpetl.TimmCosineLR', 'T_max': 10, 'warmup': 2},
    )
    steps, every, cosine = config.param_scheduler
    assert (steps.milestones, steps.end) == ([48, 72], 80)
    assert every.step_size == 24
    assert (cosine.T_max, cosine.warmup) == (80, 16)


def test_a_cosine_ends_with_the_training_whatever_is_rounded():
    # 16 steps become 7, 10 epochs 23; 3 and 7 of ten are 6.9 and 16.1 of 23.
    config, _ = _longer(
        400,
        {'type': 'LinearLR', 'end': 3},
        {'type': 'CosineAnnealingLR', 'begin': 3, 'end': 10, 'T_max': 7},
    )
    warm, cosine = config.param_scheduler
    assert config.train_cfg.max_epochs == 23
    assert (warm.end, cosine.begin, cosine.end, cosine.T_max) == (7, 7, 23, 16)


def test_what_counts_iterations_stays_where_these_stay_as_many():
    """Also when the config is read with the options, which stretches schedules."""
    from mmpetl.config.lengths import length_of, stretch

    node = {'type': 'LinearLR', 'by_epoch': False, 'end': 50}
    config, options = _longer(100, node)
    stretch(config, ('max_epochs', 10), options)
    assert length_of(config) == ('max_epochs', 80)
    assert config.param_scheduler[0].end == 50


def test_batches_that_are_dropped_are_no_steps():
    # 15 whole batches of 1,000 images and one of 100.
    config, _ = _longer(100, drop_last=True)
    assert config.train_cfg.max_epochs == 150
    with pytest.raises(PETLError, match='50 images fill no batch of 64'):
        _longer(50, drop_last=True)


def test_a_schedule_of_an_unknown_kind_is_refused():
    with pytest.raises(PETLError, match='how OneCycleLR is to follow .* --same-epochs'):
        _longer(100, {'type': 'OneCycleLR', 'total_steps': 10})


def test_subsets_of_a_seed_are_nested():
    labels = np.arange(300) % 7
    few, many = (
        set(many_shot.shot_options(_config(), labels, n, 3)[many_shot.INDICES])
        for n in (20, 90)
    )
    assert few < many


def test_variants_of_the_command_line():
    found = further_runs.parse_variants(
        ['SSF', 'LoRA:rank=1,16', 'AdaptFormer:scale=0.5']
    )
    assert [(v.method, v.label) for v in found] == [
        ('SSF', ''),
        ('LoRA', 'rank1'),
        ('LoRA', 'rank16'),
        ('AdaptFormer', 'scale0.5'),
    ]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('LoRaa', "Did you mean 'LoRA'?"),
        ('LoRA:rank', 'METHOD:argument=value'),
        ('LoRA:rank=big', 'which is no number'),
        ('LoRA:rank=0', 'rank of at least 1'),
        ('LoRA:rnk=4', 'rnk'),
    ],
)
def test_bad_variants_are_one_line(text, words):
    with pytest.raises(PETLError) as info:
        further_runs.parse_variants([text])
    assert words in str(info.value)


def _record(method, options=None, **more):
    job = Job('mini/digits', method, options=options or {}, **more)
    return Record(job, 'done', task='digits', metrics={'a': 1.0}, primary='a')


def test_a_method_takes_the_options_of_the_benchmark():
    records = [
        _record('LoRA', {'train_cfg.max_epochs': 3, 'model.backbone.method.rank': 2}),
    ]
    own = further_runs.template(records, 'digits', 'LoRA')
    assert own.options['model.backbone.method.rank'] == 2
    other = further_runs.template(records, 'digits', 'SSF')
    assert other.method == 'SSF'
    assert other.options == {'train_cfg.max_epochs': 3}
    variant = further_runs.Variant('LoRA', (('rank', 8),))
    made = further_runs.varied(own, variant, {'x': 1}, 'n50')
    assert made.options['model.backbone.method.rank'] == 8
    assert made.options['x'] == 1
    assert made.variant == 'rank8-n50'
    assert made.id != own.id


def test_what_a_search_chose_for_a_method_is_lent_to_no_other():
    rate = 'optim_wrapper.optimizer.lr'
    chosen = _record('LoRA', {rate: 0.1}, variant='searched')
    own = further_runs.template([chosen], 'digits', 'LoRA')
    assert own == chosen.job
    # Without settings of its own it is the benchmark's run.
    assert further_runs.varied(own, further_runs.Variant('LoRA'), {}, '') == own
    with pytest.raises(PETLError, match='no finished run of SSF on digits, and those'):
        further_runs.template([chosen], 'digits', 'SSF')
    plain = _record('LoRA', {rate: 0.5})
    for method in ('LoRA', 'SSF'):
        found = further_runs.template([plain, chosen], 'digits', method)
        assert found.options == {rate: 0.5}


def _points(name, scores):
    return [
        many_shot.Point(name, name, '', {}, shots, 10, 0.1, (value, value + 2))
        for shots, value in scores.items()
    ]


def test_points_have_the_spread_of_their_seeds():
    point = _points('a', {10: 5.0})[0]
    assert point.mean == 6
    assert point.std == pytest.approx(2**0.5)


def test_a_crossing_lies_between_two_sizes():
    a = _points('a', {10: 5.0, 100: 9.0})
    b = _points('b', {10: 7.0, 100: 7.0})
    ((place, leader),) = many_shot.crossings(a, b)
    assert place == pytest.approx(10**1.5)
    assert leader == 'a'
    assert many_shot.crossings(a, a) == []


def test_curves_that_meet_at_a_size_cross_there():
    b = _points('b', dict.fromkeys((10, 20, 50, 100), 7.0))
    a = _points('a', {10: 5.0, 20: 7.0, 50: 7.0, 100: 9.0})
    assert many_shot.crossings(a, b) == [(50.0, 'a')]
    # To touch is not to overtake; noise of float32 is no lead.
    a = _points('a', {10: 5.0, 20: 7.0, 50: 7.0 + 1e-6, 100: 6.0})
    assert many_shot.crossings(a, b) == []


@pytest.fixture
def quick(monkeypatch):
    """No training: scores that grow with images and rank, and labels of a thousand."""
    asked = []

    def run(planned, out, title, executor, workers):
        asked.extend(planned)
        store = RecordStore(out)
        for job in planned:
            shots = len(job.options.get(many_shot.INDICES, range(1000)))
            rank = job.options.get('model.backbone.method.rank', 1)
            record = _record(job.method)
            record.job = job
            record.metrics = {'a': np.log(shots) + rank / 10 + job.seed % 2}
            record.counts = {'delta': 10 * rank, 'selected': 0, 'base': 1000}
            store.write(record)
        return [store.read(job) for job in planned]

    monkeypatch.setattr(further_runs, 'run_jobs', run)
    monkeypatch.setattr(further_runs, 'config_of', lambda job, stage='final': _config())
    monkeypatch.setattr(
        many_shot, 'training_labels', lambda config: np.arange(1000) % 10
    )
    return asked


def test_the_tool_draws_a_curve_per_method_and_size(
    tmp_path, quick, monkeypatch, capsys
):
    make_bench(tmp_path, tasks=['digits'], seeds=[42])
    argv = ['--methods', 'Full', 'LoRA:rank=2,4', '--shots', 50, 200, 1000]
    run_tool(monkeypatch, 'many_shot', tmp_path, *argv)
    # Full on all images with seed 42 is there: the benchmark's own run.
    assert len(quick) == 3 * 3 * 2 - 1
    assert len({job.id for job in quick}) == len(quick)
    to = tmp_path / 'analysis' / 'many_shot'
    check_picture(to / 'digits-curves.png')
    check_picture(to / 'digits-sizes.png')
    rows = list(csv.DictReader((to / 'digits.csv').open()))
    assert {r['name'] for r in rows} == {'Full', 'LoRA (rank 2)', 'LoRA (rank 4)'}
    assert all(r['n'] == '2' for r in rows)
    row = next(r for r in rows if r['name'] == 'LoRA (rank 4)' and r['shots'] == '50')
    assert float(row['mean']) == pytest.approx(np.log(50) + 0.4 + 0.5, abs=1e-4)
    assert float(row['share']) == pytest.approx(40 / 1040, abs=1e-6)
    found = json.loads((to / 'digits.numbers.json').read_text())
    assert set(found['against_full']) == {'LoRA (rank 2)', 'LoRA (rank 4)'}
    assert 'Full: 50: ' in capsys.readouterr().out


def test_the_tool_refuses_in_one_line(tmp_path, quick, monkeypatch, capsys):
    make_bench(tmp_path, tasks=['digits'], seeds=[42])

    def line(*argv):
        return refused(monkeypatch, capsys, 'many_shot', tmp_path, *argv)

    assert 'shots of at least 1 and at most 1000' in line('--shots', 2000)
    assert '--shots of at least 1' in line('--shots', 0)
    assert "has task 'digit'" in line('--task', 'digit')
    assert 'which is no number' in line('--methods', 'LoRA:rank=x')
    assert not quick
