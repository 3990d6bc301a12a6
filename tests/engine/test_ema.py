"""The average of what trains: its arithmetic, what is evaluated, what is saved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from killing import KillAt, Killed
from mmengine.hooks import EMAHook, Hook
from torch import nn

from mmpetl.core import (
    PETLError,
    delta_state,
    injections,
    tensor_digests,
)
from mmpetl.engine import TrainableEMAHook


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    return SimpleNamespace(model=model, _resume=True), model


def step(runner, hook, by):
    with torch.no_grad():
        runner.model[1].weight.add_(by)
    hook.after_train_iter(runner, 0)


def test_average_follows_its_formula_and_is_what_is_evaluated():
    runner, model = make()
    frozen = model[0].weight.clone()
    hook = TrainableEMAHook(decay=0.75)
    hook.before_train_epoch(runner)
    start = model[1].weight.detach().clone()
    step(runner, hook, 1.0)
    step(runner, hook, 2.0)
    own = start + 3.0
    average = 0.75 * (0.75 * start + 0.25 * (start + 1.0)) + 0.25 * own
    hook.before_val_epoch(runner)
    assert torch.allclose(model[1].weight, average)
    hook.after_val_epoch(runner)
    assert torch.allclose(model[1].weight, own)
    hook.after_train(runner)
    assert torch.allclose(model[1].weight, average)
    hook.before_test_epoch(runner)
    hook.after_test_epoch(runner)
    assert torch.allclose(model[1].weight, average)
    assert torch.equal(model[0].weight, frozen)


@pytest.mark.parametrize('evaluating', [False, True])
def test_checkpoint_holds_the_average_and_training_resumes_from_own_values(evaluating):
    runner, model = make()
    hook = TrainableEMAHook(decay=0.5)
    hook.before_train_epoch(runner)
    step(runner, hook, 1.0)
    own = model[1].weight.detach().clone()
    average = own - 0.5
    if evaluating:  # a best checkpoint is saved while the average is in place
        hook.before_val_epoch(runner)
    checkpoint = {'state_dict': {k: v.clone() for k, v in model.state_dict().items()}}
    hook.before_save_checkpoint(runner, checkpoint)
    if evaluating:
        hook.after_val_epoch(runner)
    assert torch.allclose(checkpoint['state_dict']['1.weight'], average)

    resumed, other = make()
    again = TrainableEMAHook(decay=0.5)
    again.after_load_checkpoint(resumed, checkpoint)
    other.load_state_dict(checkpoint['state_dict'])
    assert torch.equal(other[1].weight, own)
    again.before_train_epoch(resumed)
    step(runner, hook, 2.0)
    step(resumed, again, 2.0)
    for side, that in ((runner, hook), (resumed, again)):
        that.before_val_epoch(side)
    assert torch.equal(model[1].weight, other[1].weight)


def test_the_average_starts_from_what_a_data_pass_leaves(make_runner):
    """LST's reduction by Fisher information draws values that train."""
    ends = []
    for folder, decay in (('slow', 1 - 1e-9), ('none', None)):
        hooks = [{'type': 'mmpetl.CalibrationHook'}]
        if decay:
            hooks.append({'type': 'mmpetl.TrainableEMAHook', 'decay': decay})
        runner = make_runner(
            folder,
            method={'type': 'LST', 'reduction': 4, 'init': 'fisher'},
            train_cfg={'by_epoch': True, 'max_epochs': 1},
            custom_hooks=hooks,
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 1e-9}},
        )
        runner.train()
        ends.append(runner.model.state_dict())
    for key, value in ends[0].items():
        assert torch.allclose(value, ends[1][key], atol=1e-6), key


def test_only_a_resumed_run_takes_the_average_apart():
    runner, _ = make()
    runner._resume = False
    state = {'1.weight': torch.ones(2, 2)}
    checkpoint = {'state_dict': dict(state), TrainableEMAHook.KEY: dict(state)}
    TrainableEMAHook().after_load_checkpoint(runner, checkpoint)
    assert torch.equal(checkpoint['state_dict']['1.weight'], state['1.weight'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda own, state: [1], 'holds no tensors'),
        (lambda own, state: {'1.weight': 'x'}, 'holds no tensors'),
        (lambda own, state: {**own, '2.weight': own['1.bias']}, 'the model has not'),
        (lambda own, state: state.pop('1.bias') is None or own, 'state_dict has not'),
        (lambda own, state: {**own, '1.bias': own['1.bias'][:1]}, 'has shape'),
        (lambda own, state: {**own, '1.bias': own['1.bias'].long()}, 'int64'),
        (lambda own, state: {**own, '1.bias': own['1.bias'] / 0}, 'not finite'),
        (lambda own, state: state['1.bias'].div_(0) is None or own, 'the average'),
    ],
)
def test_what_a_checkpoint_says_of_the_average_is_checked(change, message):
    runner, model = make()
    runner._load_from = 'a.pth'
    state = {k: v.clone() + 1 for k, v in model.state_dict().items()}
    own = {k: state[k] + 1 for k in ('1.weight', '1.bias')}
    content = {'state_dict': state, TrainableEMAHook.KEY: change(own, state)}
    with pytest.raises(PETLError, match=message) as info:
        TrainableEMAHook().after_load_checkpoint(runner, content)
    assert str(info.value).startswith('a.pth: own_values')


def test_an_average_of_other_parameters_is_refused():
    runner, model = make()
    runner._load_from = 'a.pth'
    state = {k: v.clone() for k, v in model.state_dict().items()}
    own = {'1.weight': state['1.weight'].clone()}
    hook = TrainableEMAHook()
    hook.after_load_checkpoint(runner, {'state_dict': state, TrainableEMAHook.KEY: own})
    with pytest.raises(PETLError, match=r'lacks 1\.bias'):
        hook.before_train_epoch(runner)


def test_decay_is_checked():
    with pytest.raises(PETLError, match='0 < decay < 1'):
        TrainableEMAHook(decay=1.0)


# ------------------------------------------------------- MMEngine's hook of that name


UPSTREAM = {
    'mmengine': {'type': 'mmengine.EMAHook', 'momentum': 0.3},
    'buffers': {'type': 'mmengine.EMAHook', 'momentum': 0.3, 'update_buffers': True},
    'annealing': {'type': 'mmengine.EMAHook', 'ema_type': 'MomentumAnnealingEMA'},
    'swa': {
        'type': 'mmengine.EMAHook',
        'ema_type': 'StochasticWeightAverage',
        'begin_epoch': 2,
    },
    'mmpretrain': {'type': 'mmpretrain.EMAHook', 'momentum': 0.3},
}


class Tested(Hook):
    """The weights that a test sees."""

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.state = {k: v.clone() for k, v in runner.model.state_dict().items()}


def average_of(runner) -> dict[str, torch.Tensor]:
    (hook,) = (h for h in runner.hooks if isinstance(h, EMAHook))
    return dict(hook.ema_model.state_dict())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


@pytest.mark.parametrize('name', UPSTREAM)
def test_upstreams_average_is_saved_small_resumed_and_tested(
    make_runner, tmp_path, name
):
    hooks = {'custom_hooks': [UPSTREAM[name], {'type': 'mmpetl.BaseGuardHook'}]}
    whole = make_runner('whole', **hooks)
    whole.train()
    with pytest.raises(Killed):
        make_runner('killed', hooks=[KillAt(13)], **hooks).train()
    resumed = make_runner('killed', resume=True, **hooks)
    resumed.train()
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    average = average_of(whole)
    assert same(average, average_of(resumed))

    file = tmp_path / 'whole' / 'epoch_4.pth'
    content = torch.load(file, weights_only=True)
    delta = set(delta_state(whole.model))
    assert set(content['state_dict']) == delta
    assert {k.removeprefix('module.') for k in content['ema_state_dict']} == {
        *delta,
        'steps',
    }
    whole.model.load_state_dict(
        {k.removeprefix('module.'): v for k, v in average.items() if k != 'steps'}
    )
    for folder, more in (('with', hooks), ('without', {'custom_hooks': []})):
        look = Tested()
        config = whole.cfg.val_dataloader
        tester = make_runner(
            folder,
            load_from=str(file),
            hooks=[look],
            test_dataloader=config,
            test_cfg={},
            test_evaluator={'type': 'Accuracy'},
            **more,
        )
        tester.test()
        assert same(look.state, dict(whole.model.state_dict())), folder


def test_upstreams_average_leaves_the_base_alone(make_runner):
    """The average of -0 and -0 by interpolation is 0: a number that was averaged shows.

    A resumed run takes the base of its average from the model, where it is -0.
    """
    runner = make_runner(custom_hooks=[UPSTREAM['mmengine']])
    runner.register_hook(Signs())
    runner.train()
    average = average_of(runner)[f'module.{Signs.key}']
    assert torch.signbit(average[0]).all()


class Signs(Hook):
    """Negative zeros in the base, from before anything looks at it."""

    priority = 'HIGHEST'
    key = 'backbone.layers.0.attn.proj.weight'

    def before_run(self, runner):
        runner.model.get_parameter(self.key).data[0] = -0.0
        ((_, module, record),) = injections(runner.model)
        name = self.key.removeprefix('backbone.')
        digest = tensor_digests({name: module.get_parameter(name)})
        record.digests.update(digest)
