"""Thousands of jobs: what is looked at grows with the jobs, and is looked at once."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic

from mmpetl.benchmark import index as index_module
from mmpetl.benchmark import progress as progress_module
from mmpetl.benchmark import records as records_module
from mmpetl.benchmark.executors import Executor
from mmpetl.benchmark.executors.devices import CONTEXT, Device, choose, need_of
from mmpetl.benchmark.progress import Progress, standing
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.tables import build_tables
from mmpetl.benchmark.task import Outcome, Task, is_certain, outcome_of
from mmpetl.core import PETLError


class Queue(Executor):
    """Takes a few tasks at a time, and ends those it was told of by their method."""

    packs = True

    def __init__(self, most: int, notes: dict[str, str] | None = None) -> None:
        self.most, self.notes = most, notes or {}
        self.tasks: list[Task] = []
        self.given: list[Task] = []
        self.calls: Counter[str] = Counter()

    @property
    def slots(self) -> int:
        return self.most

    @property
    def free(self) -> int:
        return self.most - len(self.tasks)

    def submit(self, task: Task) -> None:
        self.tasks.append(task)
        self.given.append(task)
        assert len(self.tasks) <= self.most

    def started(self, task: Task) -> bool:
        self.calls['started'] += 1
        return True

    def wait(self, timeout: float) -> list[Outcome]:
        self.calls['wait'] += 1
        tasks, self.tasks = self.tasks, []
        found = []
        for task in tasks:
            job = task.job
            note = self.notes.get(job.method)
            record = Record(job, 'failed' if note else 'done', error=note)
            record.peak_memory_bytes = 2**20
            RecordStore(task.out).write(record)
            found.append(outcome_of(record, task.retries))
        return found


@pytest.fixture
def cheap_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module.os, 'fsync', lambda file: None)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


JOBS = [Job('mini/digits', m, seed=s) for m in ('LoRA', 'SSF') for s in range(150)]


@pytest.mark.usefixtures('cheap_writes', 'key')
def test_a_sweep_looks_at_each_job_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    for name in ('held', 'read', 'claim'):
        real = getattr(RecordStore, name)

        def counted(self: Any, job: Job, name: str = name, real: Any = real) -> Any:
            seen[name] += 1
            return real(self, job)

        monkeypatch.setattr(RecordStore, name, counted)
    executor = Queue(30)
    progress = Progress('x', every_s=0.0)
    sweep = Sweep(JOBS, tmp_path, executor, poll_s=0, watch=progress.table)
    summary = sweep.run()
    assert (summary.done, summary.left) == (300, 0)
    assert executor.calls['wait'] == 10
    assert executor.calls['started'] <= 300
    # A kind is measured once, by the first of it that ends.
    assert seen == {'read': 2}
    assert [t.memory_bytes for t in executor.given[-5:]] == [2**20] * 5
    again = Sweep(JOBS, tmp_path, executor)
    assert again.left() == []
    assert standing(JOBS, tmp_path).done == 300
    assert seen == {'read': 2}


@pytest.mark.usefixtures('cheap_writes')
def test_a_pipe_is_told_in_lines_how_a_sweep_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress_module, 'LINE_EVERY_S', 0.0)
    with Progress('x', every_s=0.0).show() as watch:
        Sweep(JOBS[:30], tmp_path, Queue(10), poll_s=0, watch=watch).run()
    assert 'x: 20 of 30 jobs done, 0 failed, time left' in capsys.readouterr().out


@pytest.mark.usefixtures('cheap_writes')
def test_a_sweep_stops_when_jobs_fail_with_the_same_words(tmp_path: Path) -> None:
    said = {'LoRA': 'Traceback (most recent call last):\nKeyError: 7'}
    executor = Queue(10, said)
    summary = Sweep(JOBS, tmp_path, executor, retries=0, stop_after=20).run()
    assert (len(summary.failed), summary.done, summary.left) == (20, 0, 280)
    assert summary.stopped == (
        '20 jobs failed with the same words, so 280 others were not begun'
    )
    assert 'stops    20 jobs failed' in (tmp_path / 'sweep.log').read_text()
    more = Sweep(JOBS, tmp_path, Queue(10, said), retries=0, stop_after=0).run()
    assert (len(more.failed), more.done, more.stopped) == (150, 150, '')


def failed(error: str) -> Record:
    head = 'Traceback (most recent call last):\n  File "a.py", line 1, in a\n'
    return Record(JOBS[0], 'failed', error=head + error)


def test_certain_failures_are_not_tried_again() -> None:
    ours = failed('mmpetl.core.errors.PETLError: there is no data set')
    theirs = failed('RuntimeError: out of memory')
    assert is_certain(ours)
    assert not is_certain(theirs)
    assert is_certain(theirs, theirs)
    assert not is_certain(theirs, failed('RuntimeError: broken pipe'))
    assert not is_certain(theirs, Record(JOBS[0], 'failed'))
    assert not is_certain(Record(JOBS[0], 'done'))
    again = failed(
        'PETLError: first\n\nDuring handling of the above exception, another '
        'exception occurred:\n\nTraceback (most recent call last):\n  File "b.py"\n'
        'OSError: then'
    )
    assert not is_certain(again)
    assert not outcome_of(ours, 5).retry
    assert outcome_of(theirs, 5).retry
    assert not outcome_of(theirs, 5, theirs).retry


def write_many(out: Path, number: int = 300) -> RecordStore:
    store = RecordStore(out)
    for record in synthetic.records(number):
        store.write(record)
    return store


@pytest.mark.usefixtures('cheap_writes', 'key')
def test_an_index_says_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = records_module.read_record

    def read(path: Path) -> Record:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(records_module, 'read_record', read)
    out = tmp_path / 'out'
    store = write_many(out)
    plain = store.all()
    assert len(reads) == 300
    assert (out / 'records.sqlite').is_file()
    assert plain == [real(p) for p in sorted(out.glob('runs/*/record.json'))]
    assert store.all() == plain
    assert len(reads) == 300
    lean = store.all(curves=False)
    ends = [
        {'loss': [record.curves['loss'][-1]]} if record.curves else {}
        for record in plain
    ]
    assert [replace(r, curves=c) for r, c in zip(plain, ends, strict=True)] == lean
    assert build_tables(lean) == build_tables(plain)
    # One that was edited in place, of the same length, and one that is gone.
    path = store.folder(plain[5].job) / 'record.json'
    path.write_text(path.read_text().replace('"synthetic"', '"synthetix"'))
    os.unlink(store.folder(plain[6].job) / 'record.json')
    now = store.all()
    assert len(now) == 299
    assert now[5].device == 'synthetix'
    assert len(reads) == 301
    # A damaged file is named, and hides no other.
    path.write_text('{')
    assert len(store.all()) == 298
    assert 'remove the record' in store.left_out[0]
    with pytest.raises(PETLError, match='remove the record'):
        store.of([r.job for r in plain])


def tampered(out: Path, what: str) -> None:
    path = out / 'records.sqlite'
    if what == 'cut':
        path.write_bytes(path.read_bytes()[:5000])
        return
    if what == 'no database':
        path.write_text('hello')
        return
    with sqlite3.connect(path) as base:
        if what == 'a better score':
            (head,) = base.execute('select head from entries limit 1').fetchone()
            record = json.loads(head)
            record['metrics'] = {'accuracy/top1': 99.9}
            base.execute(
                'update entries set head = ? where head = ?',
                (json.dumps(record).encode(), head),
            )
        elif what == 'another table':
            base.execute('drop table entries')
        elif what == 'text for bytes':
            base.execute("update entries set mark = 'x'")
    base.close()


@pytest.mark.usefixtures('cheap_writes', 'key')
@pytest.mark.parametrize(
    'what', ['cut', 'no database', 'a better score', 'another table', 'text for bytes']
)
def test_a_database_that_is_not_ours_is_never_believed(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'out'
    store = write_many(out, 210)
    plain = store.all()
    tampered(out, what)
    assert store.all() == plain
    assert 'records.sqlite is made anew: it ' in capsys.readouterr().err
    assert store.all() == plain
    assert capsys.readouterr().err == ''


@pytest.mark.usefixtures('cheap_writes')
def test_a_database_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'out'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'theirs'))
    store = write_many(out, 210)
    plain = store.all()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'mine'))
    assert store.all() == plain
    assert 'it was not written here, or was edited' in capsys.readouterr().err
    # Where no key can be kept, files are read.
    (tmp_path / 'none').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'none'))
    assert store.all() == plain
    assert index_module._key() is None


def test_jobs_are_packed_by_what_they_were_measured_to_need() -> None:
    gib = 2**30
    cards = [Device('0', 16, 40 * gib), Device('1', 16, 40 * gib)]

    def place(measured: int | None, number: int = 1) -> str | None:
        need = need_of(measured)
        found = choose(cards, need, number)
        for card in found or ():
            card.add(need)
        return ''.join(str(card.name) for card in found) if found else None

    assert need_of(10 * gib) == int(11.5 * gib) + CONTEXT
    assert [place(10 * gib) for _ in range(7)] == ['0', '0', '0', *'111', None]
    # What is small fills what is left; what was never measured waits for a whole one.
    assert place(gib) == '0'
    assert place(None) is None
    for _ in range(3):
        cards[1].remove(need_of(10 * gib))
    assert place(None) == '1'
    assert place(gib) is None, 'nothing goes beside what was never measured'
    cards[1].remove(None)
    # One that is larger than a card is tried alone; two processes take two cards.
    assert place(50 * gib) == '1'
    assert place(gib, 2) is None
    cards[:] = [Device('0', 16, 40 * gib), Device('1', 16, 40 * gib)]
    assert place(gib, 2) == '01'


def test_without_packing_jobs_spread_over_devices() -> None:
    cards = [Device('0', 2), Device('1', 1)]
    names = []
    for _ in range(3):
        (card,) = choose(cards) or ()
        card.add(None)
        names.append(card.name)
    assert names == ['0', '1', '0']
    assert choose(cards) is None
    cores = [Device(None, 4)]
    assert choose(cores, None, 3) == [cores[0]] * 3
    assert choose(cores, None, 5) is None
