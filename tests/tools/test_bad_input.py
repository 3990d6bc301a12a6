"""Bad input to the tools: one line, a non-zero exit code, nothing harmed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / 'configs' / 'mini' / 'digits.py')
VIDEO = str(ROOT / 'configs' / 'mini' / 'hmdb51.py')
WEIGHTS = ROOT / 'demo' / 'weights'


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Own tiny copies, to be spoilt."""
    from mmpetl.datasets.mini import make

    root = tmp_path / 'data'
    make(root, names=['vtab-1k/digits'], size='tiny')
    monkeypatch.setenv('MMPETL_DATA', str(root))
    return root


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(tool, *argv)`` runs a tool and returns its one line."""

    def run(tool: str, *argv: str, options: tuple[str, ...] = ()) -> str:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()
        args = [tool, *argv, '--work-dir', str(tmp_path / 'run')]
        args += ['--cfg-options', 'log_level=ERROR', *options]
        monkeypatch.setattr(sys, 'argv', args)
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        assert info.value.code == 1
        lines = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        assert len(lines) == 1
        return lines[0]

    return run


def test_missing_config(refused):
    line = refused('train.py', str(ROOT / 'configs' / 'mini' / 'digit.py'))
    assert 'there is no config' in line
    assert "Did you mean 'digits.py'?" in line


def test_options_that_do_not_fit(refused):
    for option in ('train_cfg.max_epochs.x=1', 'custom_hooks.99.type=X'):
        line = refused('train.py', DIGITS, options=(option,))
        assert f'the options log_level, {option.partition("=")[0]} do not fit' in line


def test_a_config_that_is_no_config(refused, tmp_path):
    file = tmp_path / 'broken.py'
    for text in ('model = (', "_base_ = 'nowhere.py'"):
        file.write_text(text)
        line = refused('train.py', str(file))
        assert 'broken.py' in line or 'nowhere.py' in line


def test_a_type_that_no_registry_knows(refused, data):
    line = refused('train.py', DIGITS, options=('model.head.type=LinearHeed',))
    assert 'LinearHeed is not in the' in line


def test_a_phase_that_the_config_lacks(refused, data):
    line = refused('train.py', DIGITS, options=('train_dataloader=None',))
    assert 'the config has no train_dataloader, so there is nothing to train' in line
    (data / 'x.pth').write_bytes(b'x')
    line = refused(
        'test.py', DIGITS, str(data / 'x.pth'), options=('test_dataloader=None',)
    )
    assert 'the config has no test_dataloader' in line


def test_a_work_folder_that_cannot_be(refused, data, tmp_path):
    (tmp_path / 'run').write_text('a file')
    assert 'run' in refused('train.py', DIGITS)


def test_a_run_is_not_resumed_with_other_settings(refused, data, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    text = 'optim_wrapper = dict(optimizer=dict(lr=0.5))'
    torch.save({'meta': {'cfg': text}, 'state_dict': {}}, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    line = refused('train.py', DIGITS, '--resume')
    assert 'epoch_1.pth cannot be resumed with other settings' in line


def test_unknown_method(refused):
    line = refused('train.py', DIGITS, options=('model.backbone.method.type=LoRa',))
    assert "unknown method 'LoRa'. Did you mean 'LoRA'?" in line


def test_unknown_argument_of_a_method(refused):
    options = ('model.backbone.method.type=LoRA', 'model.backbone.method.ranks=4')
    line = refused('train.py', DIGITS, options=options)
    assert "LoRA has no argument 'ranks'. Did you mean 'rank'?" in line


def test_a_method_that_does_not_fit_the_backbone(refused, data):
    options = ('model.backbone.method.type=LoRA', 'model.backbone.method.rank=200')
    line = refused('train.py', DIGITS, options=options)
    assert 'rank below the narrowest projection (96), got 200' in line


def test_missing_base_weights(refused, data):
    line = refused(
        'train.py', DIGITS, options=('model.backbone.checkpoint=/nowhere/vit.pth',)
    )
    assert '/nowhere/vit.pth' in line


def test_base_weights_of_another_size(refused, data):
    options = (
        'model.backbone.backbone.arch.embed_dims=48',
        'model.head.in_channels=48',
        'model.backbone.backbone.arch.feedforward_channels=144',
    )
    line = refused('train.py', DIGITS, options=options)
    assert '96' in line
    assert '48' in line


def test_foreign_base_weights(refused, data, tmp_path):
    file = tmp_path / 'resnet.pth'
    torch.save({'conv1.weight': torch.zeros(4, 3, 7, 7)}, file)
    line = refused('train.py', DIGITS, options=(f'model.backbone.checkpoint={file}',))
    assert 'resnet.pth' in line


def test_missing_data_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'nowhere'))
    line = refused('train.py', DIGITS)
    assert 'nowhere' in line
    assert 'MMPETL_DATA' in line


def test_a_list_line_that_names_a_missing_file(refused, data):
    task = data / 'vtab-1k' / 'digits'
    first = (task / 'train800val200.txt').read_text().splitlines()[0].split()[0]
    (task / first).unlink()
    line = refused('train.py', DIGITS)
    assert 'train800val200.txt' in line
    assert Path(first).name in line


def test_a_label_out_of_range(refused, data):
    names = data / 'vtab-1k' / 'digits' / 'train800val200.txt'
    lines = names.read_text().splitlines()
    lines[3] = f'{lines[3].split()[0]} 10'
    names.write_text('\n'.join(lines) + '\n')
    line = refused('train.py', DIGITS)
    assert 'train800val200.txt' in line
    assert '10' in line


def test_a_corrupt_image(refused, data):
    task = data / 'vtab-1k' / 'digits'
    first = (task / 'train800val200.txt').read_text().splitlines()[0].split()[0]
    (task / first).write_bytes(b'\xff\xd8 not a picture')
    assert Path(first).name in refused('train.py', DIGITS)


def test_a_corrupt_image_in_a_data_worker(refused, data):
    task = data / 'vtab-1k' / 'digits'
    first = (task / 'train800val200.txt').read_text().splitlines()[0].split()[0]
    (task / first).write_bytes(b'')
    line = refused('train.py', DIGITS, options=('train_dataloader.num_workers=1',))
    assert Path(first).name in line


def test_a_corrupt_video(refused, data):
    from mmpetl.datasets.mini import make

    make(data, names=['hmdb51'], size='tiny')
    for video in (data / 'hmdb51').rglob('*.mp4'):
        video.write_bytes(b'not a video')
    line = refused('train.py', VIDEO, options=('model.backbone.checkpoint=None',))
    assert '.mp4' in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_a_device_that_is_not_there(refused, data):
    line = refused('train.py', DIGITS, '--device', 'cuda')
    assert 'torch sees no GPU; use --device cpu' in line
    assert '--amp needs a GPU' in refused('train.py', DIGITS, '--amp')


def test_missing_checkpoints(refused, data):
    assert 'there is no checkpoint x.pth' in refused('test.py', DIGITS, 'x.pth')
    line = refused('train.py', DIGITS, '--resume', 'x.pth')
    assert 'there is no checkpoint x.pth' in line


def test_a_base_file_offered_as_a_delta(refused, data, tmp_path):
    file = tmp_path / 'base.pth'
    torch.save({'state_dict': {'x': torch.zeros(1)}, 'meta': {}}, file)
    line = refused('test.py', DIGITS, str(file))
    assert 'lacks head.fc.weight' in line


def test_a_loss_that_is_not_finite(refused, data, tmp_path):
    line = refused('train.py', DIGITS, options=('optim_wrapper.optimizer.lr=1e30',))
    assert 'the loss is' in line
    assert '.jpg' in line


def test_metrics_may_be_lists_or_absent():
    from mmpetl.cli.commands.test import plain

    metrics = (torch.tensor([1.5, 2.0]), None, torch.tensor(3), 4, [np.float32(5)])
    assert [plain(m) for m in metrics] == [[1.5, 2.0], None, 3.0, 4.0, [5.0]]
    # NaN is no JSON: an IoU of a class that no picture shows.
    assert plain(np.array([50.0, np.nan])) == [50.0, None]
