"""Methods with phases in the benchmark: NOAH's job trains, searches, then runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmpetl.apis import run as apis_run
from mmpetl.benchmark import job as job_module
from mmpetl.benchmark.cost import _with_phases
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.records import Job, Record
from mmpetl.core import PETLError, registered_methods
from mmpetl.engine.loops import Phase
from mmpetl.engine.loops.supernet import SupernetLoop
from mmpetl.methods.lora import LoRA
from mmpetl.registry import LOOPS, METHODS

FOUND = {
    'num_tokens': [5, 5, 1, 0, 0, 0],
    'rank': [1, 1, 1, 1, 0, 0],
    'hidden_dims': [10, 5, 5, 1, 1, 1],
}
METHOD = 'model.backbone.method'
JOB = Job(
    'mini/digits',
    'NOAH',
    options={
        f'{METHOD}.num_tokens': 10,
        f'{METHOD}.rank': 10,
        f'{METHOD}.hidden_dims': 10,
        f'{METHOD}.drop_rate': 0.25,
        f'{METHOD}.space': {'widths': [1, 5, 10], 'depths': [3, 6]},
        'phases': {'supernet': {'max_epochs': 2}},
    },
)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for training; the list tells what was trained."""
    names: list[str] = []

    class Runner:
        def __init__(self, config: Any) -> None:
            self.config = config

        def train(self) -> None:
            folder = Path(self.config.work_dir)
            names.append(folder.name)
            if folder.name == 'search':
                (folder / 'found.json').write_text(json.dumps(FOUND))

    def build(config: Any, check_data: tuple[str, ...]) -> Runner:
        assert check_data == ('train', 'val')
        assert config.get('test_dataloader') is None
        return Runner(config)

    monkeypatch.setattr(apis_run, 'build_runner', build)
    monkeypatch.setattr(
        job_module, 'train_and_read', lambda *args: names.append('final')
    )
    monkeypatch.setattr(job_module, 'export', lambda *args: None)
    monkeypatch.setattr(job_module, 'collect', lambda job, *args: Record(job, 'done'))
    return names


def test_the_config_of_the_run_names_what_was_found(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.config import Config

    monkeypatch.setenv('MMPETL_DATA', str(tmp_path))
    job_module.run_job(JOB, tmp_path / 'run')
    assert ran == ['supernet', 'search', 'final']
    method = Config.fromfile(tmp_path / 'run' / 'config.py').model.backbone.method
    assert method.to_dict() == {'type': 'NOAH', 'drop_rate': 0.25, **FOUND}
    # What was found is not searched again.
    job_module.run_job(JOB, tmp_path / 'run')
    assert ran[3:] == ['final']


def test_a_phase_that_the_method_does_not_have_is_refused(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path))
    options = {**JOB.options, 'phases': {'serch': {'limit': 5}}}
    with pytest.raises(PETLError, match="'serch'.*Did you mean 'search'"):
        job_module.run_job(replace(JOB, options=options), tmp_path / 'run')
    assert ran == []


class WarmUp(Phase):
    """A loop that no module of mmpetl knows."""

    phase = 'warm_up'

    @classmethod
    def prepare(cls, config: Any, settings: Any, folders: Any) -> None:
        config.train_cfg = {'type': 'WarmUp', 'by_epoch': True, **settings}
        (folders['warm_up'] / 'rank.txt').write_text('3')

    @classmethod
    def cost(cls, settings: Any, max_epochs: int | None) -> tuple[float, int]:
        return 0.5, 10


class Ripple(LoRA):
    """A method that chooses its rank by a phase of its own."""

    phases = ('mmpetl.WarmUp',)

    @classmethod
    def after_phases(cls, args: Any, folder: Path) -> dict[str, Any]:
        return {**args, 'rank': int((folder / 'rank.txt').read_text())}


def test_a_new_method_with_phases_needs_no_edit_of_the_benchmark(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.config import Config

    registered_methods()
    monkeypatch.setitem(METHODS.module_dict, 'Ripple', Ripple)
    monkeypatch.setitem(LOOPS.module_dict, 'WarmUp', WarmUp)
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path))
    job = Job('mini/digits', 'Ripple', options={f'{METHOD}.alpha': 2.0})
    job_module.run_job(job, tmp_path / 'run')
    assert ran == ['warm_up', 'final']
    method = Config.fromfile(tmp_path / 'run' / 'config.py').model.backbone.method
    assert method.to_dict() == {'type': 'Ripple', 'alpha': 2.0, 'rank': 3}
    asked = compose_job(job, tmp_path / 'unused')
    # Half of 0.8 x 100 steps, and ten times the two batches that score.
    assert _with_phases(asked, 100, 4) == (140, 24)


SCHEDULES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    'steps': (
        [{'type': 'MultiStepLR', 'milestones': [6, 9]}],
        [{'type': 'MultiStepLR', 'milestones': [3, 5]}],
    ),
    'a warm-up of iterations': (
        [{'type': 'LinearLR', 'by_epoch': False, 'end': 7}],
        [{'type': 'LinearLR', 'by_epoch': False, 'end': 4}],
    ),
    'the cosine of timm': (
        {'type': 'mmpetl.TimmCosineLR', 'T_max': 10, 'warmup': 4},
        [{'type': 'mmpetl.TimmCosineLR', 'T_max': 5, 'warmup': 2}],
    ),
    'without an end': (
        [{'type': 'StepLR', 'step_size': 1, 'end': 10**9}],
        [{'type': 'StepLR', 'step_size': 1, 'end': 10**9}],
    ),
}


@pytest.mark.parametrize('case', SCHEDULES)
def test_the_schedules_of_a_phase_follow_its_length(case: str) -> None:
    given, want = SCHEDULES[case]
    assert scheduled(given, 5) == want


def scheduled(given: Any, epochs: int | None) -> Any:
    """Schedules of 10 epochs in a phase of so many."""
    from mmengine.config import Config

    config = Config({'train_cfg': {'max_epochs': 10}, 'param_scheduler': given})
    settings = {'max_epochs': epochs} if epochs else {}
    SupernetLoop.prepare(config, settings, {})
    return config.to_dict()['param_scheduler']


def test_a_warm_up_of_which_nothing_is_left_is_taken_out() -> None:
    pair = [
        {'type': 'LinearLR', 'end': 1},
        {'type': 'CosineAnnealingLR', 'begin': 1, 'end': 10, 'T_max': 9},
    ]
    (left,) = scheduled(pair, 3)
    assert left == {'type': 'CosineAnnealingLR', 'begin': 0, 'end': 3, 'T_max': 3}
    assert scheduled(pair, None) == pair


def test_a_schedule_that_cannot_follow_a_phase_is_told_in_a_line() -> None:
    one = [{'type': 'OneCycleLR', 'total_steps': 10}]
    with pytest.raises(PETLError, match="'supernet' has 3 epochs of 10, and how One"):
        scheduled(one, 3)
    assert scheduled(one, None) == one


def test_an_estimate_counts_the_phases_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path))
    config = compose_job(JOB, tmp_path / 'unused')
    epochs = config.train_cfg.max_epochs
    # The published search: 50 at random, then 15 generations of 25 + 25.
    found = _with_phases(config, 10 * epochs, 4)
    assert found == (10 * epochs + 16, 4 + 2 * (50 + 15 * 50))
    # Without settings the phases still run, the supernet as long as the run itself.
    options = {k: v for k, v in JOB.options.items() if k != 'phases'}
    config = compose_job(replace(JOB, options=options), tmp_path / 'unused')
    assert _with_phases(config, 10 * epochs, 4) == (18 * epochs, 4 + 2 * 800)
    fixed = compose_job(Job('mini/digits', 'NOAH'), tmp_path / 'unused')
    assert _with_phases(fixed, 10 * epochs, 4) == (10 * epochs, 4)
