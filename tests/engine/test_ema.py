"""The average of what trains: its arithmetic, what is evaluated, what is saved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmpetl.core import PETLError
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
    hook.before_train(runner)
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
    hook.before_train(runner)
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
    again.before_train(resumed)
    step(runner, hook, 2.0)
    step(resumed, again, 2.0)
    for side, that in ((runner, hook), (resumed, again)):
        that.before_val_epoch(side)
    assert torch.equal(model[1].weight, other[1].weight)


def test_only_a_resumed_run_takes_the_average_apart():
    runner, _ = make()
    runner._resume = False
    state = {'1.weight': torch.ones(2, 2)}
    checkpoint = {'state_dict': dict(state), TrainableEMAHook.KEY: dict(state)}
    TrainableEMAHook().after_load_checkpoint(runner, checkpoint)
    assert torch.equal(checkpoint['state_dict']['1.weight'], state['1.weight'])


def test_decay_is_checked():
    with pytest.raises(PETLError, match='0 < decay < 1'):
        TrainableEMAHook(decay=1.0)
