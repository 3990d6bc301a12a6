"""A training made longer or shorter takes its schedules along."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from mmpetl.config.compose import compose
from mmpetl.config.lengths import length_of, stretch
from mmpetl.core import PETLError


def spans(config, *keys):
    keys = keys or ('begin', 'end', 'T_max')
    return [tuple(node.get(key) for key in keys) for node in config.param_scheduler]


@pytest.mark.parametrize(
    ('epochs', 'wanted'),
    [
        (100, [(0, 10, None), (10, 100, 90)]),
        (50, [(0, 5, None), (5, 50, 45)]),
        (200, [(0, 20, None), (20, 200, 180)]),
        (33, [(0, 3, None), (3, 33, 30)]),
        (3, [(0, 3, 3)]),  # less than half an epoch of warm-up is none
        (1, [(0, 1, 1)]),
    ],
)
def test_warm_up_and_cosine_follow_the_epochs(epochs, wanted):
    config = compose('vtab/svhn', 'LoRA', {'train_cfg.max_epochs': epochs})
    assert spans(config) == wanted


def test_the_published_cosine_follows_too():
    config = compose(
        'vtab/svhn', 'LoRA', {'train_cfg.max_epochs': 50}, protocol='published'
    )
    assert spans(config, 'T_max', 'warmup') == [(50, 5)]


def test_schedules_of_iterations_follow():
    config = compose('ade20k', 'LoRA', {'train_cfg.max_iters': 80000})
    assert spans(config) == [(0, 750, None), (750, 80000, None)]


def test_steps_and_a_warm_up_of_iterations_follow_the_epochs():
    config = compose('coco', 'LoRA', {'train_cfg.max_epochs': 12})
    assert spans(config, 'begin', 'end', 'milestones') == [
        (0, 167, None),
        (0, 12, [9, 11]),
    ]


def test_who_speaks_of_schedules_says_them():
    options = {'train_cfg.max_epochs': 50, 'param_scheduler.1.eta_min': 0.0}
    assert spans(compose('vtab/svhn', 'LoRA', options))[1] == (10, 100, 90)


def config(**scheduler):
    return Config({'train_cfg': {'max_epochs': 10}, 'param_scheduler': [{**scheduler}]})


def changed(before: Config, **loop: int) -> Config:
    length = length_of(before)
    before.train_cfg = loop
    stretch(before, length, {'train_cfg': loop})
    return before


def test_what_has_no_end_keeps_none():
    made = changed(config(type='StepLR', step_size=4, end=10**9), max_epochs=5)
    assert spans(made, 'step_size', 'end') == [(2, 10**9)]
    same = config(type='LinearLR', end=3)
    assert spans(changed(same, max_epochs=10), 'end') == [(3,)]


def test_what_cannot_follow_is_told_in_a_line():
    with pytest.raises(PETLError, match='how OneCycleLR is to follow is not known'):
        changed(config(type='OneCycleLR', total_steps=9), max_epochs=5)
    with pytest.raises(PETLError, match='made for 10 of epochs, and the options count'):
        changed(config(type='LinearLR', end=3), max_iters=5)


def by_name():
    warm = {'type': 'LinearLR', 'start_factor': 0.1, 'end': 2}
    cosine = {'type': 'CosineAnnealingLR', 'begin': 2, 'end': 10, 'T_max': 8}
    short = {'type': 'ConstantLR', 'end': 1}
    nodes = {'a': [warm, cosine], 'b': {'type': 'StepLR', 'step_size': 4}, 'c': [short]}
    return Config({'train_cfg': {'max_epochs': 10}, 'param_scheduler': nodes})


def test_schedules_of_several_optimizers_follow():
    made = changed(by_name(), max_epochs=40).param_scheduler
    assert [node['end'] for node in made.a] == [8, 40]
    assert (made.a[1].begin, made.a[1].T_max) == (8, 32)
    assert made.b == [{'type': 'StepLR', 'step_size': 16}]
    assert made.c[0].end == 4
    short = changed(by_name(), max_epochs=4).param_scheduler
    assert [node.get('end') for node in short.a] == [1, 4]
    assert short.c == []  # less than half an epoch, and the optimizer keeps its name


def test_a_schedule_of_several_that_cannot_follow_is_told_in_a_line():
    config = by_name()
    config.param_scheduler.b = {'type': 'OneCycleLR', 'total_steps': 9}
    with pytest.raises(PETLError, match='how OneCycleLR is to follow is not known'):
        changed(config, max_epochs=5)


def test_several_optimizers_run_by_what_has_followed(monkeypatch):
    monkeypatch.setattr(Runner, 'train_dataloader', [0])
    parts = torch.nn.ModuleDict({k: torch.nn.Linear(1, 1) for k in 'abc'})
    wrappers = OptimWrapperDict(
        **{
            k: OptimWrapper(torch.optim.SGD(p.parameters(), 1.0))
            for k, p in parts.items()
        }
    )
    runner = object.__new__(Runner)
    runner.optim_wrapper, runner._train_loop = wrappers, None
    given = changed(by_name(), max_epochs=4).param_scheduler.to_dict()
    built = runner.build_param_scheduler(given)
    assert {k: len(v) for k, v in built.items()} == {'a': 2, 'b': 1, 'c': 0}
