"""Ten ways to make one method look better than the others, each refused or marked.

Most jobs here are resolved from a plan and composed as a run composes them, and their
data are read; only the training in between is left out. Those that can be told from
nothing but the data are real runs, which end before their first step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DATASETS, init_default_scope

from mmpetl.apis.run import build_runner
from mmpetl.benchmark import run_facts
from mmpetl.benchmark.config_digest import config_hash, recipe_digest
from mmpetl.benchmark.job import begin, run_job
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.plan import parse_plan, resolve
from mmpetl.benchmark.records import DataRead, Job, Record, RecordStore
from mmpetl.benchmark.table_parts import Row, Table
from mmpetl.benchmark.tables import build_tables
from mmpetl.core import PETLError
from mmpetl.datasets.identity import copies, read_of
from mmpetl.datasets.mini import make
from mmpetl.engine.hooks.data_read import DataReadHook, _without_pipelines

METHODS = ('LoRA', 'BitFit', 'LinearProbe')
CHEAT = 'LoRA'
SCORES = {CHEAT: 90.0, 'BitFit': 50.0, 'LinearProbe': 40.0}


@pytest.fixture(scope='module', autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp('data')
    make(root, names=['vtab-1k/digits'], size='tiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(root))
        yield root


def jobs_of(**keys: Any) -> list[Job]:
    """The jobs of a plan of three methods, as a run would get them."""
    plan = {
        'name': 'cheat',
        'methods': list(METHODS),
        'recipes': ['mini/digits'],
        'seeds': [1],
        **keys,
    }
    return list(resolve(parse_plan(plan)).jobs)


def untrained(job: Job, folder: Path, score: float = 50.0) -> Record:
    """The record that a run of a job would leave, with a made-up score."""
    config = compose_job(job, folder)
    init_default_scope(config.default_scope)
    reads = {
        phase: read_of(
            DATASETS.build(
                _without_pipelines(config[f'{phase}_dataloader'].dataset.to_dict())
            )
        )
        for phase in ('train', 'test')
    }
    data = {p: DataRead(r.digest, r.count, r.kind, r.by) for p, r in reads.items()}
    data['test'] = replace(data['test'], copies=copies(*reads.values()))
    batch = run_facts.batch_of(config, 1)
    epochs = config.train_cfg.max_epochs
    return Record(
        job,
        'done',
        family='x',
        task='digits',
        group='natural',
        backbone='mini ViT',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        counts={'delta': 1000},
        config_hash=config_hash(config),
        preprocessing=run_facts.preprocessing_of(config),
        test_reads=1,
        data=data,
        recipe_digest=recipe_digest(config),
        steps=epochs * -(-data['train'].count // batch),
        epochs=epochs,
        batch=batch,
        resolution=run_facts.resolution_of(config),
    )


@pytest.fixture(scope='module')
def fair(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of the plan as it should be; copy what is changed."""
    folder = tmp_path_factory.mktemp('fair')
    return [untrained(job, folder, SCORES[job.method]) for job in jobs_of()]


def table_of(records: list[Record]) -> Table:
    (table,) = build_tables(records)
    return table


def row_of(table: Table) -> Row:
    return next(row for row in table.rows if row.method == CHEAT)


def told(fair: list[Record], folder: Path, options: Mapping[str, Any]) -> Table:
    """The table of a plan that gives options to the method of the best score."""
    jobs = jobs_of(method_options={CHEAT: options})
    (job,) = (job for job in jobs if job.method == CHEAT)
    assert [j for j in jobs if j is not job] == [r.job for r in fair[1:]]
    return table_of([untrained(job, folder, SCORES[CHEAT]), *fair[1:]])


def spoilt(table: Table, reason: str) -> None:
    """The cheat's row is marked, last, without rank; the others stand."""
    row = row_of(table)
    assert any(reason in text for text in row.marks), row.marks
    assert table.rows[-1] is row
    assert row.rank is None
    assert all(r.rank for r in table.rows if r is not row)
    assert not any(r.marks for r in table.rows if r is not row)


def test_a_fair_plan_has_neither_marks_nor_warnings(fair):
    assert fair[0].job.method == CHEAT
    table = table_of(fair)
    assert table.warnings == ()
    assert row_of(table).rank == 1


def test_longer_training(fair, tmp_path):
    spoilt(told(fair, tmp_path, {'train_cfg.max_epochs': 400}), 'trained longer')


def test_another_subset_of_the_test_set(fair, tmp_path):
    table = told(fair, tmp_path, {'test_dataloader.dataset.indices': 5})
    spoilt(table, 'tested on 5 samples')
    assert any('changed by options: test_data' in text for text in table.warnings)


@pytest.mark.parametrize('where', ['options', 'method_options', 'recipe_options'])
def test_the_test_split_for_training(where):
    change = {'train_dataloader.dataset.split': 'test'}
    name = {'method_options': CHEAT, 'recipe_options': 'mini/*'}.get(where)
    keys = {where: {name: change} if name else change}
    with pytest.raises(PETLError, match='training reads it'):
        jobs_of(**keys)


def validating(root: str, **dataset: Any) -> dict[str, Any]:
    """Options that validate while training, on what is read as the test set is."""
    config = compose_job(Job('mini/digits', CHEAT), 'unused')
    loader = config.test_dataloader.to_dict()
    loader['dataset'] |= {'data_root': root, **dataset}
    return {
        'val_dataloader': {'_delete_': True, **loader},
        'val_evaluator': {'_delete_': True, **config.test_evaluator.to_dict()},
        'val_cfg': {'_delete_': True, **config.test_cfg.to_dict()},
    }


def test_the_test_split_for_validation_under_other_names(root, tmp_path):
    (tmp_path / 'link').symlink_to(root)
    for spelt in (f'{root}/vtab-1k', f'{root}/./vtab-1k', f'{tmp_path}/link/vtab-1k'):
        with pytest.raises(PETLError, match='validation reads it'):
            jobs_of(options=validating(spelt))


def test_the_best_checkpoint_by_the_test_set(root):
    change = {
        **validating(f'{root}/./vtab-1k'),
        'default_hooks.checkpoint.save_best': 'accuracy/top1',
    }
    with pytest.raises(PETLError, match='save_best chooses a checkpoint by it'):
        jobs_of(options=change)


def test_settings_chosen_on_the_test_set(tmp_path):
    job = Job('mini/digits', CHEAT, stage='tune')
    compose_job(job, tmp_path)
    for change, reason in (
        ({'val_dataloader.dataset.split': 'test'}, 'validation reads it'),
        ({'val_dataloader.dataset.split': 'train800'}, 'validates on what it trains'),
    ):
        with pytest.raises(PETLError, match=reason):
            compose_job(replace(job, options=change), tmp_path)


def refused(change: Mapping[str, Any], folder: Path) -> str:
    """Why a real run does not take its first step."""
    job = Job('mini/digits', CHEAT, options=change)
    with pytest.raises(PETLError) as error:
        run_job(job, folder)
    assert '"loss"' not in (folder / 'log.jsonl').read_text()
    assert not list(folder.glob('*.pth'))
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_a_part_of_the_test_set_in_training_is_found_in_the_data(root, tmp_path):
    listed = compose_job(Job('mini/digits', CHEAT), 'unused')
    pipeline = listed.train_dataloader.dataset.to_dict()['pipeline']
    change = {
        'train_dataloader.dataset': {
            '_delete_': True,
            'type': 'CustomDataset',
            'data_root': f'{root}/vtab-1k/digits/./',
            'ann_file': 'test.txt',
            'indices': 4,
            'pipeline': pipeline,
        }
    }
    jobs_of(options=change)  # the config does not tell
    said = refused(change, tmp_path / 'train')
    assert said.startswith('training reads 4 of the')
    change = {
        **validating(f'{root}/vtab-1k', indices=3),
        'default_hooks.checkpoint.save_best': 'accuracy/top1',
    }
    assert refused(change, tmp_path / 'val').startswith('validation reads 3 of the')


def test_mixed_preprocessing(fair, tmp_path):
    table = told(fair, tmp_path, {'preprocessing.normalisation': 'imagenet'})
    assert any(
        'Rows differ in preprocessing of digits' in text and 'imagenet' in text
        for text in table.warnings
    )


def test_a_leaf_among_recipes(fair):
    leaf = replace(fair[0], job=replace(fair[0].job, leaf=True))
    table = table_of([leaf, *fair[1:]])
    assert (
        "Rows differ in settings. the recipe's: BitFit, LinearProbe; a published "
        "leaf's: LoRA."
    ) in [text.replace('LoRA (leaf=True)', 'LoRA') for text in table.warnings]


def test_a_config_that_is_edited_half_way(tmp_path):
    config = compose_job(Job('mini/digits', CHEAT), tmp_path)
    begin(tmp_path, config, config_hash(config))
    (tmp_path / 'epoch_2.pth').touch()
    config.custom_hooks = [*config.custom_hooks, {'type': 'mmpetl.TrainableEMAHook'}]
    _, why = begin(tmp_path, config, config_hash(config))
    assert 'EMA' in why
    assert not (
        tmp_path / 'epoch_2.pth'
    ).exists()  # nothing of the other config is left


@pytest.mark.slow
def test_data_that_are_edited_half_way(root, tmp_path):
    job = Job('mini/digits', CHEAT, options={'train_cfg.max_epochs': 1})
    runner = build_runner(compose_job(job, tmp_path))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    hook = DataReadHook()
    hook.before_train(runner)
    runner._resume = True
    hook.before_train(runner)
    listed = root / 'vtab-1k' / 'digits' / 'train800val200.txt'
    text = listed.read_text()
    listed.write_text(text.partition('\n')[2])
    try:
        runner = build_runner(compose_job(job, tmp_path))
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner._resume = True
        with pytest.raises(PETLError, match='would go on with'):
            hook.before_train(runner)
    finally:
        listed.write_text(text)


def test_a_stale_search(fair):
    rate = 'optim_wrapper.optimizer.lr'

    def searched(record: Record, trials: int, best: int, lr: float) -> Record:
        values = [
            {'number': n, 'status': 'done', 'options': {rate: n / 10}, 'value': n % 5}
            for n in range(trials)
        ]
        search = {'budget': trials, 'best': best, 'trials': values}
        return replace(
            record, job=replace(record.job, options={rate: lr}), search=search
        )

    mine, *others = [searched(record, 5, 4, 0.4) for record in fair]
    assert table_of([mine, *others]).warnings == ()
    # By the search itself: another setting than it chose, or a better trial passed by.
    spoilt(
        table_of([*others, searched(mine, 5, 4, 0.9)]),
        f'has another {rate} than its search chose',
    )
    spoilt(table_of([*others, searched(mine, 5, 3, 0.3)]), 'has a better trial')
    # By the search that went on: the final run of the shorter one is left.
    table = table_of([*others, mine, searched(mine, 10, 9, 0.9)])
    stale = [row for row in table.rows if row.marks]
    assert [row.label for row in stale] == ['LoRA (lr=0.4)']
    assert 'stale: of a search of 5 trials that now has 10' in stale[0].marks[0]


EDITS = {
    'score': ({'metrics': {'accuracy/top1': 99.0}, 'ppt': 0.5}, 'PPT that does not'),
    'seed': ({'job': {'recipe': 'mini/digits', 'method': CHEAT, 'seed': 2}}, None),
    'steps': ({'steps': 3}, 'contradicts itself: 3 steps'),
}


@pytest.mark.parametrize('name', EDITS)
def test_a_record_that_was_edited_by_hand(name, fair, tmp_path, capsys):
    change, said = EDITS[name]
    store = RecordStore(tmp_path)
    for record in fair:
        curve = [[record.steps // 2, 1.0], [record.steps, 0.5]]
        store.write(replace(record, curves={'loss': curve}))
    (path,) = tmp_path.glob('runs/*lora*/record.json')
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    records = store.all()
    if said is None:
        assert CHEAT not in {r.job.method for r in records}
        assert 'it was edited' in capsys.readouterr().err
    else:
        assert any(said in text for text in table_of(records).warnings)


def test_a_record_in_the_folder_of_another_is_left_out(fair, tmp_path, capsys):
    store = RecordStore(tmp_path)
    store.write(fair[0])
    folder = store.folder(fair[0].job)
    folder.rename(folder.with_name('other'))
    assert store.all() == []
    assert 'is another folder' in capsys.readouterr().err
