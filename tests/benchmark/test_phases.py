"""NOAH in the benchmark: one job trains a supernet, searches it, runs the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmpetl.apis import run as apis_run
from mmpetl.benchmark import job as job_module
from mmpetl.benchmark.records import Job, Record

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
