"""Runs handed on by commands: to a hub, to peft and back, and as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mmengine.registry import DefaultScope
from workbench import BACKBONE, CONFIG, Workbench

from mmpetl import apis
from mmpetl.apis.onnx_files import _apart
from mmpetl.cli.main import mmpetl as command

LORA = {'type': 'LoRA', 'rank': 2, 'targets': ['attn.qkv', 'ffn.fc1']}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """``call(*argv)`` runs a command in a folder of its own; its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMPETL_HUB', raising=False)

    def run(*argv: object, code: int = 0) -> str:
        DefaultScope._instance_dict.clear()
        done = CliRunner().invoke(command, [*map(str, argv)], prog_name='mmpetl')
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    return run


@pytest.fixture
def run(tmp_path) -> tuple[Path, Path]:
    """Config and delta of a run."""
    bench = Workbench(tmp_path)
    config = bench.config(LORA)
    model = bench.tuned(config)
    return config, apis.export_delta(model, config, tmp_path / 'ants', {'top1': 91.5})


def scores(config: object, delta: object) -> torch.Tensor:
    model = apis.init_model(str(config), delta, 'cpu')
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(x, mode='tensor')


def test_a_run_is_pushed_with_a_card(call, run, tmp_path):
    config, delta = run
    hub = tmp_path / 'hub'
    argv = ('push', delta, 'me/ants', '--config', config)
    said = call(*argv, '--hub', hub, code=1)
    assert said.splitlines()[-1].startswith('error: ')
    hub.mkdir()
    said = call(*argv, '--hub', hub, '--data', 'four animals', '--licence', 'mit')
    assert said == f'{hub}/me/ants: the delta, and README.md, its card\n'
    card = (hub / 'me/ants/README.md').read_text()
    assert '| top1 | 91.5 |' in card  # of the delta's own record
    assert 'four animals' in card
    assert torch.equal(scores(config, hub / 'me/ants/delta.safetensors'), scores(*run))
    said = call('push', delta, 'ants', '--config', config, '--hub', hub, code=1)
    assert "called user/name, got 'ants'" in said.splitlines()[-1]


def test_an_adapter_of_peft_goes_out_and_comes_back(call, run, tmp_path):
    config, delta = run
    argv = ('peft', 'export', delta, 'adapter', '--config', config)
    assert 'an adapter for ImageClassifier' in call(*argv)
    plain = tmp_path / 'plain.py'
    text = CONFIG.format(backbone=BACKBONE, base='', method=None)
    before, _, rest = text.partition("        type='mmpetl.PETLBackbone'")
    kept = {**BACKBONE, 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'base.pth'}}
    behind = rest.partition('    head=')[2]
    before = before.rpartition('    backbone=')[0] + f'    backbone={kept!r},\n'
    plain.write_text(f'{before}    head={behind}')
    said = call('peft', 'import', 'adapter', plain, 'back/ants')
    assert 'of LoRA' in said
    assert 'back/ants.py: the config that holds them' in said
    found = scores('back/ants.py', 'back/ants.safetensors')
    assert torch.allclose(found, scores(*run), atol=1e-5)
    said = call('peft', 'import', 'adapter', config, 'other', code=1)
    assert 'has a method already' in said.splitlines()[-1]
    said = call(*argv, '--module', 'trunk', code=1)
    assert "no part 'trunk'; it has: " in said.splitlines()[-1]


def test_onnx_needs_its_packages(call, run, monkeypatch):
    config, delta = run
    monkeypatch.setattr('mmpetl.apis.onnx_files.find_spec', lambda name: None)
    said = call('export', delta, '--onnx', 'a.onnx', '--config', config, code=1)
    assert 'pip install "onnx' in said.splitlines()[-1]
    assert not Path('a.onnx').exists()


def test_the_gap_of_an_onnx_file_hides_nothing():
    nothing, one = torch.zeros(2), torch.ones(2)
    assert _apart(nothing, nothing) == 0
    assert _apart(one, nothing) == float('inf')
    assert _apart(one, 4 * one) == 0.75
    assert _apart(one * float('nan'), one) != _apart(one, one)


@pytest.mark.slow
def test_an_onnx_file_is_run_beside_the_model(call, run):
    pytest.importorskip('onnxruntime')
    config, delta = run
    shown = {}
    for name, more in (('tuned', ()), ('folded', ('--fold',))):
        file = f'{name}.onnx'
        said = call('export', delta, '--onnx', file, '--config', config, *more)
        shown[name] = said.splitlines()
        assert shown[name][0] == 'pictures: batch x 3 x 32 x 32'
        gap = float(shown[name][-1].split('at most ')[1].split(' ')[0])
        assert gap < 1e-4
        assert Path(file).stat().st_size > 1000
