"""A run of several methods on one trunk, from its job to its verified record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmpetl.benchmark.job import run_job
from mmpetl.benchmark.job_config import METHOD, compose_job
from mmpetl.benchmark.phases import phases_of
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.search import space_of
from mmpetl.benchmark.spaces import value_at
from mmpetl.benchmark.verify import verify_run
from mmpetl.config.compose import compose, search_space
from mmpetl.core import PETLError
from mmpetl.core.delta_file import method_name
from mmpetl.methods.lora import LoRA

BRIEF = {
    'train_cfg.max_epochs': 2,
    'train_dataloader.batch_size': 10,
    'optim_wrapper.optimizer.lr': 0.01,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 2,
    'param_scheduler.1.T_max': 1,
}
JOB = Job(
    'mini/digits',
    'BitFit + LoRA',
    seed=1,
    options={**BRIEF, f'{METHOD}1.rank': 2, f'{METHOD}1.blocks': '3:'},
)


def test_several_train_are_recorded_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmpetl.datasets.mini import make

    make(tmp_path / 'data', names=['vtab-1k/digits'], size='tiny')
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'data'))
    store = RecordStore(tmp_path / 'bench')
    folder = store.folder(JOB)
    assert folder.name.startswith('mini-digits--bitfit+lora--')
    record = run_job(JOB, folder)
    store.write(record)
    assert record.family == 'combined'
    assert record.settings == {'1.rank': 2, '1.blocks': '3:'}
    assert record.counts['delta'] > 0
    assert record.counts['selected'] > 0
    facts = json.loads((folder / 'delta.json').read_text())
    assert method_name(facts) == 'BitFit + LoRA'
    assert [part['blocks'] for part in facts['where']] == [None, [3, 4, 5]]
    assert store.read(JOB).metrics == record.metrics
    checks = verify_run(folder, level='delta').checks
    assert {check.found for check in checks} <= {'holds', 'unchecked'}
    assert {c.found for c in checks if c.field == 'delta.method'} == {'holds'}
    # What is done is not done again.
    again = run_job(JOB, folder)
    assert (again.metrics, again.test_reads) == (record.metrics, 1)


def test_its_space_is_that_of_each_method() -> None:
    space, source = space_of('LoRA + SSF', pytest.fail)
    assert source == 'configs/lora/search_space.py + configs/ssf/search_space.py'
    lora, ssf = search_space('lora'), search_space('ssf')
    rate = 'optim_wrapper.optimizer.lr'
    assert space[rate] == lora[rate]
    assert {k for k in space if k.startswith(METHOD)} == {
        f'{METHOD}{number}.{key.removeprefix(METHOD)}'
        for number, one in enumerate((lora, ssf))
        for key in one
        if key.startswith(METHOD)
    }
    config = compose('mini/digits', 'LoRA + SSF')
    assert value_at(config, f'{METHOD}0.rank') == LoRA().rank
    assert value_at(config, f'{METHOD}1.type') == 'SSF'


def test_methods_with_phases_of_their_own_run_alone() -> None:
    space = {'widths': [1, 5], 'depths': [3, 6]}
    job = Job('mini/digits', 'NOAH + BitFit', options={f'{METHOD}0.space': space})
    with pytest.raises(PETLError, match='NOAH has training phases of its own'):
        phases_of(compose_job(job, 'work'))
