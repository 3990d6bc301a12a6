"""A frozen base that two processes share computes what a whole one does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from mmengine.hooks import EMAHook
from tiny import base, images, outputs
from torch import nn
from two_processes import MEETING_THE_BASE, in_two_processes

from mmpetl.core import PETLError, base_changes, delta_state, eject, fold, inject
from mmpetl.engine.base_watch import BaseWatch
from mmpetl.engine.hooks import ShardBaseHook
from mmpetl.engine.hooks.shard_base import check_even
from mmpetl.engine.sharding import shard_base

READERS = {
    **MEETING_THE_BASE,
    'is beside the trunk': {'type': 'LST', 'reduction': 4},
}
"""Methods on one trunk, by what of the base they meet."""


def _cases(which: str) -> Iterator[tuple[str, str, Any]]:
    """Name, trunk and method of what is compared: of a trunk one that folds."""
    if which == 'few':
        for name, config in READERS.items():
            yield name, 'timm_vit', config
    for stem in tiny.hosts() if which == 'few' else tiny.trunks():
        yield stem, stem, tiny.folding(stem).build()


def _trained(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The delta after two steps, and the outputs that it then gives."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        torch.manual_seed(1)
        sum((y**2).mean() for y in outputs(model, x)).backward()
        optimizer.step()
    with torch.no_grad():
        ys = outputs(model.eval(), x)
    return {**delta_state(model), **{f'out {i}': y for i, y in enumerate(ys)}}


def _refusal(act: Callable[[nn.Module], object], model: nn.Module) -> str:
    try:
        act(model)
    except PETLError as error:
        return str(error)
    return 'done'


def _compare(stem: str, method: Any) -> dict:
    """What a whole base and a sharded one end with."""
    torch.manual_seed(4)
    model, x = inject(base(stem), method), images(stem, batch=2)
    parts = copy.deepcopy(model)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    spared = shard_base(parts)
    sharded = {n for n, p in parts.named_parameters() if hasattr(p, 'to_local')}
    found = {
        'whole': _trained(model, x),
        'parts': _trained(parts, x),
        'changed': base_changes(parts),
        'spared': spared / held,
        'trains': [n for n in sharded if parts.get_parameter(n).requires_grad],
        'again': _refusal(shard_base, parts),
        'changes': [
            _refusal(act, parts)
            for act in (fold, eject, lambda m: inject(m, 'BitFit', slot='b'))
        ],
    }
    watch = BaseWatch(parts)
    watch.check()
    with torch.no_grad():
        shard = parts.get_parameter(sorted(sharded)[0]).to_local()
        if len(shard):
            shard.add_(1)
    if len(shard):
        found['written'] = len(base_changes(parts))
        found['watched'] = _refusal(lambda m: watch.check(), parts)
    return found


def _work(rank: int, folder: Path, which: str) -> None:
    """One of two processes; what each case ends with goes to disk."""
    for name, stem, method in _cases(which):
        torch.save(_compare(stem, method), folder / f'{name}-{rank}.pth')


def _ends(folder: Path, which: str) -> Path:
    """Two processes for all cases."""
    in_two_processes(_work, folder, which)
    return folder


@pytest.fixture(scope='module')
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ends(tmp_path_factory.mktemp('ends'), 'few')


@pytest.fixture(scope='module')
def ends_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ends(tmp_path_factory.mktemp('ends'), 'all')


def _check(folder: Path, name: str) -> None:
    for rank in range(2):
        found = torch.load(folder / f'{name}-{rank}.pth', weights_only=True)
        assert found['whole'].keys() == found['parts'].keys()
        for key, value in found['whole'].items():
            assert torch.equal(found['parts'][key], value), key
        assert found['changed'] == []
        assert found['trains'] == []
        assert found['spared'] > 0.1
        assert 'sharded already' in found['again']
        for said in found['changes']:
            assert 'is sharded over processes: inject and eject before' in said
        # Of a tensor with one row the second process has none.
        assert rank == 1 or 'written' in found
        if 'written' in found:
            assert found['written'] == 1
            assert 'of the frozen base differ' in found['watched']


@pytest.mark.parametrize('name', [*READERS, *tiny.hosts()])
def test_a_sharded_base_gives_the_same_numbers(name: str, ends: Path) -> None:
    _check(ends, name)


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.trunks())
def test_every_trunk_is_sharded(name: str, ends_everywhere: Path) -> None:
    _check(ends_everywhere, name)


def test_what_cannot_be_sharded_is_told() -> None:
    with pytest.raises(PETLError, match='holds no method'):
        shard_base(base('timm_vit'))
    with pytest.raises(PETLError, match='this one has one; start several'):
        shard_base(inject(base('timm_vit'), 'BitFit'))
    runner = SimpleNamespace(hooks=[EMAHook()])
    with pytest.raises(PETLError, match=r'mmpetl\.TrainableEMAHook'):
        ShardBaseHook().before_run(runner)


@pytest.mark.parametrize(
    ('samples', 'up', 'even'), [(5, False, False), (6, False, True), (5, True, True)]
)
def test_processes_have_equally_many_batches(
    samples: int, up: bool, even: bool
) -> None:
    sampler = SimpleNamespace(world_size=2, round_up=up)
    loader = SimpleNamespace(dataset=range(samples), sampler=sampler)
    if even:
        check_even('val', loader)
    else:
        with pytest.raises(PETLError, match='do not fall evenly to 2 processes'):
            check_even('val', loader)
