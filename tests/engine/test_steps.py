"""What methods do at every step of an optimizer, in Runners that know nothing of it."""

from __future__ import annotations

import copy

import pytest
import torch
from pictures import BACKBONE

import mmpetl
from mmpetl.core import injections, plan_steps

METHOD = {'type': 'AdaLoRA', 'rank': 3, 'target_rank': 1, 'every': 1}


def count_of(model):
    (_, module, _) = injections(model)[0]
    return module.get_submodule('petl.shared.0')


def left(model) -> int:
    (_, _, record) = injections(model)[0]
    return sum(record.slots['0'].method.ranks(model).values())


@pytest.mark.parametrize('accumulate', [1, 3])
def test_a_stock_runner_around_petl_model_plans_and_prunes(make_runner, accumulate):
    """MMEngine's own hooks, constructor and loops, and one line of ours: the model."""
    model = {
        'type': 'mmpetl.PETLModel',
        'of': 'ImageClassifier',
        'petl': METHOD,
        'backbone': copy.deepcopy(BACKBONE),
        'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 32},
        'data_preprocessor': {'mean': [127.5] * 3, 'std': [127.5] * 3},
    }
    optimizer = {'type': 'AdamW', 'lr': 1e-2}
    runner = make_runner(
        model=model,
        optim_wrapper={'optimizer': optimizer, 'accumulative_counts': accumulate},
        default_hooks={'checkpoint': None},
        custom_hooks=[],
    )
    runner.train()
    count = count_of(runner.model)
    steps = -(-20 // accumulate)
    assert (int(count.step), int(count.total)) == (steps, steps)
    assert left(runner.model) == 12


def test_a_skipped_step_does_not_count_and_a_copy_counts_for_itself() -> None:
    model = mmpetl.inject(torch.nn.Sequential(torch.nn.Linear(8, 8)), METHOD).train()
    plan_steps(model, 10)
    twin = copy.deepcopy(model).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    for spoil in (1.0, float('inf')):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 8)).sum() * spoil).backward()
        scaler.step(optimizer)
        scaler.update()
    assert int(count_of(model).step) == 1
    assert int(count_of(twin).step) == 0
    assert count_of(model).total == 10
