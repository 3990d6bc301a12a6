"""Runs of one process that begin in the same second keep their logs apart."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

from mmpetl import apis
from mmpetl.engine.run_names import forget

MINI = Path(__file__).resolve().parents[2] / 'configs' / 'mini'
SHORT = {
    'model.backbone.method.type': 'BitFit',
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 2,
    'default_hooks.logger.interval': 1,
    'log_level': 'ERROR',
}
STEPS = 15  # of the tiny set, two pictures each


@pytest.fixture
def stopped_clock(tiny_data, monkeypatch):
    """Every run begins in the same second, on a tiny set."""
    monkeypatch.setenv('MMPETL_DATA', str(tiny_data('vtab-1k/digits')))
    real = time.strftime

    def strftime(form, *args):
        return '20260101_000000' if form == '%Y%m%d_%H%M%S' else real(form, *args)

    monkeypatch.setattr(time, 'strftime', strftime)


def steps_of(folder: Path) -> list[int]:
    """Steps whose loss a run has logged, by its own lines."""
    (log,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row['step'] for row in rows if 'loss' in row]


@pytest.mark.parametrize('visualizer', [None, 'visualizer'], ids=['free', 'named'])
def test_runs_of_one_second_log_into_their_own_folders(
    visualizer, tmp_path, stopped_clock
):
    """mmdet and mmseg name every visualizer; mmpretrain leaves it to the second."""
    options = {**SHORT, **({'visualizer.name': visualizer} if visualizer else {})}
    hubs = []
    for folder in ('one', 'two'):
        config = apis.load_config(MINI / 'digits.py', options, tmp_path / folder)
        runner = apis.train(config)
        hubs.append(runner.message_hub)
        assert len(runner.message_hub.get_scalar('train/loss').data[0]) == STEPS
    assert hubs[0] is not hubs[1]
    every = list(range(1, STEPS + 1))
    assert steps_of(tmp_path / 'one') == steps_of(tmp_path / 'two') == every
    for folder in ('one', 'two'):
        (text,) = (tmp_path / folder).glob('*/*.log')
        assert text.is_file()


def test_what_is_forgotten_is_that_run_alone():
    names = ('a-1', 'a-1_20260101_000000', 'a-1-2_20260101_000000', 'a-12', 'b')
    kinds = (MessageHub, MMLogger)
    for kind in kinds:
        for name in names:
            kind.get_instance(name)
    for name in names:
        Visualizer.get_instance(name)
    forget('a-1')
    for kind in (*kinds, Visualizer):
        left = [name for name in names if kind.check_instance_created(name)]
        assert left == ['a-12', 'b']
        for name in left:
            kind._instance_dict.pop(name)


def test_a_job_leaves_nothing_behind(tmp_path, stopped_clock):
    """A worker of a sweep runs thousands."""
    from mmpetl.benchmark.job import run_job
    from mmpetl.benchmark.records import Job

    options = {k: v for k, v in SHORT.items() if not k.startswith('model.')}
    job = Job('mini/digits', 'BitFit', options=options)
    kinds = (MessageHub, MMLogger, Visualizer)
    before = [set(kind._instance_dict) for kind in kinds]
    run_job(job, tmp_path / 'job')
    assert [set(kind._instance_dict) for kind in kinds] == before
