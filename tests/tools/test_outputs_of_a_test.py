"""What tools/test.py gives beside metrics: predictions, mirrored views, pictures."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from mmpetl import apis

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {'model.backbone.method.type': 'LoRA', 'log_level': 'ERROR'}
SETS = {
    'digits': 'vtab-1k/digits',
    'hmdb51': 'hmdb51',
    'ade20k': 'ADEChallengeData2016',
    'voc': 'VOCdevkit',
}


@pytest.fixture(scope='module')
def data(tiny_data) -> Path:
    return tiny_data(*SETS.values())


@pytest.fixture
def tested(data, tmp_path, monkeypatch, capsys):
    """``tested(name, *argv)`` tests a delta of a mini config; the line of an error."""
    monkeypatch.setenv('MMPETL_DATA', str(data))

    def run(name: str, *argv: str, **options: str) -> str:
        DefaultScope._instance_dict.clear()
        config = ROOT / 'configs' / 'mini' / f'{name}.py'
        delta = tmp_path / f'{name}.safetensors'
        if not delta.exists():
            torch.manual_seed(3)
            loaded = apis.load_config(config, OPTIONS)
            apis.export_delta(apis.init_model(loaded, device='cpu'), loaded, delta)
        words = [f'{key}={value}' for key, value in {**OPTIONS, **options}.items()]
        args = ['test.py', str(config), str(delta), '--device', 'cpu', *argv]
        args += ['--work-dir', str(tmp_path / 'run'), '--cfg-options', *words]
        monkeypatch.setattr(sys, 'argv', args)
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'test.py'), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err.strip().splitlines()
        return said[-1] if code == 1 else ''

    return run


def scores(path: Path) -> torch.Tensor:
    """(samples, classes) of a file that a test has just written."""
    samples = pickle.loads(path.read_bytes())
    return torch.stack([sample['pred_score'] for sample in samples])


def test_scores_of_both_views_are_averaged(tested, tmp_path):
    plain, both = tmp_path / 'plain.pkl', tmp_path / 'both.pkl'
    assert tested('digits', '--out', str(plain), '--out-item', 'pred') == ''
    metrics = tmp_path / 'metrics.json'
    argv = ('--tta', 'flip', '--dump', str(both), '--out', str(metrics))
    assert tested('digits', *argv) == ''
    assert 'accuracy/top1' in json.loads(metrics.read_text())

    config = apis.load_config(ROOT / 'configs' / 'mini' / 'digits.py', OPTIONS)
    model = apis.init_model(config, tmp_path / 'digits.safetensors', 'cpu')
    found = pickle.loads(plain.read_bytes())
    pixels = np.stack([Image.open(s['img_path']).convert('RGB') for s in found])
    mean, std = (
        torch.tensor(config.model.data_preprocessor[key]) for key in ('mean', 'std')
    )
    x = ((torch.tensor(pixels).float() - mean) / std).movedim(-1, 1)
    with torch.no_grad():
        left, right = (model(v, mode='tensor').softmax(-1) for v in (x, x.flip(-1)))
    assert (left - right).abs().max() > 1e-3
    torch.testing.assert_close(scores(plain), left)
    torch.testing.assert_close(scores(both), (left + right) / 2)


def test_the_configs_own_views_are_taken(tested, tmp_path):
    out = tmp_path / 'views.pkl'
    line = tested('digits', '--tta', '--dump', str(out))
    assert 'the config has no tta_model and tta_pipeline; add them' in line
    views = {
        'tta_model': "{'type': 'AverageClsScoreTTA'}",
        'tta_pipeline': "[{'type': 'LoadImageFromFile'}, {'type': 'TestTimeAug', "
        "'transforms': [[{'type': 'Resize', 'scale': 32}], [{'type': 'PackInputs'}]]}]",
    }
    assert tested('digits', '--tta', '--dump', str(out), **views) == ''
    assert len(scores(out)) == 10


@pytest.mark.parametrize('name', ['digits', 'hmdb51', 'ade20k', 'voc'])
def test_pictures_are_drawn_for_every_task(name, tested, tmp_path):
    shown = tmp_path / 'shown'
    views = () if name == 'hmdb51' else ('--tta', 'flip')
    assert tested(name, '--show-dir', str(shown), '--interval', '2', *views) == ''
    drawn = sorted(shown.iterdir())
    assert [int(path.name[:5]) % 2 for path in drawn] == [0] * len(drawn)
    assert drawn
    assert len(np.unique(np.asarray(Image.open(drawn[0])))) > 20


def test_what_cannot_be_is_said(tested, tmp_path, monkeypatch):
    assert 'written as .pkl' in tested('digits', '--dump', str(tmp_path / 'a.json'))
    assert '--out FILE.pkl' in tested('digits', '--out-item', 'pred')
    assert 'is for mmpretrain, mmseg, mmdet' in tested('hmdb51', '--tta', 'flip')
    argv = ('--show-dir', str(tmp_path))
    line = tested('digits', *argv, visualizer='None')
    assert '--cfg-options visualizer.type=UniversalVisualizer' in line
    monkeypatch.setenv('MPLBACKEND', 'agg')
    assert '--show needs a display' in tested('digits', '--show')
    assert '--interval' in tested('digits', *argv, '--interval', '0')


@pytest.mark.parametrize(
    ('script', 'tool'), [('slurm_train', 'train'), ('slurm_test', 'test')]
)
def test_slurm_is_given_the_tool(script, tool, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    given = ['c.py', 'd.safetensors'] if tool == 'test' else ['c.py']
    path = ROOT / 'tools' / f'{script}.sh'
    said = subprocess.run(
        ['bash', str(path), 'gpu', 'job', *given, '--out', 'a b.json'],
        env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2'},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {'--partition=gpu', '--job-name=job', '--ntasks=2'} <= set(said)
    at = said.index(str(path.with_name(f'{tool}.py')))
    assert said[at + 1 :] == [*given, '--launcher', 'slurm', '--out', 'a b.json']
