"""The table of hostile inputs: it sees what is planted, and rows of it are good."""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpetl.core import PETLError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'tools' / 'misc'
NAMES = (
    *('case', 'run', 'healthy', 'calls', 'areas'),
    *('targets', 'tries', 'edits', 'samples'),
)


@pytest.fixture(scope='module')
def tools() -> SimpleNamespace:
    """The modules of the table and of the fuzzers, as they import one another."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(f'hostile.{name}') for name in NAMES}
        found['table'] = importlib.import_module('hostile_inputs')
        found['fuzz'] = importlib.import_module('fuzz')
        return SimpleNamespace(**found)
    finally:
        sys.path.remove(str(FOLDER))


PLANTED = {
    'healthy': 'print("fine")',
    'refused': 'sys.exit(print("error: no", file=sys.stderr) or 1)',
    'told': 'print("odd: 7 lines twice")',
    'silent': 'print("another")',
    'traceback': 'raise ValueError("planted")',
    'no line': 'sys.exit(3)',
    'two lines': 'sys.exit(print("error: a\\nerror: b", file=sys.stderr) or 1)',
    'hung': 'import time; time.sleep(60)',
    'memory': 'import time; x = bytearray(700 << 20); time.sleep(0.3); print("fine")',
    'code ran': 'open("canary", "w"); sys.exit("error: no")',
    'died': 'import os; os.kill(os.getpid(), 9)',
    'caught traceback': 'import traceback; traceback.print_stack(); '
    'print("Traceback (most recent call last)"); print("fine")',
}
"""What a command does, by what the table must say of it."""


@pytest.fixture
def planted(tools, tmp_path, monkeypatch):
    """``planted(name, want=...)`` is the row of a command that does what it is told."""
    # Forks begin with what this process holds, which must not shrink between them.
    gc.collect()
    monkeypatch.setattr(tools.run, 'MEMORY', 128 << 20)
    for name, code in PLANTED.items():
        (tmp_path / f'{name}.py').write_text(f'import sys\n{code}\n')

    def prepare(bench):
        return tools.case.Call(str(tmp_path / 'healthy.py'), [])

    base = tools.case.Base('planted', prepare, tools.healthy.printed)
    stand = tools.run.Stand(tmp_path / 'stand', {'planted': base})

    def run(name: str, **facts) -> dict:
        # A busy machine takes a second for the memory that another asks for.
        monkeypatch.setattr(tools.run, 'SECONDS', 1.0 if name == 'hung' else 20.0)

        def spoil(bench):
            bench.call.tool = str(tmp_path / f'{name}.py')

        return stand.judge(tools.case.Case('x', name, 'planted', spoil, **facts))

    return run


def test_what_is_planted_is_seen(planted):
    for name in ('refused', 'silent', 'traceback', 'no line', 'hung', 'memory'):
        assert planted(name)['state'] == name
    for name in ('code ran', 'died'):
        assert planted(name)['state'] == name
    assert planted('two lines')['state'] == 'no line'
    assert planted('caught traceback')['state'] == 'traceback'
    assert planted('traceback')['line'] == 'ValueError: planted'
    assert planted('healthy')['state'] == 'taken'
    assert planted('told', says='twice') | {'seconds': 0, 'mib': 0} == {
        'area': 'x',
        'input': 'told',
        'command': 'told.py',
        'state': 'told',
        'exit': 0,
        'line': 'odd: 7 lines twice',
        'seconds': 0,
        'mib': 0,
        'ok': True,
    }
    assert planted('told')['state'] == 'silent'


def test_what_a_row_wants_counts(planted):
    assert planted('healthy', want='refuse')['state'] == 'silent'
    assert planted('refused', want='take')['state'] == 'good refused'
    assert planted('silent', want='take')['state'] == 'silent'
    assert planted('silent', want='take', differs=True)['state'] == 'taken'


def test_the_rows_are_many_and_their_calls_are_known(tools):
    cases, bases = tools.areas.all_cases(), tools.calls.all_bases()
    assert len(cases) >= 300
    assert len({case.key for case in cases}) == len(cases)
    assert {case.base for case in cases} <= bases.keys()
    assert {case.want for case in cases} == set(tools.case.WANTS)
    assert len(tools.table.chosen(cases, ['fgvc json: class id 1.7'])) == 1


ROWS = (
    'converters: zip: a member leads outside',
    'converters: tar: a link',
    'converters: tar: good',
    'converters: zip: first 50% of it',
    'converters: splits: a picture outside',
    'converters: VTAB npz: labels -1',
    'plan: seeds: [1.5]',
    'plan: YAML: a Python object runs a command',
)


def test_some_rows_are_good(tools, tmp_path):
    cases = [case for case in tools.areas.all_cases() if case.key in ROWS]
    assert len(cases) == len(ROWS)
    tools.run.preload(['mmpretrain'])
    tools.healthy.make_store(tmp_path / 'store', ())
    stand = tools.run.Stand(tmp_path, tools.calls.all_bases())
    rows = [stand.judge(case) for case in cases]
    assert [row['input'] for row in rows if not row['ok']] == []
    text = tools.table.table(rows)
    assert '| all | 8 | 7 | 1 | 0 |' in text
    assert '| plan | 2 | 2 | 0 | 0 |' in text


def test_rows_are_kept_and_taken_up(tools, tmp_path):
    cases = tools.areas.all_cases()[:2]
    path = tmp_path / 'rows.jsonl'
    assert tools.table.read(path, cases) == []
    rows = [{'area': c.area, 'input': c.input, 'state': 'refused'} for c in cases]
    rows.append({'area': 'gone', 'input': 'x', 'state': 'refused'})
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert tools.table.read(path, cases) == rows[:2]
    assert list(tools.table.walk(cases, rows)) == []
    assert tools.table.part_of('2/8') == (2, 8)


# ------------------------------------------------------------------------- the fuzzers


def reader(tools, read, **facts):
    return tools.targets.Target('planted', 'parser', [b'{"a": 1}'], read, **facts)


def test_the_fuzzers_find_what_is_planted(tools, tmp_path):
    def read(path):
        value = path.read_bytes()
        if len(value) < 4:
            raise ZeroDivisionError('planted')
        if b'[[' in value:
            raise PETLError('a good end')
        if b'"' not in value:
            raise FileNotFoundError('a good end')

    attempt = tools.fuzz.Try(reader(tools, read), 'bytes', 1.0, tmp_path / 'kept')
    tools.fuzz.by_bytes(attempt, 400, 600, 0)
    report = attempt.report
    assert report.tries == 400
    assert report.refused > 0
    ((kind, (count, message)),) = report.findings.items()
    assert kind.startswith('ZeroDivisionError at test_hostile_inputs.py:')
    assert message == 'planted'
    assert count > 1
    assert len(list((tmp_path / 'kept').iterdir())) == 1
    attempt.close()


def test_hypothesis_edits_data_at_a_place(tools):
    seen = []

    def call(value):
        seen.append(value)
        if isinstance(value, dict) and isinstance(value.get('b'), list):
            if not all(isinstance(part, int) for part in value['b']):
                raise KeyError('planted')

    target = reader(tools, None, data=[{'a': 1, 'b': [1, 2]}], call=call)
    attempt = tools.fuzz.Try(target, 'structure', 1.0, None)
    tools.fuzz.structure(attempt, 200, 600, 0)
    attempt.close()
    assert attempt.report.tries >= 150
    (kind,) = attempt.report.findings
    assert kind.startswith('KeyError')
    assert any(isinstance(value, dict) and 'b' not in value for value in seen)


def test_a_try_that_takes_too_long_is_a_finding(tools):
    def read(path):
        while True:
            pass

    attempt = tools.fuzz.Try(reader(tools, read), 'bytes', 0.05, None)
    attempt.bytes(b'x')
    attempt.close()
    assert list(attempt.report.findings) == ['TooSlow']


def test_parts_are_sealed_again(tools):
    rng = random.Random(0)
    for kind, data in (
        ('zip', tools.samples.archive()),
        ('tar', tools.samples.tar()),
        ('safetensors', tools.samples.safetensors()),
        ('png', tools.samples.picture('PNG')),
    ):
        split, join = tools.edits.SEALS[kind]
        parts = split(data)
        assert split(join(parts)) == parts
        spoilt = [tools.edits.spoilt_parts(parts, rng) for _ in range(20)]
        assert sum(other != parts for other in spoilt) > 10


def test_a_process_that_dies_counts_and_the_next_goes_on(tools, tmp_path):
    def read(path):
        if b'"' not in path.read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)

    args = SimpleNamespace(
        tries=300, seconds=600, seed=0, limit=1.0, memory=4096, keep=tmp_path / 'kept'
    )
    report = tools.fuzz.tried(reader(tools, read), 'bytes', args)
    assert report.findings['the process died (-9)'][0] == tools.fuzz.DEATHS
    kept = [path.read_bytes() for path in (tmp_path / 'kept').iterdir()]
    assert kept
    assert all(b'"' not in data for data in kept)


def test_figures_count_what_was_mended_and_what_is_open(tools, tmp_path):
    rows = tmp_path / 'rows.jsonl'
    report = tools.tries.Report('label map', 'bytes', 'container', 3, 1, {}, 2.0)
    open_ = tools.tries.Report('list', 'bytes', 'parser', 9, 1, {'X at y': [1, 'z']})
    rows.write_text(
        ''.join(json.dumps(vars(r)) + '\n' for r in (report, report, open_))
    )
    text = tools.fuzz.figures(tools.fuzz.read_rows(rows))
    assert '| list | bytes | 9 | 0 | 1 | 0 |' in text
    assert '| all parsers |  | 9 | 0 | 1 | 0 |' in text
    assert '| label map | bytes | 6 | 1 | 0 | 4 |' in text


@pytest.fixture(scope='module')
def readers(tools) -> list:
    """Every reader that the fuzzers try."""
    return tools.targets.all_targets()


def test_what_was_mended_has_a_test(tools, readers):
    mended = json.loads(tools.fuzz.MENDED.read_text(encoding='utf-8'))
    names = {target.name for target in readers}
    assert {entry['reader'] for entry in mended} <= names
    for entry in mended:
        file, _, name = entry['test'].partition('::')
        assert f'def {name}(' in (ROOT / file).read_text(encoding='utf-8'), entry


def test_healthy_inputs_of_every_reader_are_taken(tools, readers):
    """A reader that refuses its healthy input is tried at its door alone."""
    for target in readers:
        attempt = tools.fuzz.Try(target, 'bytes', 60.0, None)
        for data in target.seeds:
            attempt.bytes(data)
        for value in target.data:
            attempt.value(value)
        attempt.close()
        report = attempt.report
        assert (report.refused, report.findings) == (0, {}), target.name


# --------------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_no_row_is_bad(tmp_path):
    argv = [FOLDER / 'hostile_inputs.py', '--rows', tmp_path / 'rows.jsonl']
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=7200,
    )
    bad = [json.loads(x) for x in (tmp_path / 'rows.jsonl').read_text().splitlines()]
    assert [(r['input'], r['state'], r['line']) for r in bad if not r['ok']] == []
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_fuzzers_find_nothing():
    argv = [sys.executable, str(FOLDER / 'fuzz.py'), '--seconds', '5']
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
