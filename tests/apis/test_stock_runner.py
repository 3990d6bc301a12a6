"""Configs that use MMEngine's own hooks, constructor and wrapper."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import CheckpointHook
from PIL import Image

from mmpetl import apis
from mmpetl.core import PETLError, delta_state, frozen_keys
from mmpetl.engine import BaseGuardHook
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.runner import safe_config

METHOD = {'type': 'LoRA', 'rank': 2}
STOCK = """
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = []
test_dataloader['dataset']['data_root'] = {root!r}
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=test_dataloader['dataset'],
)
test_dataloader['persistent_workers'] = False
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1))
randomness = dict(seed=3)
log_level = 'WARNING'
"""


@pytest.fixture
def stock(bench):
    """``stock(method)``: a config of upstream with three lines of ours in it."""
    pictures = bench.folder / 'pictures'
    draw = np.random.RandomState(0)
    for name in ('ant', 'bee', 'cat', 'dog'):
        (pictures / name).mkdir(parents=True)
        for i in range(2):
            pixels = draw.randint(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(pictures / name / f'{i}.png')

    def write(method=METHOD, more: str = '', base: Path | None = None) -> Path:
        path = bench.config(method, base)
        path.write_text(path.read_text() + STOCK.format(root=str(pictures)) + more)
        return path

    return write


@pytest.fixture
def train(tmp_path):
    """``train(config, folder, **options)``: the trained model's runner."""
    count = 0

    def run(config, folder='run', **options):
        nonlocal count
        count += 1
        config = apis.load_config(config, options, tmp_path / folder)
        config.experiment_name = f'{tmp_path.name}-{count}'
        return apis.train(config)

    return run


def outputs(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        inputs = torch.randn(2, 3, 32, 32, generator=generator)
        return model.eval()(inputs, mode='tensor')


@pytest.mark.parametrize('method', [METHOD, {'type': 'BitFit'}], ids=['LoRA', 'BitFit'])
def test_what_the_stock_hook_saves_is_published_and_folded(bench, stock, train, method):
    config = stock(method)
    model = plain_model(train(config))
    whole = bench.folder / 'run' / 'epoch_2.pth'
    content = torch.load(whole, weights_only=False)
    assert 'mmpetl' not in content['meta']
    assert frozen_keys(model) <= set(content['state_dict'])

    path = apis.export_delta(whole, config, bench.folder / 'ants')
    delta = apis.read_delta(path)
    assert set(delta.state) == set(delta_state(model))
    assert delta.dataset['classes'] == ['ant', 'bee', 'cat', 'dog']
    want = outputs(model)
    assert torch.equal(outputs(apis.init_model(config, path, 'cpu')), want)
    assert torch.equal(outputs(apis.init_model(config, whole, 'cpu')), want)
    assert torch.equal(outputs(apis.load_delta(config, whole)), want)
    folded, plain = apis.fold_checkpoint(config, whole, bench.folder / 'f.pth')
    torch.testing.assert_close(
        outputs(apis.init_model(plain, folded, 'cpu')), want, rtol=0, atol=1e-5
    )


def test_the_base_in_a_whole_checkpoint_is_checked(bench, stock, train):
    config = stock()
    train(config)
    whole = bench.folder / 'run' / 'epoch_2.pth'
    content = torch.load(whole, weights_only=False)
    spoilt = copy.deepcopy(content)
    spoilt['state_dict']['backbone.layers.1.ln1.bias'][3] += 1e-6
    torch.save(spoilt, bench.folder / 'spoilt.pth')
    with pytest.raises(PETLError, match=r'1 of \d+ frozen .*layers\.1\.ln1\.bias is'):
        apis.export_delta(bench.folder / 'spoilt.pth', config, bench.folder / 'x')
    del content['state_dict']['backbone.layers.1.ln1.bias']
    torch.save(content, bench.folder / 'part.pth')
    with pytest.raises(PETLError, match=r'it lacks backbone\.layers\.1\.ln1\.bias'):
        apis.load_delta(config, bench.folder / 'part.pth')
    with pytest.raises(PETLError, match='of the whole model needs its run'):
        apis.export_delta(whole, None, bench.folder / 'x')
    assert not list(bench.folder.glob('x*'))


@pytest.mark.slow
def test_the_method_in_a_whole_checkpoint_is_compared(bench, stock, train):
    train(stock())
    whole = bench.folder / 'run' / 'epoch_2.pth'
    base = bench.folder / 'base.pth'
    other = stock({'type': 'LoRA', 'rank': 2, 'alpha': 99}, base=base)
    with pytest.raises(PETLError, match="epoch_2.pth.*'alpha': 99"):
        apis.load_delta(other, whole)


def test_a_stock_run_leaves_the_base_and_resumes(bench, stock, train):
    """The default constructor hands the optimizer all parameters, frozen ones too."""
    config = stock()
    base = apis.init_model(config, device='cpu').state_dict()
    runner = train(config)
    after = plain_model(runner).state_dict()
    for key in frozen_keys(plain_model(runner)):
        assert torch.equal(after[key], base[key]), key
    first = bench.folder / 'run' / 'epoch_1.pth'
    again = train(config, 'again', resume=True, load_from=str(first))
    assert again.epoch == 2
    for key in frozen_keys(plain_model(again)):
        assert torch.equal(plain_model(again).state_dict()[key], base[key]), key


def test_one_line_makes_a_config_of_upstream_safe(bench, stock, train):
    config = stock(more="runner_type = 'mmpetl.TuningRunner'\n")
    runner = train(config)
    kinds = {type(hook).__name__ for hook in runner.hooks}
    assert {'DeltaCheckpointHook', 'CalibrationHook', 'BaseGuardHook'} <= kinds
    assert {'NonFiniteGuardHook'} <= kinds
    assert 'CheckpointHook' not in kinds
    names = [group['name'] for group in runner.optim_wrapper.optimizer.param_groups]
    assert names == ['delta', 'head', 'head_no_decay']
    whole, resumed = bench.folder / 'run', bench.folder / 'resumed'
    state = torch.load(whole / 'epoch_2.pth', weights_only=False)['state_dict']
    assert set(state) == set(delta_state(plain_model(runner)))
    first = str(whole / 'epoch_1.pth')
    train(config, 'resumed', resume=True, load_from=first)
    other = torch.load(resumed / 'epoch_2.pth', weights_only=False)['state_dict']
    for key, value in state.items():
        assert torch.equal(value, other[key]), key


def test_what_a_config_says_itself_stays():
    config = {
        'default_hooks': {'checkpoint': {'type': 'mine.Saver', 'interval': 3}},
        'custom_hooks': [{'type': 'mmpetl.BaseGuardHook'}, {'type': 'Mine'}],
        'optim_wrapper': {'constructor': 'Mine'},
        'model_wrapper_cfg': {'type': 'Mine'},
    }
    before = copy.deepcopy(config)
    safe, added = safe_config(config)
    assert config == before
    assert added == ['mmpetl.CalibrationHook', 'mmpetl.NonFiniteGuardHook']
    assert safe['custom_hooks'][:2] == before['custom_hooks']
    for key in ('default_hooks', 'optim_wrapper', 'model_wrapper_cfg'):
        assert safe[key] == before[key]
    stock = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 3}}}
    for kind in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        stock['default_hooks']['checkpoint']['type'] = kind
        saver = safe_config(stock)[0]['default_hooks']['checkpoint']
        assert saver == {'type': 'mmpetl.DeltaCheckpointHook', 'interval': 3}
    assert safe_config({'custom_hooks': [{'type': BaseGuardHook}]})[1][:3] == [
        'mmpetl.DeltaCheckpointHook',
        'mmpetl.CalibrationHook',
        'mmpetl.NonFiniteGuardHook',
    ]


@pytest.mark.parametrize('own', [None, {'type': 'Mine'}])
def test_processes_without_a_gpu_get_a_wrapper_that_runs_there(monkeypatch, own):
    from mmengine.config import Config
    from mmengine.runner import Runner

    config = Config({'default_scope': 'mmengine', 'model_wrapper_cfg': own})
    seen = []
    made = SimpleNamespace(logger=logging.getLogger('none'))
    monkeypatch.setattr('mmpetl.apis.run.init_dist_any', lambda launcher: None)
    monkeypatch.setattr('mmpetl.datasets.reading.guard_runner', lambda runner: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: seen.append(cfg) or made)
    apis.build_runner(config, launcher='pytorch', check_data=())
    ours = {'type': 'mmpetl.PETLDistributedDataParallel'}
    assert seen[0].model_wrapper_cfg == (own or ours)


@pytest.mark.parametrize(
    'more',
    [pytest.param('', marks=pytest.mark.slow), "runner_type = 'mmpetl.TuningRunner'\n"],
)
def test_a_run_is_not_resumed_with_another_rate(bench, stock, train, more):
    config = stock(more=more)
    train(config, **{'train_cfg.max_epochs': 1})
    dumped = (bench.folder / 'run' / 'run.py').read_text()
    rate = {'optim_wrapper.optimizer.lr': 0.02}
    with pytest.raises(PETLError, match=r'optimizer\.lr is 0\.02, was 0\.01'):
        train(config, resume=True, **rate)
    assert (bench.folder / 'run' / 'run.py').read_text() == dumped
    assert train(config, resume=True).epoch == 2  # longer than before: allowed


def test_a_checkpoint_is_checked_without_our_hook_too(bench, stock, train):
    train(stock())
    whole = bench.folder / 'run' / 'epoch_2.pth'

    def evaluate(config, name):
        config = apis.load_config(config, None, bench.folder / name)
        config.experiment_name = f'{bench.folder.name}-{name}'
        return apis.test(config, whole, check_data=())

    other = stock({'type': 'LoRA', 'rank': 3}, base=bench.folder / 'base.pth')
    with pytest.raises(PETLError, match=r"epoch_2.pth.*'rank': 2"):
        evaluate(other, 'other')
    assert evaluate(stock(base=bench.folder / 'base.pth'), 'same')


def test_a_checkpoint_that_lacks_what_trains_is_not_tested(bench, stock, train, capsys):
    config = stock({'type': 'BitFit'}, more="log_level = 'ERROR'\n")
    runner = train(config, **{'train_cfg.max_epochs': 1})
    content = torch.load(bench.folder / 'run' / 'epoch_1.pth', weights_only=False)
    bare = plain_model(runner).state_dict()

    def evaluate(state, name, **options):
        path = bench.folder / f'{name}.pth'
        torch.save({**content, 'state_dict': state}, path)
        made = apis.load_config(config, options, bench.folder / name)
        made.experiment_name = f'{bench.folder.name}-{name}'
        made.log_level = 'WARNING'
        return apis.test(made, path, check_data=())

    def lacking(word):
        return {k: v for k, v in bare.items() if word not in k}

    plain = {'model.backbone.method': None}
    frozen_too = r'lacks head\.\S*bias of the model, which would be tested as'
    with pytest.raises(PETLError, match=frozen_too) as error:
        evaluate(lacking('head.fc.bias'), 'headless', **plain)
    assert '\n' not in str(error.value)
    with pytest.raises(PETLError, match='lacks backbone.layers.0.ln1.bias'):
        evaluate(lacking('layers.0.ln1.bias'), 'part', **plain)
    assert evaluate(bare, 'whole', **plain)
