"""A killed run ends as one that was not, wherever it was killed and saved."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from killing import KillAt, Killed, in_a_child
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS

from mmpetl.core import PETLError
from mmpetl.engine import TuningRunner


@DATA_SAMPLERS.register_module(name='DrawnSampler')
class DrawnSampler(torch.utils.data.RandomSampler):
    """Draws its order from torch's generator, as torch's own sampler does."""

    def __init__(self, dataset, seed=None) -> None:
        super().__init__(dataset)


def settings(accumulate=1, every=3, by_epoch=True, workers=0, save_best=None, **other):
    """An epoch has 5 steps, a run 20; checkpoints are written every few steps."""
    loader = {
        'batch_size': 8,
        'num_workers': workers,
        'persistent_workers': workers > 0,
        'collate_fn': {'type': 'default_collate'},
        'sampler': {
            'type': 'DefaultSampler' if by_epoch else 'InfiniteSampler',
            'shuffle': True,
        },
        'dataset': {'type': 'mmengine.RandomPictures'},
    }
    schedule = [
        {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 7},
        {'type': 'CosineAnnealingLR', 'T_max': 4, 'by_epoch': True},
    ]
    return {
        'by_epoch': by_epoch,
        'train_dataloader': loader,
        'param_scheduler': schedule if by_epoch else schedule[:1],
        'optim_wrapper': {
            'type': 'OptimWrapper',
            'optimizer': {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.05},
            'constructor': 'mmpetl.OwnerOptimWrapperConstructor',
            'accumulative_counts': accumulate,
            'clip_grad': {'max_norm': 1.0},
        },
        'default_hooks': {
            'checkpoint': {
                'type': 'mmpetl.DeltaCheckpointHook',
                'interval': every,
                'by_epoch': False,
                'max_keep_ckpts': 2,
                'save_best': save_best,
            }
        },
        **other,
    }


def tensors_of(item, path='') -> dict[str, torch.Tensor]:
    """Every tensor and number in nested data, by its path."""
    if isinstance(item, dict):
        pairs = item.items()
    elif isinstance(item, list | tuple):
        pairs = enumerate(item)
    else:
        return (
            {path: torch.as_tensor(item)}
            if isinstance(item, int | float | torch.Tensor)
            else {}
        )
    return {k: v for key, x in pairs for k, v in tensors_of(x, f'{path}/{key}').items()}


def assert_equal_ends(one, other) -> None:
    """Weights, optimizer, schedules and logged scalars are equal bit for bit."""
    logs = []
    for runner in (one, other):
        logs.append(
            {
                key: buffer.data[0].tolist()
                for key, buffer in runner.message_hub.log_scalars.items()
                if 'time' not in key
            }
        )
    assert logs[0] == logs[1]
    mine, theirs = (
        tensors_of(
            {
                'model': dict(runner.model.state_dict()),
                'optimizer': runner.optim_wrapper.state_dict(),
                'schedules': [s.state_dict() for s in runner.param_schedulers],
            }
        )
        for runner in (one, other)
    )
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


class Steps(Hook):
    """What the loop says of every step."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((runner.epoch, runner.iter, batch_idx))


def kill_and_resume(make_runner, kill_at, **overrides):
    """An uninterrupted run and one that was killed and resumed, both at their end."""
    whole = make_runner('whole', hooks=[Steps()], **overrides)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillAt(kill_at)], **overrides).train()
    resumed = make_runner('killed', resume=True, hooks=[Steps()], **overrides)
    resumed.train()
    assert resumed.iter == 20
    (steps,) = (h.seen for h in whole.hooks if isinstance(h, Steps))
    (later,) = (h.seen for h in resumed.hooks if isinstance(h, Steps))
    assert later == steps[20 - len(later) :]
    # Or the test would hold a run that was begun anew.
    assert len(later) == 20 - (kill_at - 1) // 3 * 3
    assert_equal_ends(whole, resumed)


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('kill_at', [4, 8, 13, 16])
def test_a_run_goes_on_inside_an_epoch(make_runner, kill_at, accumulate):
    """Saved at steps 3, 6, 12 and 15, of which the last ends an epoch."""
    kill_and_resume(make_runner, kill_at, **settings(accumulate))


@pytest.mark.parametrize('kill_at', [8, 13])
def test_data_workers_go_on_inside_an_epoch(make_runner, kill_at):
    kill_and_resume(make_runner, kill_at, **settings(2, workers=2))


@pytest.mark.parametrize('kill_at', [8, 13])
def test_gradients_that_wait_for_a_step_are_kept_in_iteration_loops(
    make_runner, kill_at
):
    """Saved at steps 6 and 12, in the middle of the second and the fourth step of
    the optimizer."""
    kill_and_resume(make_runner, kill_at, **settings(4, by_epoch=False))


def test_an_order_that_is_drawn_goes_on_inside_an_epoch(make_runner):
    changes = settings()
    changes['train_dataloader']['sampler'] = {'type': 'mmengine.DrawnSampler'}
    kill_and_resume(make_runner, 8, **changes)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_persistent_workers_draw_alike_after_a_kill_between_epochs(
    make_runner, accumulate
):
    """Five steps an epoch and two a gradient: one gradient waits at its end."""
    changes = settings(accumulate, workers=2)
    changes['default_hooks']['checkpoint'] |= {'by_epoch': True, 'interval': 1}
    whole = make_runner('whole', **changes)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillAt(13)], **changes).train()
    resumed = make_runner('killed', resume=True, **changes)
    resumed.train()
    assert_equal_ends(whole, resumed)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_what_a_method_does_at_every_step_goes_on(make_runner, accumulate):
    """Saved while directions are pruned, in the middle of a step where two passes make
    one."""
    method = {'type': 'AdaLoRA', 'rank': 3, 'target_rank': 1, 'every': 2}
    changes = settings(accumulate, custom_hooks=[{'type': 'mmpetl.TrainableEMAHook'}])
    kill_and_resume(make_runner, 11, method=method, **changes)


def test_a_run_killed_twice_in_an_epoch_ends_the_same(make_runner):
    changes = settings(2, every=1, custom_hooks=[{'type': 'mmpetl.TrainableEMAHook'}])
    whole = make_runner('whole', **changes)
    whole.train()
    for kill_at in (7, 9):
        resume = {'resume': kill_at > 7}
        with pytest.raises(Killed):
            make_runner('killed', hooks=[KillAt(kill_at)], **resume, **changes).train()
    resumed = make_runner('killed', resume=True, **changes)
    resumed.train()
    assert_equal_ends(whole, resumed)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='kill -9 needs a child process')
def test_a_run_survives_kill_9_inside_an_epoch(make_runner):
    changes = settings(2, every=1)
    killed = make_runner('killed', hooks=[KillAt(9, signal.SIGKILL)], **changes)
    assert in_a_child(killed.train) == -signal.SIGKILL
    whole = make_runner('whole', **changes)
    whole.train()
    resumed = make_runner('killed', resume=True, **changes)
    resumed.train()
    assert_equal_ends(whole, resumed)


@pytest.mark.parametrize('named', [False, True], ids=['newest', 'named'])
@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_a_run_of_upstreams_tool_goes_on_with_the_seed_that_it_drew(
    make_runner, tmp_path, by_epoch, named
):
    """That tool builds the runner of the config and compares nothing before."""
    changes = settings(by_epoch=by_epoch) | {'of': TuningRunner}
    drawn = {'randomness': {'seed': None, 'deterministic': False}}
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillAt(8)], **changes, **drawn).train()
    again = {'resume': True}
    if named:
        again['load_from'] = str(tmp_path / 'killed' / 'iter_6.pth')
    resumed = make_runner('killed', **again, **changes, **drawn)
    resumed.train()
    seed = resumed.cfg.randomness.seed
    assert seed is not None
    whole = make_runner('whole', **changes, randomness={'seed': seed})
    whole.train()
    assert_equal_ends(whole, resumed)


def test_a_seed_that_is_said_is_not_replaced(make_runner):
    changes = settings() | {'of': TuningRunner}
    with pytest.raises(Killed):
        make_runner('run', hooks=[KillAt(8)], **changes).train()
    for resumes in (True, False):
        other = {'resume': resumes, 'randomness': {'seed': 1}}
        assert make_runner('run', **other, **changes).seed == 1


def test_a_run_that_draws_another_seed_cannot_go_on(make_runner):
    changes = settings() | {'randomness': {'seed': None}}
    killed = make_runner('run', hooks=[KillAt(8)], **changes)
    with pytest.raises(Killed):
        killed.train()
    resumed = make_runner('run', resume=True, **changes)
    with pytest.raises(PETLError, match=f'randomness.seed={killed.seed}$') as info:
        resumed.train()
    assert f'this one has drawn {resumed.seed}, which' in str(info.value)
    assert '\n' not in str(info.value)


def test_between_epochs_another_seed_is_said(make_runner, monkeypatch):
    changes = settings() | {'randomness': {'seed': None}}
    changes['default_hooks']['checkpoint'] |= {'by_epoch': True, 'interval': 1}
    killed = make_runner('run', hooks=[KillAt(8)], **changes)
    with pytest.raises(Killed):
        killed.train()
    # The base is drawn here, by the same seed, and is a file elsewhere.
    changes['randomness'] = {'seed': killed.seed}
    resumed, said = make_runner('run', resume=True, **changes), []
    monkeypatch.setattr(resumed, '_randomness_cfg', {'seed': None})
    monkeypatch.setattr(resumed, '_seed', killed.seed + 1)
    monkeypatch.setattr(resumed.logger, 'warning', said.append)
    resumed.train()
    assert resumed.iter == 20
    (line,) = [line for line in said if 'has drawn' in line]
    assert line.endswith(f'set randomness.seed={killed.seed}')


def test_other_data_cannot_take_up_an_epoch(make_runner):
    with pytest.raises(Killed):
        make_runner('run', hooks=[KillAt(8)], **settings()).train()
    changes = settings()
    changes['train_dataloader']['batch_size'] = 40
    with pytest.raises(
        PETLError, match=r'meta\.iter is 6, and this run ends at 4'
    ) as info:
        make_runner('run', resume=True, **changes).train()
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_other_processes_cannot_take_up_an_epoch(make_runner, monkeypatch, accumulate):
    with pytest.raises(Killed):
        make_runner('run', hooks=[KillAt(8)], **settings(accumulate)).train()
    resumed = make_runner('run', resume=True, **settings(accumulate))
    monkeypatch.setattr(type(resumed), 'world_size', 2)
    with pytest.raises(PETLError, match='is of 1 processes, these are 2: it was writ'):
        resumed.train()
