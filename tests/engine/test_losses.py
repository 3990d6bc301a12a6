"""Losses of methods in runs: added before scaling, logged, the same after a kill."""

from __future__ import annotations

import copy
import pickle

import pytest
import tiny
import torch
from killing import KillAt, Killed
from mmengine.optim import OptimWrapper

import mmpetl
from mmpetl.core import PETLError, collect_losses

METHOD = {'type': 'DyT', 'hidden_dims': 4, 'keep_rate': 0.9, 'drop_rate': 0.0}


def weights_of(runner) -> dict[str, torch.Tensor]:
    return {k: v for k, v in runner.model.state_dict().items() if 'petl' in k}


def test_a_run_logs_the_loss_and_ends_the_same_after_a_kill(make_runner):
    whole = make_runner('whole', method=METHOD)
    whole.train()
    logged = whole.message_hub.get_scalar('train/loss_dyt_keep').data[0]
    assert len(logged) == 20
    assert logged[-1] < logged[0]
    with pytest.raises(Killed):
        make_runner('killed', method=METHOD, hooks=[KillAt(13)]).train()
    resumed = make_runner('killed', method=METHOD, resume=True)
    resumed.train()
    state, other = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(state[k], other[k]) for k in state)
    again = resumed.message_hub.get_scalar('train/loss_dyt_keep').data[0]
    assert logged.tolist() == again.tolist()


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_are_those_of_the_written_sum(accumulate, checkpointing):
    """Of two passes, also where blocks run once more in the backward pass."""
    grads = []
    passes = [torch.randn(2, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    for by_wrapper in (True, False):
        torch.manual_seed(1)
        model = mmpetl.inject(tiny.base('mmpretrain_vit', torch.float64), METHOD)
        model.train()
        for block in model.layers:
            block.with_cp = checkpointing and by_wrapper
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=0.0)
        wrapper = OptimWrapper(optimizer, accumulative_counts=accumulate)
        wrapper.initialize_count_status(model, 0, 2)
        wrapper.zero_grad = lambda: None
        torch.manual_seed(0)
        for x in passes:
            loss = sum((y**2).mean() for y in model(x))
            if by_wrapper:
                wrapper.update_params(loss)
            else:
                loss = loss + sum(collect_losses(model).values())
                (loss / accumulate).backward()
        assert collect_losses(model) == {}
        grads.append([p.grad for p in params])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_nobody_adds_is_told_and_copies_and_pickles_are_made():
    model = mmpetl.inject(tiny.base('timm_vit'), METHOD).train()
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert collect_losses(twin) == {}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with pytest.warns(UserWarning, match='DyT has losses of its own, and nobody has'):
        optimizer.step()
    assert list(collect_losses(model)) == ['dyt_keep']
    model.eval()(x)
    assert collect_losses(model) == {}


def test_a_loss_that_is_not_finite_stops_a_run():
    model = mmpetl.inject(tiny.base('timm_vit'), METHOD).train()
    params = [p for p in model.parameters() if p.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(params, lr=0.1))
    wrapper.initialize_count_status(model, 0, 2)
    loss = model(torch.randn(2, 3, 32, 32)).sum()
    delta = model.blocks[0].petl.get_submodule('ffn_sum.0')
    delta.add_term('keep', torch.tensor(float('nan')))
    with pytest.raises(PETLError, match='the loss dyt_keep is nan; lower the learning'):
        wrapper.update_params(loss)
