"""The converters as a user runs them; what they write loads where mmpetl is not."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmpetl import apis
from mmpetl.core import PETLError

ROOT = Path(__file__).parents[2]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'mmpetl':
            raise ImportError('mmpetl is blocked here')
sys.meta_path.insert(0, Block())
"""
STOCK = (
    BLOCK
    + """
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from mmengine.registry import init_default_scope
config, checkpoint, inputs, out = sys.argv[1:]
config = Config.fromfile(config)
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
load_checkpoint(model, checkpoint, 'cpu', strict=True)
model.eval()
with torch.no_grad():
    torch.save(model.head(model.extract_feat(torch.load(inputs))), out)
assert not any(m.partition('.')[0] == 'mmpetl' for m in sys.modules)
"""
)


def run(*args: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


# Another process for each, which knows no mmpetl. What folding writes of each method is
# held by the contract.
@pytest.mark.parametrize(
    'method',
    [
        {'type': 'LoRA', 'rank': 2},
        pytest.param({'type': 'SSF'}, marks=pytest.mark.slow),
        pytest.param({'type': 'BitFit'}, marks=pytest.mark.slow),
    ],
    ids=lambda method: method['type'],
)
def test_a_folded_checkpoint_loads_into_stock_mmpretrain(bench, method):
    config = bench.config(method)
    model = bench.tuned(config)
    plain_base = apis.init_model(bench.config(None, name='plain'), device='cpu')
    delta = apis.export_delta(model, config, bench.folder / 'delta')
    checkpoint, stock = apis.fold_checkpoint(config, delta, bench.folder / 'folded.pth')
    assert 'mmpetl' not in stock.read_text()

    torch.manual_seed(3)
    inputs = torch.randn(4, 3, 32, 32)
    torch.save(inputs, bench.folder / 'inputs.pt')
    run('-c', STOCK, stock, checkpoint, bench.folder / 'inputs.pt', bench.folder / 'y')
    got = torch.load(bench.folder / 'y')
    with torch.no_grad():
        tuned = model.head(model.extract_feat(inputs))
        plain = plain_base.head(plain_base.extract_feat(inputs))
    torch.testing.assert_close(got, tuned, rtol=0, atol=1e-5)
    assert (tuned - plain).abs().max() > 1e-2


def test_fold_has_no_key_of_mmpetl_and_both_forms_agree(bench):
    from safetensors.torch import load_file

    config = bench.config({'type': 'LoRA', 'rank': 2})
    delta = apis.export_delta(bench.tuned(config), config, bench.folder / 'delta')
    checkpoint, _ = apis.fold_checkpoint(config, delta, bench.folder / 'f', True)
    content = torch.load(checkpoint, weights_only=True)
    assert content['meta']['dataset_meta']['classes'] == ['ant', 'bee', 'cat', 'dog']
    other = load_file(checkpoint.with_suffix('.safetensors'))
    plain = apis.init_model(bench.config(None, name='plain'), device='cpu')
    assert set(content['state_dict']) == set(other) == set(plain.state_dict())
    for key, value in content['state_dict'].items():
        assert torch.equal(value, other[key])


def test_what_cannot_be_folded_is_refused(bench):
    config = bench.config({'type': 'Adapter', 'hidden_dims': 4})
    delta = apis.export_delta(bench.tuned(config), config, bench.folder / 'delta')
    with pytest.raises(PETLError, match='Adapter.*cannot be folded'):
        apis.fold_checkpoint(config, delta, bench.folder / 'folded.pth')
    assert not list(bench.folder.glob('folded*'))


def test_a_foreign_type_in_the_test_part_is_refused(bench):
    config = apis.load_config(bench.config({'type': 'SSF'}))
    config.test_evaluator = {'type': 'mmpetl.Strange'}
    with pytest.raises(PETLError, match=r'test_evaluator\.type.*mmpetl\.Strange'):
        apis.stock_config(config)


def test_readers_of_mmpetl_become_a_folder_of_images(bench):
    config = apis.load_config(bench.config({'type': 'SSF'}))
    config.test_dataloader.dataset.type = 'mmpetl.VTAB'
    dataset = apis.stock_config(config, {'classes': ['a', 'b']}).test_dataloader.dataset
    assert dataset.type == 'CustomDataset'
    assert dataset.metainfo.classes == ['a', 'b']
    assert [step.type for step in dataset.pipeline][-1] == 'PackInputs'


def call(tool: str, *args: object) -> int:
    """Exit code of a tool that runs in this process, which has loaded everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *map(str, args)])
        try:
            runpy.run_path(str(ROOT / tool), run_name='__main__')
        except SystemExit as end:
            return end.code or 0
    return 0


def test_the_tools_publish_and_fold(bench, capsys):
    from mmpetl.core import delta_state
    from mmpetl.engine.hooks.delta_checkpoint import delta_meta

    config = bench.config({'type': 'LoRA', 'rank': 2})
    model = bench.tuned(config)
    run_file = bench.folder / 'epoch_1.pth'
    content = {'meta': {'mmpetl': delta_meta(model)}, 'state_dict': delta_state(model)}
    torch.save(content, run_file)
    out = bench.folder / 'out' / 'ants'
    publish = 'tools/model_converters/publish_delta.py'
    done = run(publish, config, run_file, out, '--metrics', 'acc=0.75')
    assert 'ants.safetensors' in done.stdout
    assert apis.read_delta(out).metrics == {'acc': 0.75}
    fold = 'tools/model_converters/fold_delta.py'
    assert call(fold, config, f'{out}.safetensors', f'{out}.pth') == 0
    assert Path(f'{out}.py').is_file()
    base = bench.folder / 'base.pth'
    assert call(fold, f'{out}.safetensors', f'{out}_base.pth', '--base', base) == 0
    assert not Path(f'{out}_base.py').exists()
    one, two = (
        torch.load(f'{out}{end}.pth', weights_only=True)['state_dict']
        for end in ('', '_base')
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value)

    def refused(*args: object) -> str:
        capsys.readouterr()
        assert call(*args) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    said = refused(fold, f'{out}.safetensors', f'{out}_base.pth')
    assert 'ants.safetensors is on the base base.pth, and there is no' in said
    said = refused(publish, config, bench.folder / 'none.pth', out)
    assert said.startswith('error: there is no')
    said = refused(publish, config, run_file, out, '--metrics', 'acc')
    assert said.startswith('error: --metrics takes')
    assert apis.read_delta(out).metrics == {'acc': 0.75}


def test_counts_equal_the_formula():
    # LoRA of rank 8 on q and v: 12 blocks x 2 x 8 x (768 + 768).
    rows = {r['method']: r for r in apis.count_pairs(['LoRA', 'Prefix'], ['vit_b16'])}
    assert rows['LoRA']['delta'] == 12 * 2 * 8 * (768 + 768)
    assert rows['LoRA']['base'] == 85_798_656
    with pytest.raises(PETLError, match="Did you mean 'vit_b16'"):
        next(apis.count_pairs(['LoRA'], ['vit_b_16']))


def test_a_config_is_counted_without_its_weight_file(bench):
    config = bench.config({'type': 'LoRA', 'rank': 2}, bench.folder / 'absent.pth')
    row = apis.count_config(config)
    assert row['delta'] == 2 * 2 * 2 * (32 + 32)
    assert row['head'] == 4 * 33
    assert row['method'] == 'LoRA'
