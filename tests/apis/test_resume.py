"""A resumed run has the settings it began with, or says what is not."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config

from mmpetl.apis.resume import check_resume, differences, goes_on_by_passes
from mmpetl.config.batch import SCHEDULERS
from mmpetl.config.text import is_data, read_text
from mmpetl.core import PETLError
from mmpetl.engine.resuming import rng_state

RUN = """
model = dict(
    backbone=dict(checkpoint='weights/vit.npz', method=dict(type='LoRA', rank=8)))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.001), type='OptimWrapper')
param_scheduler = [dict(type='LinearLR', end=10), dict(type='CosineAnnealingLR')]
train_cfg = dict(by_epoch=True, max_epochs=10)
train_dataloader = dict(
    batch_size=64, num_workers=4, dataset=dict(data_root='data/ants', pipeline=[
        dict(type='Resize', scale=(224, 224))]))
val_dataloader = None
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1))
custom_hooks = [
    dict(type='mmpetl.EfficiencyHook'), dict(type='mmpetl.TrainableEMAHook')]
randomness = dict(seed=42)
work_dir = 'runs/a'
"""


def whole(meta):
    """A checkpoint that a run could go on from."""
    hub = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}
    return {
        'meta': {'epoch': 3, 'iter': 30, **meta},
        'state_dict': {},
        'message_hub': hub,
        'optimizer': {'state': {}, 'param_groups': []},
        'param_schedulers': [],
        'rng': [rng_state()],
        'validated': 30,
    }


@pytest.fixture
def run(tmp_path):
    """``run(**changes)``: the config of a run that has left a checkpoint, changed."""
    config = Config.fromstring(RUN, '.py')
    file = tmp_path / 'epoch_3.pth'
    torch.save(whole({'cfg': config.pretty_text, 'seed': 42}), file)
    config.resume, config.load_from = True, str(file)

    def changed(**changes):
        config.merge_from_dict({k.replace('__', '.'): v for k, v in changes.items()})
        return config

    return changed


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'optim_wrapper__optimizer__lr': 0.01}, 'optimizer.lr is 0.01, was 0.001'),
        ({'train_dataloader__batch_size': 8}, 'batch_size is 8, was 64'),
        ({'model__backbone__method__rank': 4}, 'method.rank is 4, was 8'),
        (
            {'model__backbone__method': [{'type': 'LoRA', 'rank': 8}]},
            r"method is \[\{'rank': 8, 'type': 'LoRA'\}\], was \{'rank'",
        ),
        ({'param_scheduler__0__end': 5}, 'param_scheduler.0.end is 5, was 10'),
        ({'randomness__seed': 1}, 'randomness.seed is 1, was 42'),
        ({'train_cfg__max_epochs': 5}, 'max_epochs is 5, was 10'),
        ({'cache_features': {'tolerance': 0.1}}, 'cache_features is .*, was absent'),
        ({'optim_wrapper__type': 'AmpOptimWrapper'}, "type is 'AmpOptimWrapper'"),
        ({'optim_wrapper__clip_grad': {'max_norm': 1}}, 'clip_grad is .*, was absent'),
        ({'custom_hooks': []}, r"custom_hooks is \[\], was \[\{'type': 'mmpetl.Train"),
        ({'model__backbone__checkpoint': 'weights/x.npz'}, "x.npz', was 'weights/vit"),
        (
            {'train_dataloader__dataset__pipeline__0__scale': (32, 32)},
            'pipeline.0.scale.0 is 32, was 224',
        ),
    ],
)
def test_settings_that_decide_are_refused(run, changes, line):
    with pytest.raises(PETLError, match=line) as error:
        check_resume(run(**changes))
    assert 'epoch_3.pth cannot be resumed with other settings' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'work_dir': 'runs/b'}, "work_dir is 'runs/b', was 'runs/a'"),
        ({'default_hooks__logger__interval': 1}, 'logger.interval is 1, was 10'),
        ({'train_cfg__max_epochs': 20}, 'max_epochs is 20, was 10'),
        ({'train_dataloader__num_workers': 0}, 'num_workers is 0, was 4'),
        ({'shard_base': True}, 'shard_base is True, was absent'),
        ({'offload_activations': True}, 'offload_activations is True, was absent'),
        ({'deepspeed': 3}, 'deepspeed is 3, was absent'),
        ({'cache_features': True}, 'cache_features is True, was absent'),
        ({'val_dataloader': 1}, 'val_dataloader is 1, was None'),
        ({'model__backbone__checkpoint': '/else/vit.npz'}, "is '/else/vit.npz', was"),
        ({'train_dataloader__dataset__data_root': '/big/x'}, "data_root is '/big/x'"),
    ],
)
def test_settings_that_do_not_decide_are_said(run, changes, line):
    (said,) = check_resume(run(**changes))
    assert re.search(line, said)


def test_a_run_goes_on_with_the_seed_that_it_drew(run, tmp_path):
    config = run()
    for key in ('absent', None):
        if key is None:  # resumed once, the config in its checkpoint names it
            torch.save(whole({'cfg': config.pretty_text, 'seed': 42}), config.load_from)
        else:
            del config._cfg_dict['randomness']
            text = config.pretty_text
            torch.save(whole({'cfg': text, 'seed': 42}), config.load_from)
        config.randomness = {'seed': None}
        assert check_resume(config) == []
        assert config.randomness.seed == 42


def test_the_same_settings_say_nothing(run):
    assert check_resume(run()) == []
    assert check_resume(run(custom_hooks=[{'type': 'mmpetl.TrainableEMAHook'}])) == []
    assert check_resume(run(launcher='pytorch', test_dataloader=None)) == []


def test_many_differences_stay_one_line(run):
    changes = {f'optim_wrapper__optimizer__key{i}': i for i in range(6)}
    with pytest.raises(PETLError, match=r'\(and 3 more\)'):
        check_resume(run(**changes))


def test_a_checkpoint_without_settings_says_so(run, tmp_path):
    config = run(optim_wrapper__optimizer__lr=1)
    torch.save(whole({}), config.load_from)
    (line,) = check_resume(config)
    assert 'does not say its settings' in line
    config.load_from, config.work_dir = None, str(tmp_path / 'empty')
    assert check_resume(config) == []
    config.resume = False
    assert check_resume(config) == []


def test_a_checkpoints_config_is_read_and_never_run(tmp_path):
    text = f"""
a = dict(b=[1, (2, 3)], c={{'x-y': -1.5}}, d=None)
e = open({str(tmp_path / 'ran')!r}, 'w')
"""
    assert read_text(text)['a'] == {'b': [1, [2, 3]], 'c': {'x-y': -1.5}, 'd': None}
    assert read_text(text)['e'].startswith('open(')
    assert not (tmp_path / 'ran').exists()
    assert read_text('a = (') == {}


def test_what_a_config_prints_is_read_as_it_was():
    config = Config.fromstring(RUN, '.py')
    again = Config.fromstring(config.pretty_text, '.py')
    read = read_text(config.pretty_text)
    assert read == read_text(again.pretty_text)
    assert read['optim_wrapper'] == again.to_dict()['optim_wrapper']
    assert list(differences(read, read)) == []
    # Keys that are no names are printed as dict({...}).
    config = Config({'a': {'.cls_token': {'decay_mult': 0.0}}})
    assert read_text(config.pretty_text) == config.to_dict()
    assert is_data(config.pretty_text)
    assert not is_data('a = dict([1])')
    assert not is_data('a = dict({1: f()})')


@pytest.mark.parametrize(
    'text', ['-' * 5000 + '1', '(' * 300, 'a = ' + '[' * 5000, 'a = "\0"', '\ud800 = 1']
)
def test_a_config_that_python_cannot_read_says_nothing(text):
    assert read_text(text) == {}
    assert not is_data(text)


def test_keys_and_sets_that_no_mapping_takes_are_read_as_text():
    assert read_text('a = {[1]: 2, -1: dict(b=inf)}\nc = {[1], 2}\n') == {
        'a': {'[1]': 2, -1: {'b': 'inf'}},
        'c': '{[1], 2}',
    }


@pytest.mark.parametrize(
    ('optim', 'hooks', 'by_passes'),
    [
        ({}, {}, False),
        ({'accumulative_counts': 4}, {}, True),
        ({'accumulative_counts': 4}, {'param_scheduler': {'type': SCHEDULERS}}, False),
    ],
)
def test_a_run_that_counted_passes_goes_on_so(tmp_path, optim, hooks, by_passes):
    config = Config.fromstring(RUN, '.py')
    config.optim_wrapper.update(optim)
    config.default_hooks.update(hooks)
    file = tmp_path / 'epoch_3.pth'
    torch.save(whole({'cfg': config.pretty_text, 'seed': 42}), file)
    assert not goes_on_by_passes(config)
    config.resume, config.load_from = True, str(file)
    assert goes_on_by_passes(config) == by_passes
