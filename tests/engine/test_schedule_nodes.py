from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmpetl.apis.run import build_runner
from mmpetl.core import PETLError
from mmpetl.engine.runner import TuningRunner
from mmpetl.engine.schedule_nodes import check_schedules, schedule_nodes


@pytest.mark.parametrize(
    ('kind', 'key', 'value'),
    [
        ('LinearLR', 'start_factor', 0),
        ('LinearLR', 'start_factor', 0.0),
        ('LinearLR', 'start_factor', 1e-310),
        ('LinearMomentum', 'start_factor', 0),
        ('mmengine.LinearParamScheduler', 'start_factor', 0),
        ('ConstantLR', 'factor', 0),
        ('ConstantMomentum', 'factor', 0.0),
        ('ConstantParamScheduler', 'factor', 1e-320),
        ('OneCycleLR', 'div_factor', 0),
        ('OneCycleLR', 'final_div_factor', 0),
        (LinearLR, 'start_factor', 0),
    ],
)
@pytest.mark.parametrize('place', ['param_scheduler', '0', 'b.1'])
def test_what_is_divided_by_is_refused(kind, key, value, place) -> None:
    node, fine = {'type': kind, key: value, 'end': 5}, {'type': 'PolyLR'}
    given = {
        'param_scheduler': node,
        '0': [node],
        'b.1': {'a': fine, 'b': [fine, node]},
    }
    named = getattr(kind, '__name__', kind)
    where = place if place == 'param_scheduler' else f'param_scheduler.{place}'
    with pytest.raises(PETLError) as error:
        check_schedules(given[place])
    text = str(error.value)
    assert text.startswith(f'{where} ({named}) has {key}={value}, ')
    assert text.endswith(f'{key}=1e-08')


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(
        PETLError, match=r'param_scheduler\.0 \(StepLR\) has step_size=0'
    ):
        check_schedules([{'type': 'StepLR', 'step_size': 0}])


@pytest.mark.parametrize(
    'node',
    [
        {'type': 'LinearLR'},
        {'type': 'LinearLR', 'start_factor': 1e-8, 'end_factor': 0},
        {'type': 'LinearLR', 'start_factor': 1e-20},
        {'type': 'ReduceOnPlateauLR', 'factor': 0, 'monitor': 'loss'},
        {'type': 'StepLR', 'step_size': 1, 'gamma': 0},
        {'type': 'mmpetl.TimmCosineLR', 'T_max': 5, 'start': 0},
        {'type': 'MyLinear', 'start_factor': 0},
    ],
)
def test_what_goes_on_passes(node) -> None:
    check_schedules(node)
    check_schedules({'a': [node]})


def test_nothing_and_what_is_built_have_no_nodes() -> None:
    params = [torch.nn.Parameter(torch.zeros(1))]
    built = LinearLR(OptimWrapper(torch.optim.SGD(params, 0.1)))
    for given in (None, [], {}, built, [built], {'a': built}):
        assert list(schedule_nodes(given)) == []
        check_schedules(given)


@pytest.mark.parametrize(
    ('kind', 'key'), [('LinearLR', 'start_factor'), ('ConstantMomentum', 'factor')]
)
def test_the_share_that_is_told_runs(kind, key) -> None:
    params = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, 0.1, momentum=0.9)
    name = 'lr' if kind.endswith('LR') else 'momentum'
    node = {'type': kind, key: 1e-8, 'end': 5, 'optimizer': optimizer}
    schedule, seen = PARAM_SCHEDULERS.build(node), []
    for _ in range(6):
        seen.append(optimizer.param_groups[0][name])
        optimizer.step()
        schedule.step()
    whole = {'lr': 0.1, 'momentum': 0.9}[name]
    steps = [0, 0.25, 0.5, 0.75, 1, 1] if name == 'lr' else [0, 0, 0, 0, 1, 1]
    assert seen == pytest.approx([share * whole for share in steps], abs=1e-7)


def run_config(tmp_path, kind: str) -> Config:
    return Config(
        {
            'model': {'type': 'BaseModel'},
            'work_dir': str(tmp_path),
            'runner_type': kind,
            'param_scheduler': {'type': 'LinearLR', 'start_factor': 0, 'end': 5},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1}},
            'train_cfg': {'by_epoch': True, 'max_epochs': 1},
            'train_dataloader': {'dataset': {'type': 'Never'}},
        }
    )


def test_a_run_says_so_before_it_is_built(tmp_path) -> None:
    with pytest.raises(PETLError, match=r'^param_scheduler \(LinearLR\) has start_fac'):
        build_runner(run_config(tmp_path, 'Runner'), check_data=('train',))


def test_the_runner_of_other_tools_says_so_before_it_trains() -> None:
    runner = object.__new__(TuningRunner)
    runner.param_schedulers = [{'type': 'ConstantLR', 'factor': 0}]
    with pytest.raises(
        PETLError, match=r'^param_scheduler\.0 \(ConstantLR\) has factor=0'
    ):
        runner.train()
