"""Hooks and metrics of MMEngine and mmpretrain around an injected backbone."""

from __future__ import annotations

import json

import pytest
import torch
from killing import KillAt, Killed
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import METRICS

from mmpetl.core import PETLError
from mmpetl.engine.hooks import PredictionsHook, run_log
from mmpetl.engine.hooks.common import plain_value


@METRICS.register_module(name='GivenMetric')
class GivenMetric(BaseMetric):
    """Reports what it is told to, one value per validation."""

    def __init__(self, **metrics) -> None:
        super().__init__()
        self.metrics, self.count = metrics, 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        self.count += 1
        return {
            k: v[self.count - 1] if k == 'series' else v
            for k, v in self.metrics.items()
        }


def given(**metrics):
    return {'type': 'mmengine.GivenMetric', **metrics}


def keeping(save_best, **more):
    return {
        'checkpoint': {
            'type': 'mmpetl.DeltaCheckpointHook',
            'save_best': save_best,
            **more,
        }
    }


def record_of(tmp_path) -> dict:
    return json.loads((tmp_path / 'run' / 'efficiency.json').read_text())


@pytest.mark.parametrize('average', [None, 'macro'])
def test_metrics_per_class_are_recorded_and_kill_no_run(make_runner, tmp_path, average):
    runner = make_runner(
        val_evaluator={'type': 'SingleLabelMetric', 'average': average},
        custom_hooks=[
            {'type': 'mmpetl.EfficiencyHook'},
            {'type': 'mmpetl.RunLogHook', 'path': str(tmp_path / 'log.jsonl')},
        ],
        default_hooks=keeping('auto' if average else None),
    )
    runner.train()
    record = record_of(tmp_path)['val']
    if average:
        assert 0 <= record['single-label/precision'] <= 100
    else:
        assert len(record['single-label/precision_classwise']) == 10
    lines = [
        x['val'] for x in run_log.read_run_log(tmp_path / 'log.jsonl') if 'val' in x
    ]
    assert len(lines) == 4
    assert all(isinstance(v, float) for line in lines for v in line.values())


def test_a_metric_that_is_none_or_out_of_range_kills_no_run(make_runner, tmp_path):
    """COCO's metrics are -1 where there was nothing to find."""
    metrics = {
        'accuracy/top1': None,
        'mIoU': float('nan'),
        'coco/bbox_mAP': -1.0,
        'acc/top1': [0.5, 0.25],
        'note': 'text',
    }
    make_runner(val_evaluator=given(**metrics), default_hooks=keeping(None)).train()
    assert record_of(tmp_path)['val'] == {**metrics, 'mIoU': None}


def test_values_of_metrics_become_plain():
    import numpy as np

    item = {
        'a': torch.tensor([0.5]),
        'b': np.float32(0.25),
        'c': (torch.tensor(1), None),
        'd': np.ones((1, 2)),
        'e': True,
    }
    assert plain_value(item) == {
        'a': 0.5,
        'b': 0.25,
        'c': [1.0, None],
        'd': [1.0, 1.0],
        'e': 1.0,
    }


def test_the_best_of_all_metrics_is_that_of_the_first_number(make_runner, tmp_path):
    metrics = given(precision_classwise=[0.1, 0.2], series=[3.0, 5.0, 4.0, 1.0])
    runner = make_runner(
        val_evaluator=metrics, default_hooks=keeping('auto', rule='greater')
    )
    runner.train()
    (best,) = (tmp_path / 'run').glob('best_*.pth')
    assert best.name == 'best_series_epoch_2.pth'


@pytest.mark.parametrize(
    ('save_best', 'message'),
    [
        ('precision_classwise', 'is no number; a best checkpoint can be kept of: acc'),
        ('top1', 'is not among the metrics; a best checkpoint can be kept of: acc'),
        ('error', "whether more or less of 'error' is better; say rule="),
    ],
)
def test_a_best_that_cannot_be_kept_is_one_line(make_runner, save_best, message):
    with pytest.raises(PETLError, match=message) as info:
        make_runner(
            val_evaluator=given(acc=0.5, precision_classwise=[0.1, 0.2]),
            default_hooks=keeping(save_best),
        ).train()
    assert '\n' not in str(info.value)


# ------------------------------------------------------------- killed in validation


class KillInValidation(Hook):
    def __init__(self, epoch):
        self.epoch = epoch

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == self.epoch:
            raise Killed


def bests(folder) -> dict[str, list]:
    files = {}
    for path in folder.glob('best_*.pth'):
        state = torch.load(path, weights_only=True)['state_dict']
        files[path.name] = {k: v.tolist() for k, v in state.items()}
    return files


@pytest.mark.parametrize('at', [2, 4])
def test_a_run_killed_while_it_validates_keeps_the_same_best(make_runner, tmp_path, at):
    """The resumed run makes up for the validation, and for nothing that was done."""
    whole = make_runner('whole')
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillInValidation(at)]).train()
    resumed = make_runner('killed', resume=True)
    resumed.train()
    assert bests(tmp_path / 'whole') == bests(tmp_path / 'killed')
    curves = [
        r.message_hub.get_scalar('val/accuracy/top1').data for r in (whole, resumed)
    ]
    assert curves[0][0].tolist() == curves[1][0].tolist()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_early_stopping_goes_on_counting(make_runner):
    """Best at the first of six validations, patience three: the fifth stops."""

    def run(folder, **more):
        # The checkpoint of the third epoch was written before its validation.
        series = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0][2 * ('resume' in more) :]
        runner = make_runner(
            folder,
            train_cfg={'by_epoch': True, 'max_epochs': 6},
            val_evaluator=given(series=series),
            default_hooks=keeping(None, interval=1),
            custom_hooks=[
                {
                    'type': 'EarlyStoppingHook',
                    'monitor': 'series',
                    'rule': 'greater',
                    'patience': 3,
                    'min_delta': 0.0,
                }
            ],
            **more,
        )
        runner.train()
        (hook,) = (h for h in runner.hooks if isinstance(h, EarlyStoppingHook))
        return runner.epoch, hook.best_score, hook.wait_count

    expected = run('whole')
    assert expected == (4, 5.0, 3)
    with pytest.raises(Killed):
        run('killed', hooks=[KillAt(18)])
    assert run('killed', resume=True) == expected


@pytest.mark.parametrize(
    'hook',
    [
        {'type': 'SyncBuffersHook'},
        {'type': 'EmptyCacheHook'},
        {
            'type': 'ProfilerHook',
            'by_epoch': False,
            'profile_times': 3,
            'activity_with_cuda': False,
        },
    ],
    ids=lambda hook: hook['type'],
)
def test_stock_hooks_change_no_weight(make_runner, hook):
    states = []
    for folder, hooks in (('plain', []), ('other', [hook])):
        runner = make_runner(folder, custom_hooks=hooks)
        runner.train()
        states.append(runner.model.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize('labels', [[[1], [2, 3]], [[1], []]], ids=['two', 'none'])
def test_samples_of_several_labels_leave_no_file_of_predictions(tmp_path, labels):
    """Their first label would pass for the only one."""
    from types import SimpleNamespace

    from mmpretrain.structures import DataSample

    model = torch.nn.Module()
    model.head = torch.nn.Linear(4, 5)
    model.head.predict = None
    hook = PredictionsHook(tmp_path / 'predictions.npz')
    runner = SimpleNamespace(model=model)
    hook.before_test_epoch(runner)
    for label in labels:
        sample = DataSample().set_pred_score(model.head(torch.ones(1, 4))[0].detach())
        sample.set_field(torch.tensor(label), 'gt_label')
        hook.after_test_iter(runner, 0, outputs=[sample])
    hook.after_test_epoch(runner)
    assert not hook.path.exists()
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=[sample.set_gt_label(1)])
    hook.after_test_epoch(runner)
    assert hook.path.exists()
