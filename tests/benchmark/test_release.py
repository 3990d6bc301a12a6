"""A release holds what verifies it, and every file to its checksum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.release import faults, read_index, release, runs_of, words_of
from mmpetl.benchmark.verdicts import Check, Verdict, digest_of, write_verdict
from mmpetl.cli.main import mmpetl as command
from mmpetl.core import PETLError


def bench(folder: Path, verified: bool = True) -> RecordStore:
    """Two runs with a few of their files, and things that stay behind."""
    store = RecordStore(folder / 'bench')
    for seed, score in ((1, 70.0), (2, 72.0)):
        record = Record(
            Job('mini/digits', 'LoRA', seed=seed),
            'done',
            family='reparameterisation',
            task='digits',
            group='natural',
            backbone='mini ViT',
            metrics={'accuracy/top1': score},
            primary='accuracy/top1',
            counts={'delta': 10, 'selected': 0, 'head': 5, 'base': 100},
            seconds=30.0,
        )
        store.write(record)
        run = store.folder(record.job)
        (run / 'config.py').write_text(f'seed = {seed}\n')
        (run / 'console.log').write_text('secret of this machine\n')
        (run / 'epoch_3.pth').write_bytes(b'checkpoint')
        if verified:
            verify(run)
    store.write(Record(Job('mini/digits', 'SSF'), 'failed', error='no'))
    return store


def verify(run: Path, *checks: Check) -> None:
    checks = checks or (Check('metrics.accuracy/top1', 'holds'),)
    digest = digest_of(run / 'record.json')
    write_verdict(run, Verdict(run.name, 'files', checks, digest))


def test_a_release_has_every_file_in_its_index(tmp_path: Path) -> None:
    store = bench(tmp_path)
    to = tmp_path / 'mini-1.0'
    found = release(store.out, to, 'mini 1.0')
    assert faults(to) == []
    index = read_index(to)
    assert index.runs == {'verified': 2}
    assert words_of(found)['seconds'] == 60.0
    names = set(index.files)
    run = f'runs/{Job("mini/digits", "LoRA", seed=1).id}'
    assert {f'{run}/record.json', f'{run}/config.py', f'{run}/verified.json'} <= names
    assert {'report.html', 'tables.md', 'tables.csv'} <= names
    assert not any('console' in n or n.endswith('.pth') or 'ssf' in n for n in names)
    assert '71.00' in (to / 'tables.md').read_text()
    page = (to / 'report.html').read_text(encoding='utf-8')
    assert '<h1>mini 1.0</h1>' in page
    assert 'Verified: 2 of 2 runs' in (to / 'tables.md').read_text()
    assert len(RecordStore(to).all()) == 2
    assert not list(tmp_path.glob('*.part'))
    with pytest.raises(PETLError, match='is there already'):
        release(store.out, to, 'mini 1.0')


def test_what_was_changed_in_a_release_is_named(tmp_path: Path) -> None:
    to = tmp_path / 'r'
    release(bench(tmp_path).out, to, 'r')
    run = to / 'runs' / Job('mini/digits', 'LoRA', seed=1).id
    text = (run / 'config.py').read_text()
    (run / 'config.py').write_text(text.replace('1', '3'))
    (run / 'record.json').unlink()
    (to / 'more.txt').write_text('x')
    verify_again = json.loads((run / 'verified.json').read_text()) | {'when': 'today'}
    (run / 'verified.json').write_text(json.dumps(verify_again))
    assert faults(to) == [
        f'runs/{run.name}/config.py is another file than the one released',
        f'runs/{run.name}/record.json is missing',
        'more.txt is not of the release',
    ]


def test_a_line_of_a_run_says_what_was_run(tmp_path: Path) -> None:
    to = tmp_path / 'r'
    release(bench(tmp_path).out, to, 'r')
    one, other = (f'runs/mini-digits--lora--s{seed}' for seed in (1, 2))
    lines = [f'{one}/config.py is missing', f'{other}/a b is x', 'more.txt is y']
    record = to / other / 'record.json'
    record.write_text(record.read_text().replace('LoRA', 'SSF'))
    expected = [f'{lines[0]} (LoRA on mini/digits, seed 1)', *lines[1:]]
    assert runs_of(to, lines) == expected
    record.unlink()
    assert runs_of(to, lines) == expected
    (to / one / 'config.py').unlink()
    done = CliRunner().invoke(command, ['benchmark', 'release', '--check', str(to)])
    assert done.exit_code == 1
    assert f'{one}/config.py is missing (LoRA on mini/digits, seed 1)' in done.output


def test_an_index_cannot_name_files_outside(tmp_path: Path) -> None:
    to = tmp_path / 'r'
    release(bench(tmp_path).out, to, 'r')
    data = json.loads((to / 'index.json').read_text())
    data['files']['../bench/plan.json'] = {'bytes': 1, 'sha256': 'x'}
    (to / 'index.json').write_text(json.dumps(data))
    assert faults(to) == ['../bench/plan.json is no path inside of the release']


def test_only_verified_runs_are_released(tmp_path: Path) -> None:
    store = bench(tmp_path, verified=False)
    to = tmp_path / 'r'
    with pytest.raises(PETLError, match='is not looked at, and is not released'):
        release(store.out, to, 'r')
    assert not to.exists()
    runs = [store.folder(Job('mini/digits', 'LoRA', seed=s)) for s in (1, 2)]
    verify(runs[0])
    verify(runs[1], Check('delta', 'unchecked', note='it is not there'))
    with pytest.raises(PETLError, match='is not verified, and is not released'):
        release(store.out, to, 'r')
    assert release(store.out, to, 'r', unverified=True).index.runs == {
        'not verified': 1,
        'verified': 1,
    }
    verify(runs[1], Check('ppt', 'falsified', 1, 2))
    with pytest.raises(PETLError, match='is falsified, and is not released'):
        release(store.out, tmp_path / 's', 's', unverified=True)
    verify(runs[1])
    text = (runs[1] / 'record.json').read_text()
    (runs[1] / 'record.json').write_text(text.replace('72.0', '92.0'))
    with pytest.raises(PETLError, match='is stale, and is not released'):
        release(store.out, tmp_path / 's', 's', unverified=True)


def test_a_folder_without_results_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(PETLError, match='no finished final run'):
        release(tmp_path, tmp_path / 'r', 'r')
    with pytest.raises(PETLError, match='is no release'):
        faults(tmp_path)
