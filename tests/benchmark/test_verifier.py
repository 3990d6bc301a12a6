"""The verifier passes what a run left, and names what was changed in it."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmpetl.benchmark.collect import curves_of
from mmpetl.benchmark.comparable import leaks
from mmpetl.benchmark.job import run_job
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.verdicts import (
    Verdict,
    note_of,
    read_verdict,
    standing_of,
    standings,
    write_verdict,
)
from mmpetl.benchmark.verify import verify_run
from mmpetl.config.literal import read_literal_config
from mmpetl.core import PETLError
from mmpetl.engine.hooks.predictions import read_predictions, write_predictions
from mmpetl.shipped import shipped

OPTIONS = {
    'train_cfg.max_epochs': 2,
    'train_dataloader.batch_size': 10,
    'optim_wrapper.optimizer.lr': 0.01,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 2,
    'param_scheduler.1.T_max': 1,
}
RANK = {'model.backbone.method.rank': 2}
JOBS = {
    'lora': Job('mini/digits', 'LoRA', seed=1, options={**OPTIONS, **RANK}),
    'seed': Job('mini/digits', 'LoRA', seed=2, options={**OPTIONS, **RANK}),
    'method': Job('mini/digits', 'BitFit', seed=1, options=OPTIONS),
    'passes': Job('mini/digits', 'BitFit', seed=3, options={**OPTIONS, 'batch': 20}),
}


@pytest.fixture(scope='module', autouse=True)
def _data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from mmpetl.datasets.mini import make

    root = tmp_path_factory.mktemp('data')
    make(root, names=['vtab-1k/digits'], size='tiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(root))
        yield


@pytest.fixture(scope='module')
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark folder of four runs."""
    store = RecordStore(tmp_path_factory.mktemp('bench'))
    for job in JOBS.values():
        store.write(run_job(job, store.folder(job)))
    return store.out


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    """The folder of one run, to do with as one likes."""
    return copy_of(out, tmp_path)


def copy_of(out: Path, place: Path, name: str = 'lora') -> Path:
    folder = place / 'runs' / JOBS[name].id
    shutil.copytree(RecordStore(out).folder(JOBS[name]), folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = '') -> None:
    """Change a JSON file of a run by hand."""
    path = folder / (name or 'record.json')
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def fields(verdict: Verdict) -> set[str]:
    return {check.field for check in verdict.falsified}


def faults(verdict: Verdict) -> list[str]:
    return [check.line for check in (*verdict.falsified, *verdict.unchecked)]


def test_what_runs_left_is_verified(out: Path) -> None:
    for job in JOBS.values():
        verdict = verify_run(RecordStore(out).folder(job))
        assert verdict.status == 'verified', faults(verdict)
        assert 'metrics.accuracy/top1' in {c.field for c in verdict.checks}
        assert 'predictions.labels' in {c.field for c in verdict.checks}
        assert {'config.py', 'delta.safetensors', 'log.jsonl'} <= set(verdict.files)


def test_steps_and_curves_of_a_run_that_accumulates_count_alike(out: Path) -> None:
    """In every view: with curves, without them, and where the log is read again."""
    store = RecordStore(out)
    for curves in (True, False):
        found = store.of([JOBS['passes']], curves=curves)[JOBS['passes'].id]
        assert found.batch == 20
        assert found.curves['loss'][-1][0] == found.steps
        assert leaks(found) == []
        edited = dataclasses.replace(found, steps=2 * found.steps)
        assert 'its record contradicts itself' in leaks(edited)[0]


def test_curves_that_count_passes_as_older_versions_wrote_them_hold(
    out: Path, tmp_path: Path
) -> None:
    folder = copy_of(out, tmp_path, 'passes')
    lines = [json.loads(x) for x in (folder / 'log.jsonl').read_text().splitlines()]
    edit(folder, lambda r: r.update(curves=curves_of(lines)))
    store = RecordStore(tmp_path)
    for curves in (True, False):
        found = store.of([JOBS['passes']], curves=curves)[JOBS['passes'].id]
        assert found.curves['loss'][-1][0] == 2 * found.steps
        assert leaks(found) == []
        for steps in (2 * found.steps + 1, found.steps - 1):
            edited = dataclasses.replace(found, steps=steps)
            assert 'its record contradicts itself' in leaks(edited)[0]
    verdict = verify_run(folder)
    assert verdict.status == 'verified', faults(verdict)
    # One unit for all curves of a record, and the numbers of the log.
    steps = curves_of(lines, 2)['lr']
    for name, points in (('lr', steps), ('loss', [[1, 0.1]])):
        edit(folder, lambda r, n=name, p=points: r['curves'].update({n: p}))
        assert {c.split('.')[0] for c in fields(verify_run(folder))} == {'curves'}


def test_an_unknown_metric_of_an_older_version_is_unchecked(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: Any) -> str:
        raise PETLError('which metric tables rank by is not known')

    monkeypatch.setattr('mmpetl.benchmark.verify.checks.primary_of', unknown)
    verdict = verify_run(copied)
    assert verdict.falsified == ()
    (found,) = verdict.unchecked
    assert found.field == 'primary'
    assert 'which metric tables rank by is not known' in found.note


def test_a_run_of_another_machine_is_verified(copied: Path) -> None:
    """Its clone and its data lay elsewhere; what lies in them is the same."""
    path = copied / 'config.py'
    text = path.read_text()
    data = os.environ['MMPETL_DATA']
    assert str(shipped()) in text
    assert data in text
    there = text.replace(str(shipped()), '/elsewhere/clone')
    path.write_text(there.replace(data, '/elsewhere/data'))
    verdict = verify_run(copied)
    assert verdict.status == 'verified', faults(verdict)
    for was, other in (('mini_vit.', 'my_vit.'), ('/vtab-1k', '/other')):
        assert was in there
        path.write_text(there.replace(was, other))
        assert fields(verify_run(copied)) >= {'config_hash'}


def test_the_delta_gives_the_metrics_again(out: Path) -> None:
    folder = RecordStore(out).folder(JOBS['lora'])
    verdict = verify_run(folder, 'delta')
    assert verdict.status == 'verified', faults(verdict)
    assert 'predictions.logits' in {c.field for c in verdict.checks}


def metric(folder: Path) -> None:
    """As much as the forger knows to change together."""

    def change(record: dict[str, Any]) -> None:
        record['metrics']['accuracy/top1'] += 10
        record['ppt'] = None

    edit(folder, change)


def metric_everywhere(folder: Path) -> None:
    """A metric is changed in record, log and delta, and the PPT follows."""
    from mmpetl.benchmark.collect import ppt_of

    edit(folder, lambda r: r['metrics'].update({'accuracy/top1': 90.0}))

    def follow(record: dict[str, Any]) -> None:
        record['ppt'] = ppt_of(record['metrics'], record['primary'], record['counts'])

    edit(folder, follow)
    edit(folder, lambda r: r['metrics'].update({'accuracy/top1': 90.0}), 'delta.json')
    lines = (folder / 'log.jsonl').read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    for line in lines:
        if 'test' in line:
            line['test'] = {'accuracy/top1': 90.0}
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'log.jsonl').write_text(text)


def better_predictions(folder: Path) -> None:
    logits, labels = read_predictions(folder / 'predictions.npz')
    logits[np.arange(len(labels)), labels] = 50
    write_predictions(folder / 'predictions.npz', logits, labels)


def other_labels(folder: Path) -> None:
    """Labels are what the model says, so that every picture is right."""
    logits, _ = read_predictions(folder / 'predictions.npz')
    write_predictions(folder / 'predictions.npz', logits, logits.argmax(1))


def delta_from(name: str) -> Callable[[Path], None]:
    def take(folder: Path, out: Path) -> None:
        other = RecordStore(out).folder(JOBS[name])
        for end in ('json', 'safetensors'):
            shutil.copy(other / f'delta.{end}', folder / f'delta.{end}')
        # The metrics in it are the one thing by which seeds would differ.
        told = json.loads((folder / 'record.json').read_text())['metrics']
        edit(folder, lambda facts: facts.update(metrics=told), 'delta.json')

    take.needs_out = True
    return take


def longer_config(folder: Path) -> None:
    path = folder / 'config.py'
    text = path.read_text()
    assert 'max_epochs=2' in text
    path.write_text(text.replace('max_epochs=2', 'max_epochs=200'))


def renamed(folder: Path) -> Path:
    return folder.rename(folder.with_name('mini-digits--lora--better--s7'))


PLANTED: dict[str, tuple[Callable[..., Any], str]] = {
    'metric': (metric, 'metrics.accuracy/top1'),
    'metric, with log, delta and PPT': (metric_everywhere, 'metrics.accuracy/top1'),
    'predictions': (better_predictions, 'metrics.accuracy/top1'),
    'labels': (other_labels, 'predictions.labels'),
    'counts': (
        lambda f: edit(f, lambda r: r['counts'].update(delta=12)),
        'counts.delta',
    ),
    'counts, with their file': (
        lambda f: [
            edit(f, lambda r: r['counts'].update(delta=12)),
            edit(f, lambda r: r['counts'].update(delta=12), 'efficiency.json'),
        ],
        'counts.delta',
    ),
    'delta of another method': (delta_from('method'), 'delta.method'),
    'config': (longer_config, 'config_hash'),
    'features': (
        lambda f: edit(f, lambda r: r.update(features={'train': {'key': 'a' * 32}})),
        'features',
    ),
    'digest of the recipe': (
        lambda f: edit(f, lambda r: r.update(recipe_digest='0' * 16)),
        'recipe_digest',
    ),
    'hash of the config': (
        lambda f: edit(f, lambda r: r.update(config_hash='0' * 16)),
        'config_hash',
    ),
    'options of the job': (
        lambda f: edit(
            f, lambda r: r['job']['options'].update({'train_cfg.max_epochs': 1})
        ),
        'id',
    ),
    'readings of the test set': (
        lambda f: edit(f, lambda r: r.update(test_reads=0)),
        'test_reads',
    ),
    'curve': (
        lambda f: edit(f, lambda r: r['curves']['loss'][-1].__setitem__(1, 1e-3)),
        'curves.loss',
    ),
    'point of a curve': (
        lambda f: edit(f, lambda r: r['curves']['lr'].pop()),
        'curves.lr',
    ),
    'fingerprint of the base': (
        lambda f: edit(f, lambda r: r['base'].update(fingerprint='f' * 16)),
        'base.fingerprint',
    ),
    'fingerprint, also of the delta': (
        lambda f: [
            edit(f, lambda r: r['base'].update(fingerprint='f' * 16)),
            edit(f, lambda r: r.update(fingerprint='f' * 16), 'delta.json'),
        ],
        'base.fingerprint',
    ),
    'digest of the training data': (
        lambda f: edit(f, lambda r: r['data']['train'].update(digest='0' * 64)),
        'data.train.digest',
    ),
    'count of the test data': (
        lambda f: edit(f, lambda r: r['data']['test'].update(count=100)),
        'data.test.count',
    ),
    'bytes of the delta': (
        lambda f: edit(f, lambda r: r.update(delta_bytes=1)),
        'delta_bytes',
    ),
    'batch': (lambda f: edit(f, lambda r: r.update(batch=64)), 'batch'),
    'length': (lambda f: edit(f, lambda r: r.update(steps=600)), 'steps'),
    'PPT': (lambda f: edit(f, lambda r: r.update(ppt=0.999)), 'ppt'),
    'settings': (lambda f: edit(f, lambda r: r.update(settings={})), 'settings'),
    'preprocessing': (
        lambda f: edit(f, lambda r: r['preprocessing'].update(augmentation='none')),
        'preprocessing',
    ),
    'time': (lambda f: edit(f, lambda r: r.update(seconds=0.1)), 'seconds'),
    'memory': (
        lambda f: edit(f, lambda r: r.update(peak_memory_bytes=1)),
        'peak_memory_bytes',
    ),
    'seed': (lambda f: edit(f, lambda r: r['job'].update(seed=3)), 'id'),
    'name of the folder': (renamed, 'id'),
    'trained numbers': (
        lambda f: (f / 'delta.safetensors').write_bytes(
            (f / 'delta.safetensors').read_bytes()[:-4] + b'\0\0\0\0'
        ),
        'delta',
    ),
}


ALWAYS = {
    'PPT',
    'config',
    'counts, with their file',
    'curve',
    'delta of another method',
    'digest of the training data',
    'fingerprint of the base',
    'labels',
    'metric, with log, delta and PPT',
    'name of the folder',
    'predictions',
    'readings of the test set',
}
"""What is planted in every run of the suite; the others are slow."""


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in PLANTED
    ],
)
def test_what_is_planted_is_found(name: str, copied: Path, out: Path) -> None:
    plant, field = PLANTED[name]
    more = (out,) if getattr(plant, 'needs_out', False) else ()
    folder = plant(copied, *more)
    folder = folder if isinstance(folder, Path) else copied
    verdict = verify_run(folder)
    assert verdict.status == 'falsified'
    assert field in fields(verdict), [c.line for c in verdict.falsified]


def test_a_delta_of_another_seed_is_found_by_testing_it(
    copied: Path, out: Path
) -> None:
    delta_from('seed')(copied, out)
    assert verify_run(copied).status == 'verified'  # its files cannot tell
    verdict = verify_run(copied, 'delta')
    assert 'predictions.logits' in fields(verdict)


def test_a_forger_of_every_file_is_found_by_the_delta(copied: Path) -> None:
    """Metrics, log and predictions agree with each other, and not with the model."""
    better_predictions(copied)
    logits, labels = read_predictions(copied / 'predictions.npz')
    assert (logits.argmax(1) == labels).all()
    metric_everywhere(copied)
    for name in ('record.json', 'delta.json'):
        edit(copied, lambda r: r['metrics'].update({'accuracy/top1': 100.0}), name)
    text = (copied / 'log.jsonl').read_text().replace('90.0', '100.0')
    (copied / 'log.jsonl').write_text(text)

    def follow(record: dict[str, Any]) -> None:
        from mmpetl.benchmark.collect import ppt_of

        record['ppt'] = ppt_of(record['metrics'], record['primary'], record['counts'])

    edit(copied, follow)
    assert verify_run(copied).status == 'verified'
    found = fields(verify_run(copied, 'delta'))
    assert {'metrics.accuracy/top1', 'predictions.logits'} <= found


def test_what_cannot_be_looked_at_is_said(copied: Path) -> None:
    (copied / 'delta.safetensors').unlink()
    (copied / 'predictions.npz').unlink()
    verdict = verify_run(copied)
    assert verdict.status == 'not verified'
    notes = {c.field: c.note for c in verdict.unchecked}
    assert 'predictions.npz' in notes['metrics']
    assert 'delta.safetensors' in notes['delta']


def test_a_record_without_metrics_is_not_verified(copied: Path) -> None:
    edit(copied, lambda r: r.update(metrics={}, primary='', ppt=None))
    verdict = verify_run(copied)
    assert 'the record has no metric' in [c.note for c in verdict.unchecked]
    assert 'metrics.accuracy/top1' in fields(verdict)  # the log has one


def test_a_config_that_runs_code_is_not_run(copied: Path, tmp_path: Path) -> None:
    path = copied / 'config.py'
    mark = tmp_path / 'ran'
    path.write_text(f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n')
    verdict = verify_run(copied, 'delta')
    assert not mark.exists()
    assert 'config' in fields(verdict)


def test_options_that_import_are_refused(copied: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record['job']['options']['custom_imports.imports'] = ['os']
        record['id'] = Job(**record['job']).id

    edit(copied, change)
    verdict = verify_run(copied)
    assert 'id' in fields(verdict)
    assert any('can import code' in c.note for c in verdict.unchecked)


def test_a_verdict_is_of_the_bytes_of_its_record(copied: Path) -> None:
    assert standing_of(copied) == ('not looked at', None)
    write_verdict(copied, verify_run(copied))
    assert standing_of(copied)[0] == 'verified'
    assert read_verdict(copied).status == 'verified'
    job = JOBS['lora']
    found = standings(copied.parents[1], [job])
    assert found == {job.id: 'verified (files)'}
    assert note_of(found, [job.id]) == (
        'Verified: 1 of 1 runs (from the files of the run).'
    )
    edit(copied, lambda r: r.update(seconds=1.0))
    assert standing_of(copied)[0] == 'stale'
    note = note_of(standings(copied.parents[1], [job]), [job.id])
    assert note == (
        f'Verified: 0 of 1 runs; 1 edited since they were verified: {job.id}.'
    )


def test_a_verdict_that_is_no_file_is_not_passed_over(tmp_path: Path) -> None:
    job = JOBS['lora']
    path = tmp_path / 'runs' / job.id / 'verified.json'
    path.mkdir(parents=True)
    assert standings(tmp_path, [job]) == {job.id: 'stale'}
    path.rmdir()
    assert standings(tmp_path, [job]) == {job.id: 'not looked at'}


def test_a_verdict_that_contradicts_its_checks_is_refused(copied: Path) -> None:
    edit(copied, lambda r: r.update(ppt=0.999))
    write_verdict(copied, verify_run(copied))
    edit(copied, lambda v: v.update(status='verified'), 'verified.json')
    with pytest.raises(PETLError, match='says verified, its checks say falsified'):
        read_verdict(copied)


def test_the_command_ends_as_its_verdicts_are(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def ended(*args: str) -> int:
        tool = Path(__file__).resolve().parents[2] / 'tools' / 'benchmark' / 'verify.py'
        monkeypatch.setattr(sys, 'argv', [str(tool), str(tmp_path), *args])
        try:
            runpy.run_path(str(tool), run_name='__main__')
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    copies = {name: copy_of(out, tmp_path, name) for name in ('lora', 'method')}
    assert ended() == 0
    assert '2 records from the files of the run: 2 verified' in capsys.readouterr().out
    (copies['method'] / 'predictions.npz').unlink()
    assert ended('--runs', '*bitfit*') == 3
    edit(copies['lora'], lambda r: r.update(test_reads=7))
    assert ended() == 1
    said = capsys.readouterr()
    assert 'test_reads: recorded 7, found 1' in said.out
    assert 'error: 1 records are falsified' in said.err
    assert (copies['lora'] / 'verified.json').is_file()


@pytest.mark.slow
def test_the_command_finds_what_it_plants(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tool = Path(__file__).resolve().parents[2] / 'tools/misc/plant_falsifications.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(out)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    assert not end.value.code
    assert '12 of 12 found' in capsys.readouterr().out


@pytest.mark.slow
def test_training_again_ends_equal(out: Path) -> None:
    verdict = verify_run(RecordStore(out).folder(JOBS['method']), 'retrained')
    # Records of this format may not know their threads, and a difference is then said.
    assert not verdict.falsified, [c.line for c in verdict.falsified]
    assert 'metrics.accuracy/top1' not in {c.field for c in verdict.unchecked}


def test_a_written_out_config_is_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / 'c.py'
    path.write_text("a = dict(b=[1, -2.5, (None, True)], c='x')\nd = {'e': {1}}\n")
    assert read_literal_config(path) == {
        'a': {'b': [1, -2.5, (None, True)], 'c': 'x'},
        'd': {'e': {1}},
    }
    for text, said in (
        ('a = open("x")', r'"open.*" is no literal'),
        ('a = dict(**b)', 'is no literal'),
        ('import os', 'line 1'),
        ('a.b = 1', 'only gives names'),
        ('a = (', 'is no config'),
    ):
        path.write_text(text)
        with pytest.raises(PETLError, match=said):
            read_literal_config(path)


DENSE = {
    'ade20k': ('ADEChallengeData2016', {'train_cfg.max_iters': 2}),
    # So low that a model of two steps finds something to score.
    'coco': (
        'coco',
        {'train_cfg.max_epochs': 1, 'model.test_cfg.rcnn.score_thr': 0.001},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DENSE)
def test_a_dense_run_is_verified_from_what_its_evaluators_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmpetl.datasets.mini import make

    data, length = DENSE[name]
    make(tmp_path / 'data', names=[data], size='tiny')
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'data'))
    options = {**length, 'train_dataloader.batch_size': 2, **RANK}
    job = Job(f'mini/{name}', 'LoRA', seed=1, options=options)
    store = RecordStore(tmp_path / 'bench')
    folder = store.folder(job)
    store.write(run_job(job, folder))
    assert (folder / 'results.json.gz').is_file()
    assert not (folder / 'predictions.npz').exists()
    for level in ('files', 'delta'):
        verdict = verify_run(folder, level)
        assert verdict.status == 'verified', faults(verdict)
    primary = store.read(job).primary
    edit(folder, lambda r: r['metrics'].update({primary: 0.99}))
    assert f'metrics.{primary}' in fields(verify_run(folder))
