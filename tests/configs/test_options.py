"""Options on top of configs: good ones are taken, wrong ones are one line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import DictAction as TheirAction

from mmpetl.config.cli import DictAction
from mmpetl.config.load import finish_config, read_config
from mmpetl.config.options import check_values, merge
from mmpetl.core import PETLError


def config() -> Config:
    return Config(
        {
            'default_scope': 'mmengine',
            'train_cfg': {'by_epoch': True, 'max_epochs': 3},
            'train_dataloader': {
                'batch_size': 8,
                'num_workers': 0,
                'sampler': {'type': 'DefaultSampler', 'round_up': False},
            },
            'optim_wrapper': {
                'type': 'AmpOptimWrapper',
                'loss_scale': 512.0,
                'optimizer': {'type': 'AdamW', 'lr': 0.1, 'betas': (0.9, 0.999)},
            },
            'param_scheduler': [
                {'type': 'LinearLR', 'start_factor': 0.1, 'begin': 0, 'end': 2}
            ],
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'out_dir': 'x'}},
            'randomness': {'seed': 1},
            'env_cfg': {'cudnn_benchmark': False},
            'auto_scale_lr': {'enable': False, 'base_batch_size': 64},
            'own': {'free': 1},
        }
    )


@pytest.mark.parametrize(
    ('key', 'value', 'word'),
    [
        ('train_cgf.max_epochs', 1, "'train_cfg'"),
        ('train_cfg.max_epoch', 1, "'max_epochs'"),
        ('train_dataloader.batchsize', 1, "'batch_size'"),
        ('optim_wrapper.optimizer.betass', 1, "'betas'"),
        ('param_scheduler.0.ende', 1, "'end'"),
        ('param_scheduler.7.end', 1, '7'),
        ('default_hooks.checkpoint.intervall', 1, "'interval'"),
        ('env_cfg.cudnn_benchmrk', True, "'cudnn_benchmark'"),
        ('auto_scale_lr.enabel', True, "'enable'"),
        ('tune.train_cfg', {}, 'before options are laid over it'),
        ('optim_wrapper.optimizer.betas', ['a', 0.9], 'number'),
        ('optim_wrapper', {'optimizer': {'betass': 1}}, "'betas'"),
        ('randomness.sed', 1, "'seed'"),
        ('train_cfg.max_epochs', 'abc', 'number'),
        ('train_cfg..max_epochs', 1, 'dotted'),
        ('train_cfg.max_iters', 9, 'counts epochs; give train_cfg.max_epochs'),
        ('train_cfg.by_epoch', False, 'counts iterations; give train_cfg.max_iters'),
        ('train_cfg.type', 'EpochBasedTrainLoop', "no 'by_epoch'"),
        ('train_cfg.runner', 1, "no 'runner'"),
        ('val_cfg', {'fp1': True}, "'fp16'"),
        ('log_processor', {'windowsize': 1}, "'window_size'"),
        ('optim_wrapper', {'_delete_': True, 'optimiser': {}}, "'optimizer'"),
        ('custom_hooks', [{'type': 'EmptyCacheHook', 'x': 1}], "no 'x'"),
        ('optim_wrapper.type', 'OptimWrapper', "no 'loss_scale'"),
        ('optim_wrapper.optimizer.type', 'SGD', "no 'betas'"),
        ('optim_wrapper.optimizer', {'type': 'SGD'}, "no 'betas'"),
        ('param_scheduler.0.type', 'PolyLR', "no 'start_factor'"),
        ('train_dataloader.sampler.type', 'InfiniteSampler', "no 'round_up'"),
        ('default_hooks.checkpoint.type', 'IterTimerHook', "no 'out_dir'"),
    ],
)
def test_wrong_options_are_named(key, value, word):
    with pytest.raises(PETLError) as error:
        finish_config(config(), {key: value}, path=Path('x.py'))
    assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_an_option_below_the_value_of_another_is_one_line():
    options = {'deepspeed': 3, 'deepspeed.zero_optimization.stage': 2}
    with pytest.raises(PETLError) as error:
        merge(config(), options)
    assert str(error.value) == (
        'deepspeed is to be 3, and deepspeed.zero_optimization.stage leads below it; '
        'leave one out'
    )


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train_cfg.val_interval', 1),
        ('train_cfg.val_interval', 2.0),
        ('optim_wrapper.optimizer.betas', [0.9, 0.99]),
        ('optim_wrapper.loss_scale', 'dynamic'),
        ('optim_wrapper.clip_grad.max_norm', 1.0),
        ('optim_wrapper.accumulative_counts', 2),
        ('optim_wrapper.paramwise_cfg.custom_keys', {'head': {'lr_mult': 2}}),
        ('param_scheduler.0.convert_to_iter_based', True),
        ('default_hooks.checkpoint.max_keep_ckpts', 1),
        ('default_hooks.checkpoint.priority', 'LOW'),
        ('default_hooks.mine', {'type': 'EmptyCacheHook'}),
        ('train_dataloader.prefetch_factor', 2),
        ('env_cfg.cudnn_benchmark', True),
        ('custom_hooks', []),
        ('own.more', 2),
        ('load_from', 'x.pth'),
        ('optim_wrapper.optimizer', {'_delete_': True, 'type': 'SGD', 'lr': 0.1}),
    ],
)
def test_good_options_are_taken(key, value):
    found = config()
    merge(found, {key: value})
    check_values(found)


def test_a_key_is_held_to_the_class_that_the_options_choose():
    found = config()
    del found.optim_wrapper.optimizer['betas']
    merge(
        found,
        {
            'optim_wrapper.optimizer.momentum': 0.9,
            'optim_wrapper.optimizer.type': 'SGD',
        },
    )
    assert found.optim_wrapper.optimizer.momentum == 0.9


def test_text_that_spells_a_number_is_one():
    found = config()
    merge(found, {'optim_wrapper.optimizer.lr': '1e-3', 'train_cfg.max_epochs': '5'})
    assert found.optim_wrapper.optimizer.lr == 1e-3
    assert found.train_cfg.max_epochs == 5


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train_dataloader.batch_size', 0),
        ('train_dataloader.batch_size', -3),
        ('train_dataloader.batch_size', True),
        ('train_dataloader.num_workers', -1),
        ('train_cfg.max_epochs', 0),
        ('train_cfg.max_epochs', 1.5),
        ('optim_wrapper.optimizer.lr', -1),
        ('optim_wrapper.optimizer.lr', float('inf')),
        ('optim_wrapper.optimizer.type', 'Adamm'),
        ('randomness.seed', -1),
        ('randomness.seed', 2**32),
        ('train_dataloader.batch_size', None),
        ('train_dataloader.num_workers', 100_000),
        ('train_cfg.max_epochs', None),
        ('train_cfg', 7),
        ('train_dataloader', [1]),
        ('optim_wrapper', 'x'),
        ('default_hooks', 7),
        ('custom_hooks', 7),
        ('randomness', 7),
    ],
)
def test_values_that_nothing_runs_with_are_named(key, value):
    def run() -> None:
        found = config()
        merge(found, {key: value})
        check_values(found)

    with pytest.raises(PETLError, match=key):
        run()


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        ('x = (', 'SyntaxError'),
        ("a = 1\nraise ValueError('boo')", 'line 2: ValueError: boo'),
        ('1 / 0', 'ZeroDivisionError'),
    ],
)
def test_a_config_that_breaks_is_one_line(tmp_path, text, word):
    path = tmp_path / 'broken_one.py'
    path.write_text(text)
    with pytest.raises(PETLError) as error:
        read_config(path)
    assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_an_empty_config_is_read_and_holds_nothing(tmp_path):
    path = tmp_path / 'empty_one.py'
    path.touch()
    assert not finish_config(read_config(path), path=path).get('model')


def parsed(*pairs: str) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


def test_pairs_are_read_as_upstream_does_and_as_python_writes_them():
    pairs = ['a=1', 'b=[a,(1,2.5)]', 'c=1,x', 'd=(1)', 'e=None', 'f=x=y', 'g={x}', 'h=']
    upstream = argparse.ArgumentParser()
    upstream.add_argument('--cfg-options', nargs='+', action=TheirAction)
    theirs = upstream.parse_args(['--cfg-options', *pairs]).cfg_options
    assert parsed(*pairs) == {**theirs, 'g': '{x}'}
    found = parsed(
        "s=[{'type': 'MultiStepLR', 'milestones': [3, 6]}]", "m={'type':'A'}"
    )
    assert found['s'] == [{'type': 'MultiStepLR', 'milestones': [3, 6]}]
    assert found['m'] == {'type': 'A'}
    assert parsed('filename_tmpl=e_{}.pth') == {'filename_tmpl': 'e_{}.pth'}


@pytest.mark.parametrize(
    'given', ['a', '=1', 'a=[1,2', 'a=[{b:1},2]', "a={'b': print(), 'c': 1}"]
)
def test_pairs_that_cannot_be_read_are_one_line(given, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(given)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert ': error: --cfg-options' in last


def test_a_list_in_a_list_of_methods_and_one_of_imports_are_refused():
    for method in ([[{'type': 'LoRA'}]], 7):
        with pytest.raises(PETLError, match='a method is a name or'):
            finish_config(
                read_config('configs/mini/digits.py'),
                {'model.backbone.method': method},
            )
    found = config()
    merge(found, {'custom_imports': ['x']})
    with pytest.raises(PETLError, match='custom_imports needs dict'):
        check_values(found)


def test_numbers_in_lists_are_numbers():
    made = config()
    merge(made, {'optim_wrapper.optimizer.betas': ['0.8', '9e-1']})
    assert made.optim_wrapper.optimizer.betas == [0.8, 0.9]
    merge(made, {'default_hooks.checkpoint.save_best': 'accuracy/top1'})
    merge(made, {'env_cfg.mp_cfg': {'mp_start_method': 'spawn'}})
