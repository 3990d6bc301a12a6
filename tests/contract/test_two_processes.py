"""Two processes stay in step: the same tensors after steps on different data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Tuned, base, images
from torch import nn
from two_processes import in_two_processes

from mmpetl.core import (
    FAMILIES,
    base_changes,
    build_method,
    delta_state,
    inject,
    plan_steps,
)

METHODS = {
    'baseline': {'type': 'PartialK', 'num_blocks': 1},
    'specification': {'type': 'BitFit'},
    'adapter': {'type': 'Adapter', 'style': 'houlsby', 'hidden_dims': 4},
    # Dropout would draw another mask in each process.
    'prompt': {'type': 'VPTDeep', 'drop_rate': 0.0},
    'prefix': {'type': 'Prefix', 'num_tokens': 3},
    'side': {'type': 'LST', 'reduction': 4},
    'reparameterisation': {'type': 'SSF'},
    'multi_task': {'type': 'VMTAdapter', 'reduction': 4},
}
"""One of each family."""

STEPPED = {'type': 'AdaLoRA', 'rank': 3, 'target_rank': 1, 'every': 1}
"""One that does something at each step."""

CONFIGS = {**METHODS, 'stepped': STEPPED}


def _model(config: dict, x: torch.Tensor) -> Tuned:
    backbone = base('timm_vit')
    torch.manual_seed(4)
    model = Tuned(inject(backbone, config), x).train()
    plan_steps(model, 2)
    return model


def _train(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Two steps; the names of what trains and got no gradient in one of them."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    without = []
    for _ in range(2):
        optimizer.zero_grad()
        sum((y**2).mean() for y in model(x)).backward()
        without += [n for n, p in params.items() if p.grad is None]
        optimizer.step()
    return without


def _work(rank: int, folder: Path) -> None:
    """One of two processes; what each method ends with goes to disk."""
    x = images('timm_vit', batch=4)
    for family, config in CONFIGS.items():
        model = _model(config, x)
        # A parameter that takes no part makes the second pass raise.
        wrapped = nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=False
        )
        without = _train(wrapped, x[2 * rank : 2 * rank + 2])
        result = {
            'without': without,
            'changed': base_changes(model),
            'state': model.state_dict(),
            'delta': delta_state(model),
        }
        torch.save(result, folder / f'{family}-{rank}.pth')


@pytest.fixture(scope='module')
def ends(tmp_path_factory) -> Path:
    """What two processes end with: one pair for all."""
    folder = tmp_path_factory.mktemp('ends')
    in_two_processes(_work, folder)
    return folder


def test_each_family_is_met() -> None:
    assert tuple(METHODS) == FAMILIES
    assert all(build_method(c).family == family for family, c in METHODS.items())


@pytest.mark.parametrize('family', CONFIGS)
def test_two_processes_end_with_the_tensors_of_one(family: str, ends: Path) -> None:
    first, second = (
        torch.load(ends / f'{family}-{rank}.pth', weights_only=True)
        for rank in range(2)
    )
    for result in (first, second):
        assert result['without'] == []
        assert result['changed'] == []
    assert first['state'].keys() == second['state'].keys()
    for key, value in first['state'].items():
        assert torch.equal(value, second['state'][key]), key
    # One process that sees both halves of the data.
    x = images('timm_vit', batch=4)
    alone = _model(CONFIGS[family], x)
    assert _train(alone, x) == []
    for key, value in delta_state(alone).items():
        torch.testing.assert_close(first['delta'][key], value, rtol=1e-4, atol=1e-6)
