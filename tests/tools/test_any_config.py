"""Training tools, ours and upstream's own, on any config of upstream."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
import upstream
from mmengine.config import Config
from mmengine.registry import DefaultScope
from upstream import whole_file, without_file

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = 'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py'


@pytest.fixture
def tool(monkeypatch, capsys):
    """``tool(path, *argv)`` runs one in this process; its exit code and last line."""

    def run(path: Path, *argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [str(path), *argv])
        code = 0
        with upstream.quick():
            DefaultScope._instance_dict.clear()
            try:
                runpy.run_path(str(path), run_name='__main__')
            except SystemExit as stop:
                code = stop.code
        lines = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        return code, lines[-1] if lines else ''

    return run


def written(config: Config, folder: Path, name: str) -> str:
    path = folder / f'{name}.py'
    config.experiment_name = f'{folder.name}-{name}'
    config.dump(path)
    return str(path)


def test_train_adds_a_method_to_any_config(tool, tmp_path):
    file = whole_file('mmpretrain', tmp_path)
    config = without_file(upstream.config_of('mmpretrain', tmp_path, None))
    path = written(config, tmp_path, 'plain')
    argv = ['--petl', 'LoRA', '--petl-options', 'rank=2', '--base', str(file)]
    folder = tmp_path / 'run'
    code, line = tool(
        ROOT / 'tools' / 'train.py', path, *argv, '--work-dir', str(folder)
    )
    assert (code, line) == (0, '')
    saved = torch.load(folder / 'iter_1.pth', weights_only=False)
    assert saved['meta']['mmpetl']['method']['rank'] == 2
    assert saved['meta']['mmpetl']['base'] == file.name
    dumped = Config.fromfile(folder / 'plain.py')
    assert dumped.model.of == 'ImageClassifier'
    assert dumped.model.petl == {'type': 'LoRA', 'rank': 2}
    # The dump needs no flag.
    dumped.work_dir = str(tmp_path / 'again')
    code, line = tool(ROOT / 'tools' / 'train.py', written(dumped, tmp_path, 'dumped'))
    assert (code, line) == (0, '')
    again = torch.load(tmp_path / 'again' / 'iter_1.pth', weights_only=False)
    for key, value in saved['state_dict'].items():
        assert torch.equal(again['state_dict'][key], value), key


@pytest.mark.parametrize('name', ['mmpretrain', 'mmdet', 'mmseg', 'mmaction'])
def test_upstreams_own_tool_trains_the_one_line(name, tool, tmp_path):
    package = __import__(name)
    file = whole_file(name, tmp_path)
    config = upstream.config_of(name, tmp_path, base=str(file))
    path = written(config, tmp_path, 'line')
    own = Path(package.__file__).parent / '.mim' / 'tools' / 'train.py'
    code, _ = tool(own, path, '--work-dir', str(tmp_path / 'run'))
    assert not code
    saved = torch.load(tmp_path / 'run' / 'iter_1.pth', weights_only=False)
    before = torch.load(file)['state_dict']
    after = saved['state_dict']
    assert 'petl.base' in after
    for key, value in before.items():
        if key.startswith('backbone.'):
            assert torch.equal(after[key], value), key


def test_bad_input_is_one_line(tool, tmp_path):
    train = ROOT / 'tools' / 'train.py'
    for argv, words in (
        (['mmnowhere::a/b.py', '--petl', 'LoRA'], "'mmnowhere' is not installed"),
        ([SHIPPED.replace('64xb64', '64xb46'), '--petl', 'LoRA'], 'Did you mean'),
        ([SHIPPED, '--petl', 'Lora'], "Did you mean 'LoRA'"),
        ([SHIPPED, '--base', 'x.pth'], 'need --petl METHOD'),
        ([SHIPPED, '--petl-options', 'rank=2'], 'need --petl METHOD'),
    ):
        code, line = tool(train, *argv, '--work-dir', str(tmp_path))
        assert code == 1, words
        assert words in line


def test_a_shipped_config_stops_at_its_data_only(tool, tmp_path):
    """Its name is all that is needed; what is not here is ImageNet."""
    code, line = tool(
        ROOT / 'tools' / 'train.py',
        SHIPPED,
        '--petl',
        'LoRA',
        '--work-dir',
        str(tmp_path),
    )
    assert code == 1
    assert 'imagenet' in line


def test_a_missing_base_is_one_line(tool, tmp_path):
    config = without_file(upstream.config_of('mmpretrain', tmp_path, None))
    path = written(config, tmp_path, 'plain')
    code, line = tool(
        ROOT / 'tools' / 'train.py',
        path,
        '--petl',
        'LoRA',
        '--base',
        str(tmp_path / 'none.pth'),
        '--work-dir',
        str(tmp_path / 'run'),
    )
    assert code == 1
    assert f'No weight file at {tmp_path / "none.pth"}' in line
