"""DeepSpeed gives what DistributedDataParallel gives, or is refused."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from mmengine import ConfigDict
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from tiny import base, images, outputs
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import MEETING_THE_BASE, in_two_processes

from mmpetl.apis.run import build_runner
from mmpetl.config.load import load_config
from mmpetl.core import PETLError, base_changes, delta_state, eject, fold, inject
from mmpetl.core.fingerprint import frozen_parameters
from mmpetl.core.injection import injections
from mmpetl.datasets.mini import make
from mmpetl.engine import SPTLoop, zero
from mmpetl.engine.base_watch import BaseWatch
from mmpetl.engine.best import read_best
from mmpetl.engine.hooks import (
    BaseGuardHook,
    DeepSpeedHook,
    DeltaCheckpointHook,
    TrainableEMAHook,
)
from mmpetl.engine.zero import (
    ZeroModel,
    check_runner,
    check_trainable,
    check_zero,
    held_bytes,
    start_zero,
    zero_settings,
)

MINI = Path(__file__).resolve().parents[2] / 'configs' / 'mini'

METHODS = {
    'LoRA': {'type': 'LoRA', 'rank': 2},
    'trains biases': {'type': 'BitFit'},
    **MEETING_THE_BASE,
}
"""Methods on one trunk, by what of the base they meet."""

OPTIMIZERS = {
    'SGD': lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    'AdamW': lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1),
}


class Whole(nn.Module):
    """A backbone that gives a list, called as an image model of any package."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(3, 3)  # a second group, and no multiple of two numbers

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        ys = outputs(self.backbone, x)
        return [*ys, self.head(ys[-1].flatten()[:3])]


def _wrapped(model: nn.Module, kind: str, **more: Any) -> OptimWrapper:
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    head = [p for n, p in params.items() if n.startswith('head')]
    rest = [p for n, p in params.items() if not n.startswith('head')]
    groups = [{'params': rest, 'name': 'delta'}, {'params': head, 'name': 'head'}]
    return OptimWrapper(OPTIMIZERS[kind](groups), **more)


def _steps(
    call: Any, wrapper: OptimWrapper, x: torch.Tensor, count: int
) -> list[float]:
    losses = []
    for _ in range(count):
        torch.manual_seed(1)
        loss = sum((y**2).mean() for y in call(x))
        wrapper.update_params(loss)
        losses.append(loss.item())
    return losses


def _quiet() -> None:
    """What torchrun says by variables; DeepSpeed says less."""
    from deepspeed.utils import logger

    rank = str(torch.distributed.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK='0', WORLD_SIZE='2')
    logger.setLevel(logging.ERROR)


def _asked(stage: int) -> dict:
    # Tiny weights are below the size that is worth a gathering.
    more = {'stage3_param_persistence_threshold': 0} if stage == 3 else {}
    return {'zero_optimization': {'stage': stage, **more}}


def _compare(stem: str, method: Any, stage: int, kind: str, **more: Any) -> dict:
    """Three steps by DistributedDataParallel, by DeepSpeed, and by it with a break."""
    torch.manual_seed(4)
    model = Whole(inject(base(stem), method)).train()
    x = images(stem, batch=2) + 0.1 * torch.distributed.get_rank()
    found: dict[str, Any] = {}
    one = copy.deepcopy(model)
    wrapper = _wrapped(one, kind, **copy.deepcopy(more))
    averaged = DistributedDataParallel(one, find_unused_parameters=True)
    found['losses'] = _steps(averaged, wrapper, x, 3)
    found['whole'] = delta_state(one)
    state = wrapper.optimizer.state_dict()['state']

    parts = copy.deepcopy(model)
    wrapper = _wrapped(parts, kind, **copy.deepcopy(more))
    run, held = ZeroModel(parts), held_bytes(parts)
    found['spared'] = start_zero(run, wrapper, _asked(stage)) / held
    found['parts losses'] = _steps(run.zero.engine, wrapper, x, 2)
    broken, kept = run.zero.collect(), wrapper.optimizer.state_dict()
    found['parts losses'] += _steps(run.zero.engine, wrapper, x, 1)
    found['parts'] = delta_state(parts) | run.zero.collect()
    ours = wrapper.optimizer.state_dict()
    found['kinds'] = ours['state'].keys() == state.keys() and all(
        ours['state'][i].keys() == state[i].keys() for i in state
    )
    found['numbers'] = {
        f'{i}.{key}': torch.stack(
            [value.double().flatten(), ours['state'][i][key].double().flatten()]
        )
        for i in state
        for key, value in state[i].items()
    }
    found['names'] = [group['name'] for group in ours['param_groups']]
    found['changed'] = base_changes(parts)
    # What is gathered for a pass is dropped behind it.
    frozen = (p for p in parts.parameters() if not p.requires_grad)
    found['gathered'] = sum(p.numel() for p in frozen if stage == 3)
    if stage == 3:
        found['refused'] = [
            _refusal(act, parts.backbone)
            for act in (fold, eject, lambda m: inject(m, 'BitFit', slot='b'))
        ]
        watch = BaseWatch(parts)
        watch.check()
        (_, module, record), *_ = injections(parts)
        frozen = next(iter(frozen_parameters(module, record).values()))
        with torch.no_grad():
            frozen.ds_tensor.add_(1)
        found['watched'] = _refusal(lambda m: watch.check(), parts)
        found['by default'] = _by_default(copy.deepcopy(model), kind, x, more)

    again = copy.deepcopy(model)
    wrapper = _wrapped(again, kind, **copy.deepcopy(more))
    again.load_state_dict(broken, strict=False)
    wrapper.optimizer.load_state_dict(kept)
    run = ZeroModel(again)
    start_zero(run, wrapper, _asked(stage))
    _steps(run.zero.engine, wrapper, x, 1)
    found['again'] = delta_state(again) | run.zero.collect()
    found['diverged'] = _diverged(run.zero.engine, wrapper, x)
    return found


def _by_default(model: nn.Module, kind: str, x: torch.Tensor, more: dict) -> dict:
    """Two steps by stage 3 as it is asked for by its number; then a base that moves.

    Its weights are too small to be worth a gathering, and stay whole.
    """
    wrapper, run = _wrapped(model, kind, **copy.deepcopy(more)), ZeroModel(model)
    start_zero(run, wrapper, 3)
    losses = _steps(run.zero.engine, wrapper, x, 2)
    watch = BaseWatch(model)
    watch.check()
    (_, module, record), *_ = injections(model)
    frozen = next(iter(frozen_parameters(module, record).values()))
    with torch.no_grad():
        frozen.add_(1)
    said = _refusal(lambda m: watch.check(), model)
    return {'losses': losses, 'watched': said, 'changed': base_changes(model)}


def _diverged(call: Any, wrapper: OptimWrapper, x: torch.Tensor) -> str:
    """What a step says whose loss is a number and whose gradients are none."""
    loss = sum((y * 0).sqrt().sum() for y in call(x))
    assert loss == 0
    return _refusal(lambda m: wrapper.update_params(loss), call)


def _refusal(act: Any, model: nn.Module) -> str:
    try:
        act(model)
    except PETLError as error:
        return str(error)
    return 'done'


def _cases(which: str) -> Iterator[tuple[str, str, Any, int, str, dict]]:
    """Name, trunk, method, stage, optimizer and what else the wrapper is given."""
    if which == 'few':
        for stage in (1, 2, 3):
            for kind in OPTIMIZERS:
                method = METHODS['LoRA']
                yield f'stage {stage} {kind}', 'timm_vit', method, stage, kind, {}
        clip = {'clip_grad': {'max_norm': 0.01}}
        for stage in (2, 3):
            yield f'clipped {stage}', 'timm_vit', METHODS['LoRA'], stage, 'SGD', clip
        for name, config in METHODS.items():
            yield name, 'timm_vit', config, 3, 'SGD', {}
    for stem in tiny.hosts() if which == 'few' else tiny.trunks():
        method = tiny.folding(stem).build()
        # What acts at steps of an optimizer is refused.
        given = METHODS['LoRA'] if method.steps else method
        yield stem, stem, given, 3, 'SGD', {}


def _work(rank: int, folder: Path, which: str) -> None:
    """One of two processes; what each case ends with goes to disk."""
    _quiet()
    for name, *case in _cases(which):
        *case, more = case
        torch.save(_compare(*case, **more), folder / f'{name}-{rank}.pth')


def _ends(tmp: pytest.TempPathFactory, which: str) -> Path:
    pytest.importorskip('deepspeed')
    folder = tmp.mktemp('ends')
    in_two_processes(_work, folder, which)
    return folder


@pytest.fixture(scope='module')
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ends(tmp_path_factory, 'few')


@pytest.fixture(scope='module')
def ends_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ends(tmp_path_factory, 'all')


def _check_close(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Hold differences to the largest number of all.

    Some gradients are zero but for rounding, as that of a shift of all keys.
    """
    largest = max(float(one.abs().max()) for one, _ in pairs if one.numel())
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=0, atol=5e-6 * largest)


def _check(folder: Path, name: str, stage: int) -> None:
    for rank in range(2):
        found = torch.load(folder / f'{name}-{rank}.pth', weights_only=True)
        assert found['whole'].keys() == found['parts'].keys() == found['again'].keys()
        whole, parts = found['whole'], found['parts']
        _check_close([(whole[key], parts[key]) for key in whole])
        for key, value in parts.items():
            assert torch.equal(found['again'][key], value), key
        for one, other in zip(found['losses'], found['parts losses'], strict=True):
            assert other == pytest.approx(one, rel=1e-6)
        assert found['kinds']
        steps = [v for k, v in found['numbers'].items() if k.endswith('.step')]
        assert all(torch.equal(*pair) for pair in steps)
        for kind in {key.partition('.')[2] for key in found['numbers']} - {'step'}:
            pairs = [v for k, v in found['numbers'].items() if k.endswith(f'.{kind}')]
            _check_close([tuple(pair) for pair in pairs])
        assert 'a gradient is not finite' in found['diverged']
        assert found['names'] == ['delta', 'head']
        assert found['changed'] == []
        if stage < 3:
            assert found['spared'] == 0
            continue
        assert found['spared'] > 0.1
        assert found['gathered'] == 0
        for said in found['refused']:
            assert 'is sharded over processes: inject and eject before' in said
        assert 'of the frozen base differ' in found['watched']
        kept = found['by default']
        for one, other in zip(found['losses'], kept['losses'], strict=False):
            assert other == pytest.approx(one, rel=1e-6)
        assert 'of the frozen base differ' in kept['watched']
        assert len(kept['changed']) == 1


NAMES = {name: case[2] for name, *case in _cases('few')}


@pytest.mark.parametrize('name', NAMES)
def test_deepspeed_ends_where_data_parallel_training_does(
    name: str, ends: Path
) -> None:
    _check(ends, name, NAMES[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.trunks())
def test_every_trunk_trains_through_deepspeed(name: str, ends_everywhere: Path) -> None:
    _check(ends_everywhere, name, 3)


# ----------------------------------------------------------------------- runs

OPTIONS = {
    'model.backbone.method.type': 'LoRA',
    'train_dataloader.batch_size': 4,
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 2,
    'optim_wrapper.clip_grad': {'max_norm': 1.0},
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}


def _run(rank: int, folder: Path, name: str, options: dict, resume: str = '') -> None:
    """A whole run of the mini recipe, in one of two processes."""
    from mmpetl.apis.run import train

    _quiet()
    config = load_config(
        MINI / 'digits.py', OPTIONS | options, folder / name, protocol='published'
    )
    if resume:
        config.resume, config.load_from = True, str(folder / resume)
    runner = train(config, launcher='pytorch')
    logged = runner.message_hub.log_scalars['train/grad_norm'].data[0]
    assert len(logged) == 16
    assert (logged[-4:] > 0).all()


@pytest.mark.slow
def test_a_run_leaves_the_checkpoints_of_one_without_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('deepspeed')
    make(tmp_path / 'data', names=['vtab-1k/digits'], size='tiny')
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'data'))
    three = {'deepspeed': _asked(3)}
    in_two_processes(_run, tmp_path, 'plain', {})
    in_two_processes(_run, tmp_path, 'zero', three)
    in_two_processes(_run, tmp_path, 'again', three, 'zero/epoch_2.pth')
    in_two_processes(_run, tmp_path, 'without', {}, 'zero/epoch_2.pth')

    def read(name: str, file: str = 'epoch_4.pth') -> dict:
        return torch.load(tmp_path / name / file, weights_only=True)

    plain, ours = read('plain'), read('zero')
    assert plain.keys() == ours.keys()
    assert [*plain['state_dict']] == [*ours['state_dict']]
    assert plain['meta']['mmpetl'] == ours['meta']['mmpetl']
    one, other = plain['optimizer'], ours['optimizer']
    assert one['param_groups'] == other['param_groups']
    assert one['state'].keys() == other['state'].keys()
    for name in ('again', 'without'):
        for key, value in read(name)['state_dict'].items():
            if name == 'again':
                assert torch.equal(value, ours['state_dict'][key]), key
            torch.testing.assert_close(
                value, plain['state_dict'][key], rtol=1e-3, atol=1e-4
            )
    best = read_best(tmp_path / 'zero')
    assert [b.score for b in best] == [b.score for b in read_best(tmp_path / 'plain')]
    content = read('zero', best[0].file)
    assert [*content['state_dict']] == [*ours['state_dict']]


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ('asked', 'line'),
    [
        (4, 'which is 1, 2 or 3; got 4'),
        (True, 'is a stage of ZeRO, 1, 2 or 3, or a dict of settings, .*; got True'),
        ('ds.json', "got 'ds.json'"),
        ({}, 'needs zero_optimization.stage .*; got None'),
        ({'stage': 3}, 'needs zero_optimization.stage'),
        (
            {'zero_optimization': {'stage': 3}, 'gradient_clipping': 1.0},
            'gradient_clipping is said by optim_wrapper.clip_grad; leave it out',
        ),
        ({'zero_optimization': {'stage': 3}, 'fp16': {}}, 'in less than float32'),
        (
            {'zero_optimization': {'stage': 2}, 'step_per_print': 1},
            "takes no 'step_per_print'. Did you mean 'steps_per_print'",
        ),
        (
            {'zero_optimization': {'stage': 2, 'round_robin_gradients': True}},
            "zero_optimization takes no 'round_robin_gradients'",
        ),
        (
            {'zero_optimization': {'stage': 3, 'offload_param': {'device': 'nvme'}}},
            "offload_param on nvme is not supported.*take device='cpu'",
        ),
    ],
)
def test_settings_that_are_none_are_refused(asked: Any, line: str) -> None:
    with pytest.raises(PETLError, match=line) as error:
        zero_settings(asked)
    assert '\n' not in str(error.value)


def test_a_number_is_a_stage() -> None:
    assert zero_settings(2) == {'zero_optimization': {'stage': 2}}


@pytest.mark.parametrize(
    ('more', 'line'),
    [
        ({'runner_type': 'FlexibleRunner'}, 'runner_type is FlexibleRunner:'),
        ({'strategy': {'type': 'DeepSpeedStrategy'}}, 'strategy is given:'),
        (
            {'runner_type': 'mmpetl.TuningRunner', 'strategy': {'type': 'DDPStrategy'}},
            'strategy is given:',
        ),
    ],
)
def test_strategies_of_mmengine_are_refused(more: dict, line: str) -> None:
    with pytest.raises(PETLError, match=rf'{line} .*say deepspeed = 3'):
        check_runner(ConfigDict(more))
    with pytest.raises(PETLError, match=line):
        build_runner(ConfigDict(more))
    check_runner(ConfigDict(runner_type='mmpetl.TuningRunner'))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed, as far as checks of a config look at it."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(zero, 'version', lambda name: '0.19.8')


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_zero(ConfigDict())
    check_zero(ConfigDict(deepspeed=False))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(PETLError, match='not installed: pip install "deepspeed>=0.19"'):
        check_zero(ConfigDict(deepspeed=3))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(zero, 'version', lambda name: '0.9.1+cpu')
    with pytest.raises(PETLError, match=r'deepspeed 0\.9\.1\+cpu is installed'):
        check_zero(ConfigDict(deepspeed=3))


@pytest.mark.usefixtures('there')
@pytest.mark.parametrize(
    ('more', 'line'),
    [
        ({'shard_base': True}, 'two ways to shard a base; leave one out'),
        ({'compile': True}, 'not supported beside compile'),
        ({'offload_activations': True}, 'not supported beside offload_activations'),
        ({'cache_features': True}, 'cache_features does not run; leave one out'),
        (
            {'model_wrapper_cfg': {'type': 'MMFullyShardedDataParallel'}},
            'model_wrapper_cfg.type is MMFullyShardedDataParallel',
        ),
        (
            {'optim_wrapper': {'type': 'AmpOptimWrapper'}},
            r'is a AmpOptimWrapper; take OptimWrapper \(without --amp\)',
        ),
    ],
)
def test_what_does_not_go_beside_it_is_refused(more: dict, line: str) -> None:
    check_zero(ConfigDict(deepspeed=3), 2)
    with pytest.raises(PETLError, match='this one has one; start several'):
        check_zero(ConfigDict(deepspeed=3), 1)
    with pytest.raises(PETLError, match=line):
        check_zero(ConfigDict(deepspeed=3, **more), 2)


class LARS(torch.optim.SGD):
    """Of this name, one that steps tensors as wholes."""


@pytest.mark.parametrize(
    ('given', 'line'),
    [
        ({'kind': AmpOptimWrapper}, 'optim_wrapper is a AmpOptimWrapper'),
        ({'optimizer': LARS}, 'LARS is not known to step each number by itself'),
        ({'accumulative_counts': 2}, 'accumulative_counts=2 is not supported'),
        ({'clip_grad': {'type': 'value', 'clip_value': 1}}, 'by their L2 norm alone'),
        ({'clip_grad': {'max_norm': 1, 'norm_type': 1}}, "'norm_type': 1"),
    ],
)
def test_optimizers_that_zero_would_change_are_refused(given: dict, line: str) -> None:
    model = inject(base('timm_vit'), 'LoRA')
    kind = given.pop('kind', OptimWrapper)
    make = given.pop('optimizer', torch.optim.SGD)
    params = [p for p in model.parameters() if p.requires_grad]
    if kind is AmpOptimWrapper:
        wrapper = object.__new__(kind)  # it wants a GPU
    else:
        wrapper = kind(make(params, lr=0.1), **given)
    with pytest.raises(PETLError, match=line):
        check_trainable(model, wrapper)


def test_models_that_zero_would_change_are_refused() -> None:
    def refused(model: nn.Module) -> str:
        params = [p for p in model.parameters() if p.requires_grad]
        return _refusal(
            lambda m: check_trainable(m, OptimWrapper(torch.optim.SGD(params, lr=1))),
            model,
        )

    assert refused(inject(base('timm_vit'), 'LoRA')) == 'done'
    assert 'holds no method' in refused(base('timm_vit'))
    assert 'AdaLoRA reads or writes its weights at each step' in refused(
        inject(base('timm_vit'), 'AdaLoRA')
    )
    assert 'have no axis' in refused(
        inject(base('timm_vit'), {'type': 'LST', 'reduction': 4})
    )
    turned = inject(base('timm_vit'), 'LoRA')
    turned.cls_token.data = torch.zeros(1, 32, 1).mT.expand(1, 1, 32)
    turned.pos_embed.data = turned.pos_embed.data.mT.contiguous().mT
    assert 'pos_embed of the model have no axis, no number or another order' in refused(
        turned
    )
    assert '(bfloat16)' in refused(inject(base('timm_vit', torch.bfloat16), 'LoRA'))
    packed = inject(base('timm_vit'), 'LoRA')
    loose = torch.optim.SGD(packed.parameters(), lr=1)
    said = _refusal(lambda m: check_trainable(m, OptimWrapper(loose)), packed)
    assert 'the optimizer holds frozen parameters too' in said
    ((_, _, record),) = injections(packed)
    record.bits = 8
    assert 'leave out one of base_bits and deepspeed' in refused(packed)


def _runner(
    hooks: list, alone: bool = False, loop: type = EpochBasedTrainLoop
) -> SimpleNamespace:
    model = inject(base('timm_vit'), 'LoRA')
    params = [p for p in model.parameters() if p.requires_grad]
    loop = object.__new__(loop)
    return SimpleNamespace(
        model=model if alone else ZeroModel(model),
        optim_wrapper=OptimWrapper(torch.optim.SGD(params, lr=0.1)),
        _train_loop=loop,
        train_loop=loop,
        hooks=hooks,
        cfg=ConfigDict(),
        world_size=2,
    )


def test_a_run_is_refused_before_it_begins() -> None:
    hook = DeepSpeedHook(3)
    hook.before_run(_runner([DeltaCheckpointHook(), BaseGuardHook()]))
    with pytest.raises(PETLError, match='this one has one; start several'):
        hook.before_run(_runner([], alone=True))
    for other in (EMAHook(), TrainableEMAHook()):
        with pytest.raises(PETLError, match='reads weights between steps'):
            hook.before_run(_runner([other]))
    with pytest.raises(PETLError, match='SPTLoop trains other parts in each step'):
        hook.before_run(_runner([], loop=SPTLoop))
    with pytest.raises(PETLError, match='would save weights that deepspeed has'):
        hook.before_run(_runner([CheckpointHook()]))


def test_the_wrapper_without_deepspeed_does_not_train() -> None:
    model = ZeroModel(inject(base('timm_vit'), 'LoRA'))
    x = images('timm_vit')
    for y, z in zip(outputs(model, x), outputs(model.module, x), strict=True):
        assert torch.equal(y, z)
    with pytest.raises(PETLError, match='nothing would average gradients'):
        model.train_step({}, None)
