"""Two tasks from config to metrics: train, kill, resume, test, on drawn scenes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KillAt, Killed
from mmengine.hooks import Hook

from mmpetl import apis
from mmpetl.apis.run import build_runner

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'mini' / 'nyud_mt.py'
METRICS = ('segmentation/mIoU', 'depth/rmse')
METHODS = {
    'polyhistor_lite': {'type': 'PolyhistorLite', 'rank': 6},
    'vmt_adapter': {'type': 'VMTAdapter', 'reduction': 4},
    'mt_lora': {'type': 'MTLoRA', 'rank': 6, 'task_rank': 2, 'train_rest': False},
}
SHORT = {
    'model.backbone.checkpoint': None,
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 2,
    'train_dataloader.batch_size': 2,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
}


@pytest.fixture(scope='module')
def data(tiny_data) -> Path:
    return tiny_data('nyud_mt')


@pytest.mark.parametrize(
    'name',
    [
        'polyhistor_lite',
        pytest.param('vmt_adapter', marks=pytest.mark.slow),
        pytest.param('mt_lora', marks=pytest.mark.slow),
    ],
)
def test_trains_resumes_and_reports_both_metrics(name, data, tmp_path, monkeypatch):
    from mmengine.registry import DefaultScope

    monkeypatch.setenv('MMPETL_DATA', str(data))
    count = 0

    def config(folder: str, **more: Any) -> Any:
        nonlocal count
        count += 1
        options = {'model.backbone.method': METHODS[name], **SHORT, **more}
        made = apis.load_config(CONFIG, options, tmp_path / folder)
        made.experiment_name = f'{name}-{tmp_path.name}-{count}'
        made.log_level = 'WARNING'
        DefaultScope._instance_dict.clear()
        return made

    whole = build_runner(config('whole'))
    seen = {}
    whole.register_hook(Record(seen))
    before = {k: v.clone() for k, v in whole.model.backbone.state_dict().items()}
    whole.train()
    assert whole.iter == 4
    assert {'loss_segmentation', 'loss_depth'} <= seen['losses']
    reported = whole.test()
    assert all(0 <= reported[key] < 100 for key in METRICS)
    moved = {
        key
        for key, value in whole.model.backbone.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {key for key in before if 'petl' in key.split('.')}

    killed = build_runner(config('killed'))
    killed.register_hook(KillAt(3))
    with pytest.raises(Killed):
        killed.train()
    resumed = build_runner(config('killed', resume=True))
    resumed.train()
    theirs = resumed.model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, theirs[key]), key

    whole_dir = tmp_path / 'whole'
    checkpoint = whole_dir / (whole_dir / 'last_checkpoint').read_text()
    metrics = apis.test(config('test'), checkpoint)
    for key in METRICS:
        assert metrics[key] == pytest.approx(reported[key])
    delta = apis.export_delta(checkpoint, config('export'), tmp_path / 'delta')
    again = apis.test(config('again'), delta)
    assert again['depth/rmse'] == pytest.approx(metrics['depth/rmse'])
    said = json.loads(Path(delta).with_suffix('.json').read_text())
    assert said['method'].get('tasks', ['segmentation', 'depth']) == [
        'segmentation',
        'depth',
    ]


class Record(Hook):
    """Keeps the names of the losses."""

    def __init__(self, seen: dict) -> None:
        self.seen = seen

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen['losses'] = set(outputs)


def test_tasks_that_do_not_match_the_heads_end_in_one_line(
    data, tmp_path, monkeypatch, capsys
):
    argv = ['train.py', str(CONFIG), '--work-dir', str(tmp_path), '--cfg-options']
    argv += ['model.backbone.checkpoint=None', 'model.backbone.method.reduction=4']
    argv += ['model.backbone.method.type=VMTAdapter']
    argv += ['model.backbone.method.tasks=[segmentation,depth,normals]']
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setenv('MMPETL_DATA', str(data))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
    assert end.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('error: the method has 3 tasks')
    assert 'heads for 2 (segmentation, depth)' in last
