"""A job that is told to end saves behind its step, and goes on from there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.executors import slurm as slurm_module
from mmpetl.benchmark.executors.slurm import Work
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.task import Task
from mmpetl.engine.hooks.run_log import read_run_log
from mmpetl.engine.stopping import Stopped, stop_on_signals

# No checkpoint but the last, so that what a signal saves is all there is to go on from.
OPTIONS = {
    'train_cfg.max_epochs': 12,
    'default_hooks.checkpoint.interval': 1000,
    'train_dataloader.batch_size': 1,
    'param_scheduler': [{'type': 'ConstantLR', 'factor': 1.0}],
}
JOB = Job('mini/digits', 'BitFit', options=OPTIONS)


@pytest.fixture(scope='module', autouse=True)
def _data(tiny_data: Callable[..., Path]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(tiny_data('vtab-1k/digits')))
        yield


def when_it_trains(out: Path, act: Callable[[], Any]) -> threading.Thread:
    """Do something as soon as the job has taken its first steps."""

    def watch() -> None:
        log = RecordStore(out).folder(JOB) / 'log.jsonl'
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any(line.get('step', 0) >= 2 for line in read_run_log(log)):
                act()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def went_on(out: Path) -> list[int]:
    """Steps in the order of the log, and that the job is done, with one reading."""
    store = RecordStore(out)
    record = store.read(JOB)
    assert (record.status, record.test_reads) == ('done', 1)
    said = [*out.glob('runs/*/console.log'), *out.glob('slurm/*.out')]
    assert any('saved as stopped_at_iter_' in path.read_text() for path in said)
    assert not list(out.rglob('*.pth'))
    lines = list(read_run_log(store.folder(JOB) / 'log.jsonl'))
    assert sum('attempt' in line for line in lines) == 2
    return [line['step'] for line in lines if 'loss' in line]


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_saves_inside_its_epoch(tmp_path: Path) -> None:
    executor = make_executor('local', workers=1)

    def end() -> None:
        for pid in executor.pids().values():
            os.kill(pid, signal.SIGTERM)

    sweep = Sweep([JOB], tmp_path, executor, toolboxes=('mmpretrain',))
    thread = when_it_trains(tmp_path, end)
    summary = sweep.run()
    thread.join()
    assert (summary.done, summary.failed) == (1, {})
    steps = went_on(tmp_path)
    assert steps == sorted(set(steps)), 'no step was taken twice'
    assert 'lost     ' in (tmp_path / 'sweep.log').read_text()


@pytest.mark.slow
def test_a_preempted_job_of_submitit_saves_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip('submitit')
    executor = make_executor('slurm', cluster='local', workers=1, timeout_min=5)

    def preempt() -> None:
        # As Slurm does it: to the process that works.
        log = RecordStore(tmp_path).folder(JOB) / 'log.jsonl'
        pids = [line['pid'] for line in read_run_log(log) if 'attempt' in line]
        os.kill(pids[-1], signal.SIGUSR2)

    sweep = Sweep([JOB], tmp_path, executor)
    thread = when_it_trains(tmp_path, preempt)
    summary = sweep.run()
    thread.join()
    assert (summary.done, summary.failed) == (1, {})
    steps = went_on(tmp_path)
    assert steps == sorted(set(steps)), 'no step was taken twice'
    # The scheduler's own way: the sweep has noticed nothing.
    assert 'lost' not in (tmp_path / 'sweep.log').read_text()


def test_what_the_scheduler_asked_is_answered_when_the_run_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def train(task: Task) -> None:
        with stop_on_signals() as stop:
            stop.stepping = True
            os.kill(os.getpid(), number)
            assert stop.number == number
            done.append('saved')
            stop.leave('saved as x')

    def requeue(signum: int, frame: Any) -> None:
        done.append('put back')
        raise SystemExit(-1)

    monkeypatch.setattr(slurm_module, 'work', train)
    monkeypatch.setattr(slurm_module, 'END_S', 0.0)
    before = signal.signal(signal.SIGUSR2, requeue)
    ended = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        number = signal.SIGUSR2
        with pytest.raises(SystemExit):
            Work()(Task(JOB, 'x'))
        assert done == ['saved', 'put back']
        assert signal.getsignal(signal.SIGUSR2) is requeue
        # SIGTERM alone puts nothing back: it may be a job that was cancelled.
        done.clear()
        number = signal.SIGTERM
        with pytest.raises(Stopped):
            Work()(Task(JOB, 'x'))
        assert done == ['saved']
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGTERM, ended)


def test_user_signals_that_nobody_answers_stay_as_they_are() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)
