"""A search is fair: equal budgets, the default among the trials, one test reading."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_runs
import pytest

from mmpetl.benchmark import finals as finals_module
from mmpetl.benchmark import search as search_module
from mmpetl.benchmark.comparable import leaks
from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.records import Job, Record, RecordStore, setting_key
from mmpetl.benchmark.scores import search_budget
from mmpetl.benchmark.search import Search, alone, load_study, table_of
from mmpetl.benchmark.spaces import (
    check_in_space,
    decode,
    encode,
    num_settings,
    settings_in,
    space_of,
)
from mmpetl.benchmark.tables import build_tables
from mmpetl.cli.commands.benchmark import search as search_command
from mmpetl.core import PETLError, registered_methods
from mmpetl.engine.hooks.run_log import read_run_log

pytest.importorskip('optuna')

RATE = 'optim_wrapper.optimizer.lr'
SPACE = {
    RATE: {'low': 1e-4, 'high': 1e-1, 'log': True},
    'model.backbone.method.rank': [2, 4, 8],
}
# The default of the stand-in task lies at the edge: 60 of at most 80.
BASE = {RATE: 1e-4}


@pytest.fixture(autouse=True)
def _space(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if 'own_space' not in request.fixturenames:
        monkeypatch.setattr(
            search_module, 'space_of', lambda method, warn: (SPACE, 'the test')
        )


@pytest.fixture
def own_space() -> None:
    """Leave the spaces of the configs as they are."""


def fake(out: Path, methods: tuple[str, ...] = ('LoRA',), **args: Any) -> Search:
    options = {
        'trials': 8,
        'seeds': (1, 2),
        'base': {m: BASE for m in methods},
        'poll_s': 0.05,
        'run': 'fake_runs:bowl',
        'toolboxes': ('mmpretrain',),
        **args,
    }
    executor = options.pop('executor', None) or make_executor('inline')
    return Search(methods, 'mini/digits', out, executor, **options)


def trials_of(out: Path, method: str) -> list[Job]:
    jobs = [r.job for r in RecordStore(out).all()]
    return [j for j in jobs if j.method == method and j.stage == 'tune']


def test_every_method_spends_its_budget_and_is_tested_once_per_seed(
    tmp_path: Path,
) -> None:
    methods = ('LoRA', 'Hydra')
    records = fake(tmp_path, methods).run()
    for method in methods:
        assert [r.job.seed for r in records[method]] == [1, 2]
        for record in records[method]:
            found = record.search
            assert found['budget'] == len(found['trials']) == 8
            assert [t['number'] for t in found['trials']] == list(range(8))
            assert found['default_value'] == 60.0
            assert found['best_value'] == max(t['value'] for t in found['trials'])
            assert found['best_value'] > 60.0
            assert found['space'] == SPACE
            best = found['trials'][found['best']]
            options = {k: record.job.options[k] for k in SPACE}
            assert options == best['options']
            assert record.job.stage == 'final'
            assert 'train_cfg.val_interval' not in record.job.options
            assert record.test_reads == 1
        tried = trials_of(tmp_path, method)
        assert all(j.options['train_cfg.val_interval'] == 4 for j in tried)
        assert {j.stage for j in tried} == {'tune'}


def test_the_live_table_counts_trials_and_final_runs(tmp_path: Path) -> None:
    """It is drawn while a search runs, and in the end as it is left in a file."""
    rows = []

    def watch(search: Any) -> None:
        columns = table_of('digits', search).columns
        rows.append([list(column.cells) for column in columns])

    fake(tmp_path, ('LoRA', 'Hydra'), watch=watch).run()
    names, trials, *_, finals = rows[-1]
    assert names == ['LoRA', 'Hydra']
    assert set(trials) == {'8/8'}
    assert set(finals) == {'2/2'}
    assert rows[0][-1] == ['0/2', '0/2']


def test_the_first_trial_is_the_default_and_a_tie_keeps_it(tmp_path: Path) -> None:
    records = fake(tmp_path, run='fake_runs:quick', trials=4, seeds=(1,)).run()
    (record,) = records['LoRA']
    assert record.search['best'] == 0
    assert record.search['trials'][0]['options'] == {
        RATE: 1e-4,
        'model.backbone.method.rank': 8,
    }
    assert record.job.options == BASE
    assert record.job.variant == 'searched'


def test_a_killed_search_goes_on_and_a_second_call_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fake(tmp_path)
    steps = 0

    def stop(search: Search) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    first.watch = stop
    with pytest.raises(KeyboardInterrupt):
        first.run()
    begun = trials_of(tmp_path, 'LoRA')
    assert 0 < len(begun) < 8

    # As a kill leaves it: a trial that was asked for and never told.
    study = load_study(first.searches[0].journal, 8, 7, 1)
    left = search_module.suggest_from(study.ask(), SPACE)

    records = fake(tmp_path).run()
    tried = trials_of(tmp_path, 'LoRA')
    assert {j.id for j in begun} <= {j.id for j in tried}
    assert records['LoRA'][0].search['budget'] == 8
    assert len(records['LoRA'][0].search['trials']) == 8
    assert left in [t['options'] for t in records['LoRA'][0].search['trials']]
    assert all(len(fake_runs.attempts(tmp_path, j)) == 1 for j in tried)
    states = {t.state.name for t in study.get_trials()}
    assert states == {'COMPLETE'}

    monkeypatch.setattr(fake_runs, 'bowl', None)
    again = fake(tmp_path).run()
    assert again['LoRA'] == records['LoRA']


@pytest.mark.parametrize('after', [2, 5])
def test_a_killed_search_proposes_what_it_would_have_proposed(
    tmp_path: Path, after: int
) -> None:
    """Of eight trials the first two are drawn, the others follow from those before."""

    def stop(search: Search) -> None:
        if len(trials_of(tmp_path / 'killed', 'LoRA')) == after:
            raise KeyboardInterrupt

    killed = fake(tmp_path / 'killed', watch=stop)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    found = []
    for name in ('killed', 'whole'):
        (record,) = fake(tmp_path / name, seeds=(1,)).run()['LoRA']
        found.append([(t['options'], t['value']) for t in record.search['trials']])
    assert found[0] == found[1]
    assert len({str(options) for options, _ in found[0]}) > 4  # nor does it repeat


def test_a_proposal_is_in_the_journal_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages import journal

    search = fake(tmp_path).searches[0]
    search.ask()
    written = []
    append = journal.JournalFileBackend.append_logs
    monkeypatch.setattr(
        journal.JournalFileBackend,
        'append_logs',
        lambda self, logs: [written.append(logs), append(self, logs)],
    )
    search.ask()
    assert len(written) == 1


def test_a_search_runs_in_parallel_processes(tmp_path: Path) -> None:
    executor = make_executor('local', workers=2)
    records = fake(tmp_path, executor=executor, trials=6).run()
    found = records['LoRA'][0].search
    assert len(found['trials']) == 6
    assert found['best_value'] >= found['default_value']
    tried = trials_of(tmp_path, 'LoRA')
    pids = {p for j in tried for p in fake_runs.attempts(tmp_path, j)}
    assert os.getpid() not in pids


def test_another_space_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, trials=2, seeds=(1,)).run()
    monkeypatch.setattr(
        search_module, 'space_of', lambda method, warn: ({RATE: [1.0]}, 'the test')
    )
    with pytest.raises(PETLError, match='another space'):
        fake(tmp_path, trials=2)


def test_two_searches_in_one_folder_are_refused(tmp_path: Path) -> None:
    one, other = fake(tmp_path), fake(tmp_path)
    with alone(one.out), pytest.raises(PETLError, match='another process searches'):
        other.run()


@pytest.mark.usefixtures('own_space')
def test_a_method_without_a_space_says_so(tmp_path: Path) -> None:
    from mmpetl.config.names import config_root

    said: list[str] = []
    space, source = search_module.space_of('LinearProbe', said.append)
    if (config_root() / 'linear_probe' / 'search_space.py').is_file():
        assert source == 'configs/linear_probe/search_space.py'
        assert not said
    else:
        assert (dict(space), source) == (dict(search_module.FALLBACK), 'fallback')
        assert 'has no configs/linear_probe/search_space.py' in said[0]


def test_keys_that_the_recipe_lacks_fail_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        search_module, 'space_of', lambda m, w: ({'optim.lr': [1.0]}, 'the test')
    )
    with pytest.raises(PETLError, match=r"speaks of 'optim\.lr'"):
        fake(tmp_path)


def test_a_budget_of_nothing_and_a_missing_package_fail_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PETLError, match='trials of at least 1'):
        fake(tmp_path, trials=0)
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(PETLError, match='pip install "optuna'):
        fake(tmp_path)


def test_lists_are_choices_too() -> None:
    for value in ([1, 2], {'a': 1}, None, 2, 'x', True):
        assert search_module.decode(search_module.encode(value)) == value


@pytest.mark.parametrize('method', registered_methods())
def test_a_search_that_goes_on_takes_its_own_proposals(method: str) -> None:
    """A journal gives back what it was given as JSON has it."""
    space, source = space_of(method, lambda line: None)
    assert source == f'configs/{registered_methods()[method].stem()}/search_space.py'
    for key, values in space.items():
        if not isinstance(values, dict):
            for value in values:
                check_in_space({key: decode(encode(value))}, space, 'the journal')


# ----------------------------------------------------- budgets and final runs

SMALL = {RATE: [1e-3, 1e-2], 'model.backbone.method.rank': [2, 4]}


def use(monkeypatch: pytest.MonkeyPatch, space: dict[str, Any]) -> None:
    monkeypatch.setattr(
        search_module, 'space_of', lambda method, warn: (space, 'the test')
    )


def settings_of(record: Record) -> list[str]:
    return [setting_key(trial['options']) for trial in record.search['trials']]


def test_a_space_that_is_exhausted_ends_the_search_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, SMALL)
    said: list[str] = []
    (record,) = fake(tmp_path, trials=12, seeds=(1,), warn=said.append).run()['LoRA']
    # The default (rate 1e-4, rank 8) is none of the four points.
    assert record.search['settings'] == record.search['tried'] == 5
    assert record.search['budget'] == 12
    assert len(set(settings_of(record))) == 5
    assert len(trials_of(tmp_path, 'LoRA')) == 5
    assert said == [
        'LoRA has 5 different settings, the default among them, in the test: it gets '
        '5 trials, not 12'
    ]
    assert search_budget(record) == 5


def test_no_setting_is_tried_twice_nor_the_default_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default, 1e-4 and 8, is one of the six.
    use(monkeypatch, {RATE: [1e-4, 1e-3], 'model.backbone.method.rank': [2, 4, 8]})
    (record,) = fake(tmp_path, trials=6, seeds=(1,)).run()['LoRA']
    assert record.search['settings'] == 6
    assert len(set(settings_of(record))) == len(settings_of(record)) == 6


def test_a_setting_is_its_values_however_they_are_written() -> None:
    assert setting_key({'a': 1, 'b': [2]}) == setting_key({'b': (2.0,), 'a': 1.0})
    assert setting_key({'a': True}) != setting_key({'a': 1})
    assert setting_key({'a': '1'}) != setting_key({'a': 1})


def test_the_size_of_a_space() -> None:
    assert num_settings({'a': [1, 2, 2.0], 'b': {'low': 1, 'high': 3}}) == 2 * 3
    assert num_settings({'a': [1], 'b': {'low': 0.1, 'high': 1.0}}) is None
    assert num_settings({'a': [None, [1], {'x': 1}]}) == 3
    assert len(list(settings_in({'a': [1, 2], 'b': {'low': 1, 'high': 3}}))) == 6
    with pytest.raises(PETLError, match='no end: b is a range'):
        list(settings_in({'b': {'low': 0.1, 'high': 1.0}}))


def test_doubles_in_the_journal_of_an_earlier_version_count_once(
    tmp_path: Path,
) -> None:
    from optuna.distributions import CategoricalDistribution as Choice
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    study = fake(tmp_path, trials=4).searches[0].study
    kinds = {
        RATE: FloatDistribution(1e-4, 1e-1, log=True),
        'model.backbone.method.rank': Choice([2, 4, 8]),
    }
    for rate in (1e-3, 1e-4, 1e-3):
        params = {RATE: rate, 'model.backbone.method.rank': 8}
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=kinds)
        )
    (record,) = fake(tmp_path, trials=4, seeds=(1,)).run()['LoRA']
    # The second is the default, the third is the first once more.
    assert [t['number'] for t in record.search['trials']] == [0, 1, 4, 5]
    assert len(set(settings_of(record))) == 4
    assert len(trials_of(tmp_path, 'LoRA')) == 4
    states = [t.state.name for t in study.get_trials()]
    assert states == ['COMPLETE', 'FAIL', 'FAIL', 'COMPLETE', 'COMPLETE']


@pytest.mark.parametrize('after', [2, 4])
def test_a_killed_search_of_a_small_space_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    use(monkeypatch, SMALL)

    def stop(search: Search) -> None:
        if len(trials_of(tmp_path / 'killed', 'LoRA')) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake(tmp_path / 'killed', watch=stop).run()
    found = []
    for name in ('killed', 'whole'):
        (record,) = fake(tmp_path / name, seeds=(1,)).run()['LoRA']
        found.append([(t['options'], t['value']) for t in record.search['trials']])
    assert found[0] == found[1]


def read_times(records: list[Record]) -> str:
    """What the tool says of them."""
    return search_command.read_times(records)


def finals(out: Path) -> list[Record]:
    return [r for r in RecordStore(out).all() if r.job.stage == 'final']


def test_a_search_that_goes_on_replaces_its_final_runs_and_keeps_their_readings(
    tmp_path: Path,
) -> None:
    old = fake(tmp_path, trials=2).run()['LoRA']
    new = fake(tmp_path, trials=12).run()['LoRA']
    assert new[0].search['best_value'] > old[0].search['best_value']
    assert finals(tmp_path) == sorted(new, key=lambda r: r.job.id)
    (table,) = build_tables(finals(tmp_path))
    assert [row.label for row in table.rows] == ['LoRA (searched)']
    # Each run has read once, and so has the one of its seed that it replaces.
    assert [r.test_reads for r in new] == [2, 2]
    assert any('scored the test set more than once' in w for w in table.warnings)
    earlier = new[0].search['earlier']
    assert [e['run'] for e in earlier] == [r.job.id for r in old]
    assert [e['test_reads'] for e in earlier] == [1, 1]
    assert [e['score'] for e in earlier] == [r.score for r in old]
    (folder,) = tmp_path.glob('search/*/replaced')
    assert sorted(p.name for p in folder.iterdir()) == sorted(r.job.id for r in old)
    assert read_times(new) == (
        'read 2 times in 2 runs, and 2 times before in 2 runs of settings that are no '
        'longer the best'
    )
    assert read_times(old) == 'read 2 times in 2 runs'
    # Once more, with seeds that the first had not.
    assert fake(tmp_path, trials=12).run()['LoRA'] == new
    more = fake(tmp_path, trials=12, seeds=(2, 3)).run()['LoRA']
    assert [r.test_reads for r in more] == [2, 1]
    assert leaks(more[0]) == ['scored the test set 2 times']
    # The readings that the search went on after count for the new seed, too.
    assert leaks(more[1]) == [
        'its search went on after final runs had scored the test set 2 times'
    ]


def test_more_trials_without_a_better_one_keep_the_run_and_renew_its_search(
    tmp_path: Path,
) -> None:
    (old,) = fake(tmp_path, trials=2, seeds=(1,), run='fake_runs:quick').run()['LoRA']
    (new,) = fake(tmp_path, trials=5, seeds=(1,), run='fake_runs:quick').run()['LoRA']
    assert (old.search['tried'], new.search['tried']) == (2, 5)
    assert (new.job, new.test_reads) == (old.job, 1)
    assert len(fake_runs.attempts(tmp_path, new.job)) == 1
    # A budget that was spent is not taken back.
    (same,) = fake(tmp_path, trials=3, seeds=(1,), run='fake_runs:quick').run()['LoRA']
    assert same.search['budget'] == same.search['tried'] == 5


def test_a_list_of_final_runs_moves_no_run_of_something_else(tmp_path: Path) -> None:
    """The runs that it names are moved aside, so it must not name any."""
    fake(tmp_path, trials=2).run()
    (path,) = tmp_path.glob('search/*/finals.json')
    own = json.loads(path.read_text())
    for change in ({'method': 'SSF'}, {'variant': ''}, {'stage': 'tune'}, {'x': 1}):
        path.write_text(json.dumps([*own, {**own[0], **change}]))
        with pytest.raises(PETLError, match=r'finals\.json'):
            fake(tmp_path, trials=12)
    path.write_text(json.dumps(own))
    assert fake(tmp_path, trials=12).run()['LoRA']


def test_a_kill_between_two_moves_is_completed_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('killed', 'whole'):
        fake(tmp_path / name, trials=2).run()
    move, moved = finals_module._move, []

    def once(here: Path, aside: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(aside)
        move(here, aside)

    monkeypatch.setattr(finals_module, '_move', once)
    with pytest.raises(KeyboardInterrupt):
        fake(tmp_path / 'killed', trials=12).run()
    assert len(finals(tmp_path / 'killed')) == 1
    monkeypatch.setattr(finals_module, '_move', move)
    found = []
    for name in ('killed', 'whole'):
        records = fake(tmp_path / name, trials=12).run()['LoRA']
        found.append([(r.job, r.test_reads, r.search['earlier']) for r in records])
    assert found[0] == found[1]


def test_a_reading_of_a_run_that_left_no_record_counts(tmp_path: Path) -> None:
    (old,) = fake(tmp_path, trials=2, seeds=(1,)).run()['LoRA']
    folder = RecordStore(tmp_path).folder(old.job)
    (folder / 'record.json').unlink()
    (folder / 'log.jsonl').write_text('{"step": 4, "test": {"accuracy/top1": 1.0}}\n')
    (new,) = fake(tmp_path, trials=12, seeds=(1,)).run()['LoRA']
    assert new.test_reads == 2


def test_final_runs_of_a_version_without_a_list_are_found(tmp_path: Path) -> None:
    (old,) = fake(tmp_path, trials=2, seeds=(1,)).run()['LoRA']
    next(tmp_path.glob('search/*/finals.json')).unlink()
    (new,) = fake(tmp_path, trials=12, seeds=(1,)).run()['LoRA']
    assert [e['run'] for e in new.search['earlier']] == [old.job.id]


def test_the_verifier_finds_what_a_search_hides(tmp_path: Path) -> None:
    from mmpetl.benchmark.verify import checks

    fake(tmp_path, trials=2, seeds=(1,)).run()
    (record,) = fake(tmp_path, trials=12, seeds=(1,)).run()['LoRA']
    folder = RecordStore(tmp_path).folder(record.job)

    def falsified() -> list[str]:
        run = SimpleNamespace(record=record, folder=folder)
        return [c.field for c in checks.search(run) if c.found == 'falsified']

    assert falsified() == []
    search = record.search
    record.search = {**search, 'earlier': []}
    assert falsified() == ['search.earlier']
    # A run of another seed hides them no better.
    job = record.job
    record.job = replace(job, seed=7)
    assert falsified() == ['search.earlier']
    record.job = job
    # As a record was before the search went on.
    best = search['trials'][search['best']]
    others = [t for t in search['trials'] if t['value'] is None or t is best]
    record.search = {**search, 'trials': [search['trials'][0], *others]}
    assert falsified() == ['search.trials']


def test_a_run_that_somebody_works_on_is_not_moved(tmp_path: Path) -> None:
    (old,) = fake(tmp_path, trials=2, seeds=(1,)).run()['LoRA']
    with RecordStore(tmp_path).claim(old.job) as mine:
        assert mine
        with pytest.raises(PETLError, match='another process works on it'):
            fake(tmp_path, trials=12, seeds=(1,)).run()


# ------------------------------------------------------------------ real runs

TINY = {
    'train_cfg.max_epochs': 4,
    'train_dataloader.batch_size': 10,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 4,
    'param_scheduler.1.T_max': 3,
}


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    from mmpetl.datasets.mini import make

    make(tmp_path / 'data', names=['vtab-1k/digits'], size='tiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(tmp_path / 'data'))
        yield tmp_path / 'data' / 'vtab-1k' / 'digits'


def test_tuning_never_touches_the_test_set_and_the_end_reads_it_once(
    data: Path, tmp_path: Path
) -> None:
    """The test set is not on disk while settings are chosen."""
    hidden = tmp_path / 'hidden'
    hidden.mkdir()
    for name in ('test.txt', 'images/test'):
        shutil.move(data / name, hidden / Path(name).name)
    out = tmp_path / 'out'
    search = fake(
        out,
        trials=3,
        seeds=(1,),
        base={'LoRA': TINY},
        run='mmpetl.benchmark.job:run_task',
    )
    search.tune()
    shutil.move(hidden / 'test.txt', data / 'test.txt')
    shutil.move(hidden / 'test', data / 'images' / 'test')
    (record,) = search.finish()['LoRA']

    tried = [r for r in RecordStore(out).all() if r.job.stage == 'tune']
    assert {r.test_reads for r in tried} == {0}
    assert {r.status for r in tried} <= {'done', 'pruned'}
    assert not list(out.glob('runs/*tune*/predictions.npz'))
    for one in tried:
        if one.status == 'done':
            curve = one.curves['val/accuracy/top1']
            assert [step for step, _ in curve] == [2, 4, 6, 8]
            assert one.score == curve[-1][1]
    assert record.test_reads == 1
    lines = list(read_run_log(RecordStore(out).folder(record.job) / 'log.jsonl'))
    assert sum('test' in line for line in lines) == 1
    assert not any('val' in line for line in lines)
    # All 30 labelled images, in batches of 10.
    assert record.curves['loss'][-1][0] == 4 * 3
    assert record.search['split'] == 'train800 / val200'
    assert record.search['best_value'] >= record.search['default_value']
    assert len(record.search['trials']) == 3
    saved = json.loads(next(out.glob('search/*/trials.json')).read_text())
    assert saved == record.search


@pytest.mark.slow
def test_a_trial_far_behind_the_others_is_pruned(data: Path, tmp_path: Path) -> None:
    from mmpetl.benchmark.job import run_job
    from mmpetl.benchmark.search import suggest_from

    journal = tmp_path / 'journal.log'
    study = load_study(journal, 8, 0, 1)
    for _ in range(3):
        trial = study.ask()
        suggest_from(trial, SPACE)
        for step in (2, 4, 6, 8):
            trial.report(99.0, step)
        study.tell(trial, 99.0)
    bad = study.ask()
    job = Job('mini/digits', 'BitFit', stage='tune', options=TINY)
    job.options['train_cfg.val_interval'] = 1
    pruner = {'journal': str(journal), 'trial': bad.number, 'budget': 8, 'warmup': 1}
    record = run_job(job, tmp_path / 'run', pruner=pruner)
    assert record.status == 'pruned'
    assert record.curves['loss'][-1][0] == 2
    assert record.test_reads == 0
    assert study.get_trials()[bad.number].intermediate_values.keys() == {2}


@pytest.fixture(scope='module')
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """That of a study with one finished trial."""
    path = tmp_path_factory.mktemp('journal') / 'journal.log'
    study = load_study(path, 4, 0, 1)
    trial = study.ask()
    trial.suggest_int('rank', 1, 8)
    trial.report(1.0, 1)
    study.tell(trial, 0.5)
    return path.read_bytes()


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (b'"op_code":0', b'"op_code":99'),
        (b'"worker_id"', b'"\xff\xffer_id"'),
        (b'"directions":[2]', b'"directions":[7]'),
        (b'"op_code":4', b'"op_code":40'),
        (b'[0.5]', b'["0.5"]'),
        (b'}\n{', b'\n{'),
    ],
)
def test_a_damaged_journal_is_refused_in_a_line(
    journal: bytes, tmp_path: Path, old: bytes, new: bytes
) -> None:
    path = tmp_path / 'journal.log'
    path.write_bytes(journal)
    assert len(load_study(path, 4, 0, 1).trials) == 1
    assert old in journal
    path.write_bytes(journal.replace(old, new, 1))
    with pytest.raises(PETLError, match='is damaged.*remove the folder of'):
        load_study(path, 4, 0, 1)
