"""The time of a step is that of all passes behind it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict

from mmpetl.benchmark.collect import _step_seconds
from mmpetl.engine.hooks import efficiency


@pytest.mark.parametrize(
    ('passes', 'wanted'), [(1, [1.0, 2.0, 4.0, 8.0, 16.0]), (2, [3.0, 12.0])]
)
def test_passes_of_a_step_count_together(passes, wanted, monkeypatch) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    wrapper = OptimWrapper(optimizer, accumulative_counts=passes)
    wrapper.initialize_count_status(torch.nn.Identity(), 0, 100)
    runner, hook = SimpleNamespace(optim_wrapper=wrapper), efficiency.EfficiencyHook()
    now = [0.0]
    monkeypatch.setattr(efficiency.time, 'perf_counter', lambda: now[0])
    for i in range(5):
        hook.before_train_iter(runner, i)
        wrapper.update_params((weight**2).sum())
        now[0] += 2.0**i
        hook.after_train_iter(runner, i)
        now[0] += 100.0  # the data of the next
    assert hook.steps == wanted


def test_each_pass_of_several_optimizers_counts() -> None:
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1))
    assert efficiency._has_stepped(OptimWrapperDict(a=wrapper))
    assert efficiency._has_stepped(object())


def test_a_log_counts_passes() -> None:
    lines = [{'loss': 1.0, 'step': 10 * i, 't': 5.0 * i} for i in range(4)]
    assert _step_seconds(lines) == 0.5
    assert _step_seconds(lines, passes=4) == 2.0
