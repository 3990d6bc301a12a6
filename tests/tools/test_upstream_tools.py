"""Operations, schedules, logs, confusion and pictures of data: figures and refusals."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from killing import in_a_child
from mmengine.registry import DefaultScope
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs' / 'mini'
LORA = 'model.backbone.method.type=LoRA'
SHORT = (
    LORA,
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
)


@pytest.fixture(scope='module')
def data(tiny_data) -> Path:
    return tiny_data('vtab-1k/digits', 'hmdb51', 'coco')


@pytest.fixture
def tool(data, monkeypatch, capsys):
    """``tool(path, *argv)`` runs one; what it printed, or the line of an error."""
    monkeypatch.setenv('MMPETL_DATA', str(data))

    def run(path: str, *argv: object, options: tuple[str, ...] = (LORA,)) -> str:
        DefaultScope._instance_dict.clear()
        words = [str(word) for word in argv]
        if options:
            words += ['--cfg-options', 'log_level=ERROR', *options]
        monkeypatch.setattr(sys, 'argv', [path, *words])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / path), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return printed.err.strip().splitlines()[-1] if code else printed.out

    return run


def test_operations_of_a_vit_are_those_of_its_formula(tool):
    """Width d, n tokens, hidden width h, 8 x 8 patches of 4 x 4 and a class token."""
    d, h, depth, classes, patches = 96, 288, 6, 10, 64
    n = patches + 1
    rows = 4 * d * d + 2 * d * h  # queries, keys, values, projection; the two linears
    attention = 2 * n * n * d
    block = n * rows + attention
    plain = patches * 3 * 16 * d + depth * block + d * classes

    def flops(method: str) -> dict:
        options = (f'model.backbone.method.type={method}',)
        argv = ('analysis_tools/flops.py', MINI / 'digits.py', '--json')
        return json.loads(tool(*argv, options=options).splitlines()[-1])

    found = flops('LinearProbe')
    assert found['flops'] == 2 * plain
    assert found['trainable'] == d * classes + classes
    assert found['shape'] == [3, 32, 32]
    rank, targets = 8, 2
    tuned = flops('LoRA')
    assert tuned['trainable'] - found['trainable'] == depth * targets * 2 * d * rank
    assert tuned['flops'] - found['flops'] == 2 * depth * targets * 2 * n * d * rank


@pytest.mark.parametrize('name', ['hmdb51', 'ade20k', 'voc', 'coco'])
def test_operations_of_every_task(name, tool):
    said = tool('analysis_tools/flops.py', MINI / f'{name}.py', '--json')
    assert json.loads(said.splitlines()[-1])['flops'] > 10**7


def test_a_size_that_the_model_does_not_take(tool):
    argv = ('analysis_tools/flops.py', MINI / 'hmdb51.py', '--shape', 0, 32)
    assert 'say it: --shape' in tool(*argv)


def test_a_schedule_is_that_of_its_formula(tool, tmp_path):
    from mmpetl.apis import load_config
    from mmpetl.apis.schedule import schedule_of

    config = load_config(MINI / 'digits.py', {'model.backbone.method.type': 'LoRA'})
    (rates,) = schedule_of(config, epoch_length=16).values()
    assert len(rates) == 640
    warm = [1e-3 * (0.01 + 0.99 * min(1, t / 63)) for t in (0, 10, 63)]
    np.testing.assert_allclose(rates[[0, 10, 63]], warm)
    t = 300 - 64
    cosine = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / (36 * 16 - 1))) / 2
    assert rates[300] == pytest.approx(cosine, rel=1e-2)
    out = tmp_path / 'schedule.png'
    argv = ('analysis_tools/schedule.py', MINI / 'digits.py', '--out', out)
    assert 'groups: 1e-05 at first' in tool(*argv)  # the length is that of the data
    assert json.loads(out.with_suffix('.json').read_text())['title']
    assert Image.open(out).size[0] > 500


def test_a_config_is_printed_as_it_is_run(tool, tmp_path):
    out = tmp_path / 'whole.py'
    said = tool('misc/print_config.py', MINI / 'digits.py', '--save-path', out)
    assert "task='digits'" in said
    again = tool('misc/print_config.py', out, options=())
    assert again.strip() == said.strip()


def test_logs_are_told_and_drawn(tool, tmp_path):
    folder = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    rows = [{'loss': 3.0 - i, 'time': 1.0 + (i > 1), 'step': i + 1} for i in range(3)]
    rows.append({'accuracy/top1': 40.0, 'step': 3})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    out = tmp_path / 'curves.png'
    argv = ('analysis_tools/logs.py', tmp_path / 'run')
    said = tool(*argv, '--keys', 'loss', 'accuracy/top1', '--out', out, options=())
    loss = next(line for line in said.splitlines() if line.startswith('loss'))
    assert loss.split()[1:] == ['3', '3', '1', '3', '1']
    words = json.loads(out.with_suffix('.json').read_text())['alt']
    assert 'goes from 3 to 1' in words
    line = tool(*argv, '--keys', 'los', '--out', out, options=())
    assert "has logged no 'los'. Did you mean 'loss'?" in line
    (folder / 'scalars.json').write_text('{"loss": ')
    assert 'line 1 of' in tool(*argv, options=())


def test_confusion_counts_what_was_predicted(tool, tmp_path):
    from mmpetl import apis

    config = apis.load_config(
        MINI / 'digits.py', {'model.backbone.method.type': 'LoRA'}
    )
    delta = apis.export_delta(
        apis.init_model(config, device='cpu'), config, tmp_path / 'd'
    )
    dump, out = tmp_path / 'd.pkl', tmp_path / 'confusion.png'
    argv = (MINI / 'digits.py', delta, '--work-dir', tmp_path / 'run')
    tool('test.py', *argv, '--dump', dump)
    assert 'of 10 right' in tool(
        'analysis_tools/confusion_matrix.py', *argv, '--out', out
    )
    counts = np.zeros((10, 10), int)
    for sample in pickle.loads(dump.read_bytes()):
        counts[int(sample['gt_label']), int(sample['pred_label'])] += 1
    with out.with_suffix('.csv').open() as file:
        rows = list(csv.reader(file))[1:]
    assert np.array_equal(np.array(rows)[:, 1:].astype(int), counts)
    assert Image.open(out).size[0] > 500
    argv = (MINI / 'voc.py', delta, '--out', out)
    assert 'is of classifiers' in tool('analysis_tools/confusion_matrix.py', *argv)


def test_data_are_drawn_in_their_own_colours(tool, data, tmp_path):
    argv = ('--out-dir', tmp_path, '--number', 1)
    path = 'analysis_tools/browse_dataset.py'
    said = tool(path, MINI / 'coco.py', *argv, '--phase', 'test')
    assert '1 pictures' in said
    drawn = np.asarray(Image.open(tmp_path / 'test_00000.png').convert('RGB')) / 255
    first = sorted((data / 'coco' / 'val2017').iterdir())[0]
    size = (drawn.shape[1], drawn.shape[0])
    file = np.asarray(Image.open(first).convert('RGB').resize(size)) / 255
    assert abs(drawn - file).mean() < 0.5 * abs(drawn[..., ::-1] - file).mean()
    assert '1 pictures' in tool(path, MINI / 'hmdb51.py', *argv)
    line = tool(
        path, MINI / 'digits.py', *argv, options=(LORA, 'train_dataloader=None')
    )
    assert 'has no train_dataloader; it has' in line


def test_a_log_goes_to_tensorboard(tool, tmp_path, monkeypatch):
    log = {}

    class Writer:
        """In place of TensorBoard's, which need not be installed."""

        def __init__(self, folder: str) -> None:
            self.folder = folder

        def __getattr__(self, name: str):
            return lambda *args: None

        def add_scalar(self, key: str, value: float, step: int) -> None:
            log.setdefault(key, []).append((step, float(value)))

    module = ModuleType('torch.utils.tensorboard')
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    argv = ('train.py', MINI / 'digits.py', '--work-dir', tmp_path, '--device', 'cpu')
    local, other = 'LocalVisBackend', 'TensorboardVisBackend'
    backends = f"visualizer.vis_backends=[{{'type': '{local}'}}, {{'type': '{other}'}}]"
    tool(*argv, options=(*SHORT, backends))
    from mmpetl.analysis.curves import read_log

    steps, losses = read_log(tmp_path)['loss']
    assert len(losses) > 1
    assert [step for step, _ in log['loss']] == steps
    np.testing.assert_allclose([value for _, value in log['loss']], losses, rtol=1e-6)


def test_a_backend_that_is_not_installed_is_one_line(data, tmp_path):
    """In a process of its own, since backends are kept by name within one."""
    argv = ['train.py', str(MINI / 'digits.py'), '--work-dir', str(tmp_path)]
    argv += ['--device', 'cpu', '--cfg-options', 'log_level=ERROR', *SHORT]
    argv.append("visualizer.vis_backends=[{'type': 'WandbVisBackend'}]")
    said = tmp_path / 'said'

    def train() -> None:
        sys.modules['wandb'] = None
        sys.argv = argv
        os.environ['MMPETL_DATA'] = str(data)
        with open(said, 'w') as sys.stderr:
            runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')

    assert in_a_child(train) == 1
    line = said.read_text().strip().splitlines()[-1]
    assert line.startswith('error: the run cannot begin as its config says')
    assert 'pip install wandb' in line
