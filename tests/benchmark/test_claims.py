"""One process at a run, with locks and without."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from mmpetl.benchmark import claims
from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.sweep import Sweep

JOB = Job('mini/digits', 'LoRA')


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(claims.fcntl, 'flock', refuse)
    monkeypatch.setattr(claims, '_told', set())


def write(path: Path, age: float = 0.0, **said: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / claims.LOCK).touch()
    given = {'host': socket.gethostname(), 'pid': os.getpid(), 'token': 'x', **said}
    path.write_text(json.dumps(given))
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.mark.usefixtures('no_locks')
def test_without_locks_a_lease_holds_a_job_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store = RecordStore(tmp_path)
    assert not store.held(JOB)
    with store.claim(JOB) as mine:
        assert mine
        assert store.held(JOB)
        with store.claim(JOB) as other:
            assert not other
        assert store.held(JOB)
    assert not store.held(JOB)
    with store.claim(JOB) as mine:
        assert mine
    assert [p.name for p in store.folder(JOB).glob('lease*')] == ['lease-2']
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'its file system has no locks (' in said
    assert 'free after 120 s' in said


@pytest.mark.usefixtures('no_locks')
@pytest.mark.parametrize(
    ('lease', 'free'),
    [
        ({'host': 'another', 'pid': 1, 'age': 60}, False),
        ({'host': 'another', 'pid': 1, 'age': 130}, True),
        ({'pid': 2**22 + 1, 'age': 1}, True),  # nobody has this number
        ({'age': 1}, False),
        ({'pid': 'x', 'host': None, 'age': 1}, False),
    ],
)
def test_a_lease_is_void_when_its_holder_is_gone(
    lease: dict, free: bool, tmp_path: Path
) -> None:
    store = RecordStore(tmp_path)
    write(store.folder(JOB) / 'lease-1', **lease)
    assert store.held(JOB) is not free
    with store.claim(JOB) as mine:
        assert mine is free


@pytest.mark.usefixtures('no_locks')
def test_a_lease_is_renewed_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, 'RENEW_S', 0.02)
    store = RecordStore(tmp_path)
    with store.claim(JOB):
        path = store.folder(JOB) / 'lease-1'
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while not path.stat().st_mtime and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


@pytest.mark.usefixtures('no_locks')
def test_of_many_who_take_over_a_void_lease_one_does(tmp_path: Path) -> None:
    for turn in range(20):
        folder = tmp_path / str(turn)
        write(folder / 'lease-7', age=500, host='another')
        gate, won = threading.Barrier(6), []

        def take(folder: Path = folder, gate=gate, won=won) -> None:
            gate.wait()
            with claims.claim(folder) as mine:
                if mine:
                    won.append(1)
                gate.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) <= 1
        with claims.claim(folder) as mine:
            assert mine


@pytest.mark.usefixtures('no_locks')
def test_who_judged_a_lease_long_ago_does_not_take_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / 'lease-1', age=500, host='another')
    judged = claims._newest(tmp_path)
    with claims.claim(tmp_path):
        pass
    with claims.claim(tmp_path) as mine:
        assert mine
        found = iter([judged])
        now = claims._newest
        monkeypatch.setattr(claims, '_is_void', lambda path: True)
        monkeypatch.setattr(claims, '_newest', lambda f: next(found, None) or now(f))
        with claims.claim(tmp_path) as late:
            assert not late
        assert [p.name for p in tmp_path.glob('lease-*')] == ['lease-3']


@pytest.mark.usefixtures('no_locks')
def test_a_sweep_runs_without_locks(tmp_path: Path) -> None:
    jobs = [Job('mini/digits', 'LoRA', seed=s) for s in (0, 1)]
    executor = make_executor('inline')
    summary = Sweep(jobs, tmp_path, executor, run='fake_runs:quick').run()
    assert (summary.done, summary.failed) == (2, {})


def test_another_fault_of_a_lock_is_no_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, 'broken')

    monkeypatch.setattr(claims.fcntl, 'flock', fail)
    with pytest.raises(OSError, match='broken'), claims.claim(tmp_path / 'a'):
        pass
