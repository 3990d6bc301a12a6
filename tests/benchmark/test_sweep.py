"""A plan ends with exactly its records, whatever is killed on the way."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest

from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.job import run_job
from mmpetl.benchmark.progress import standing
from mmpetl.benchmark.records import Job, Record, RecordStore, write_json
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.worker import console_of
from mmpetl.core import PETLError
from mmpetl.engine.hooks.predictions import read_predictions
from mmpetl.engine.hooks.run_log import append_line, read_run_log

# Small and many steps, so that there is time to kill one in the middle.
OPTIONS = {
    'train_cfg.max_epochs': 3,
    'train_dataloader.batch_size': 2,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 3,
    'param_scheduler.1.T_max': 2,
}
JOBS = [
    Job('mini/digits', method, seed=seed, options=OPTIONS)
    for method in ('BitFit', 'LinearProbe')
    for seed in (1, 2)
]

RUNNER = """
import sys
import json
from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.records import Job
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.worker import console_of

if __name__ == '__main__':
    out, jobs = sys.argv[1:]
    jobs = [Job(**item) for item in json.loads(jobs)]
    executor = make_executor('local', workers=2)
    Sweep(jobs, out, executor, toolboxes=('mmpretrain',), poll_s=0.1).run()
"""


@pytest.fixture(scope='module', autouse=True)
def _data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from mmpetl.datasets.mini import make

    # Its own: of one job the data are not there.
    root = tmp_path_factory.mktemp('data')
    make(root, names=['vtab-1k/digits'], size='tiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(root))
        yield


def local(jobs: list[Job], out: Path) -> Sweep:
    executor = make_executor('local', workers=2)
    return Sweep(jobs, out, executor, toolboxes=('mmpretrain',), poll_s=0.1)


@pytest.fixture(scope='module')
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan, run without disturbance."""
    out = tmp_path_factory.mktemp('unkilled')
    summary = local(JOBS, out).run()
    assert (summary.done, summary.failed) == (4, {})
    return out


def begin_runner(out: Path, jobs: list[Job]) -> subprocess.Popen:
    script = out.parent / f'{out.name}_runner.py'
    script.write_text(RUNNER)
    text = json.dumps([dataclasses.asdict(job) for job in jobs])
    return subprocess.Popen([sys.executable, str(script), str(out), text])


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f'waited {seconds} s in vain')


def at_work(out: Path, jobs: list[Job]) -> tuple[Job, int] | None:
    """A job that has taken some steps and is not at its end, and its process."""
    for job in jobs:
        store = RecordStore(out)
        lines = list(read_run_log(store.folder(job) / 'log.jsonl'))
        steps = [line['step'] for line in lines if 'loss' in line]
        pids = [line['pid'] for line in lines if 'attempt' in line]
        over = store.read(job) is not None or any('test' in x for x in lines)
        if steps and 15 < steps[-1] < 40 and not over and store.held(job):
            return job, pids[-1]
    return None


def same_result(one: Path, other: Path, job: Job) -> None:
    """Metrics, predictions and trained numbers of two runs are equal bit for bit."""
    first, second = (RecordStore(out).read(job) for out in (one, other))
    assert first.metrics == second.metrics
    assert first.ppt == second.ppt
    assert first.config_hash == second.config_hash
    assert first.counts == second.counts
    assert first.base == second.base
    folders = [RecordStore(out).folder(job) for out in (one, other)]
    logits, labels = zip(
        *(read_predictions(f / 'predictions.npz') for f in folders), strict=True
    )
    assert np.array_equal(*logits)
    assert np.array_equal(*labels)
    bits = [(f / 'delta.safetensors').read_bytes() for f in folders]
    assert bits[0] == bits[1]


def test_a_plan_survives_the_death_of_a_worker_and_of_the_runner(
    unkilled: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'killed'
    out.mkdir()
    runner = begin_runner(out, JOBS)
    job, pid = wait_for(lambda: at_work(out, JOBS))
    os.kill(pid, signal.SIGKILL)
    log = out / 'sweep.log'
    wait_for(lambda: f'lost     {job.id}: its worker was killed' in log.read_text())
    # The same or another job, later on.
    again, worker = wait_for(lambda: at_work(out, JOBS))
    runner.kill()
    runner.wait()
    # Workers end with their runner, so that nothing holds up the next one.
    wait_for(lambda: not any(RecordStore(out).held(j) for j in JOBS), 20)
    store = RecordStore(out)
    assert store.read(again) is None
    before = {r.job.id for r in store.all()}
    assert len(before) < len(JOBS)

    summary = local(JOBS, out).run()
    assert (summary.done, summary.failed) == (4, {})
    assert summary.ran == len(JOBS) - len(before)
    assert sorted(r.job.id for r in store.all()) == sorted(j.id for j in JOBS)
    for each in JOBS:
        same_result(unkilled, out, each)
        assert store.read(each).test_reads == 1
    lines = list(read_run_log(store.folder(again) / 'log.jsonl'))
    assert sum('attempt' in line for line in lines) >= 2
    assert not list(out.rglob('*.pth'))

    stamps = {p: p.stat().st_mtime_ns for p in out.rglob('*.json')}
    second = local(JOBS, out).run()
    assert (second.done, second.ran) == (4, 0)
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob('*.json')}


def test_a_record_says_all_that_it_should(unkilled: Path) -> None:
    record = RecordStore(unkilled).read(JOBS[0])
    assert record.family == 'specification'
    assert (record.task, record.group) == ('digits', 'natural')
    assert record.backbone == 'mini ViT'
    assert record.primary == 'accuracy/top1'
    assert record.score == record.metrics['accuracy/top1']
    assert set(record.counts) == {'delta', 'selected', 'head', 'base'}
    assert record.trainable == record.counts['selected'] > 0
    assert record.curves['loss'][-1][0] == record.curves['lr'][-1][0] == 3 * 15
    assert len(record.config_hash) == 16
    assert record.base['file'] == 'mini_vit.safetensors'
    assert len(record.base['fingerprint']) == 16
    assert record.preprocessing['normalisation'] == 'half'
    assert 0 < record.step_seconds < record.seconds
    assert record.peak_memory_bytes > 2**20
    assert record.device.startswith('cpu')
    assert {'torch', 'mmpretrain', 'mmpetl'} <= set(record.versions)
    assert record.started < record.finished
    assert (record.attempts, record.error, record.search) == (1, None, None)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    other = RecordStore(unkilled).read(JOBS[1])
    assert other.config_hash != record.config_hash  # another seed


def test_predictions_are_those_that_were_scored(unkilled: Path) -> None:
    for job in JOBS:
        record = RecordStore(unkilled).read(job)
        folder = RecordStore(unkilled).folder(job)
        logits, labels = read_predictions(folder / 'predictions.npz')
        assert logits.dtype == np.float32
        assert labels.dtype == np.int64
        assert logits.shape == (10, 10)
        hits = 100 * (logits.argmax(1) == labels).mean()
        assert hits == pytest.approx(record.score, abs=1e-4)
        # Raw outputs of the head, not logarithms of probabilities.
        assert not np.allclose(np.exp(logits).sum(1), 1, atol=1e-3)


def test_an_exported_delta_computes_what_the_record_says(unkilled: Path) -> None:
    from mmpetl.apis import load_config
    from mmpetl.apis.run import test as evaluate

    folder = RecordStore(unkilled).folder(JOBS[0])
    config = load_config(folder / 'config.py', work_dir=unkilled / 'again')
    metrics = evaluate(config, folder / 'delta.safetensors')
    record = RecordStore(unkilled).read(JOBS[0])
    assert metrics['accuracy/top1'] == record.score


def test_a_reading_of_the_test_set_is_not_repeated(
    unkilled: Path, tmp_path: Path
) -> None:
    """Killed between the reading and the record, a run ends without a second one."""
    folder = tmp_path / 'run'
    shutil.copytree(RecordStore(unkilled).folder(JOBS[2]), folder)
    (folder / 'record.json').unlink()
    data = Path(os.environ['MMPETL_DATA'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(data))
        shutil.move(data / 'vtab-1k', data / 'hidden')
        try:
            record = run_job(JOBS[2], folder)
        finally:
            shutil.move(data / 'hidden', data / 'vtab-1k')
    assert record.metrics == RecordStore(unkilled).read(JOBS[2]).metrics
    assert record.test_reads == 1


def test_a_run_that_could_not_be_ranked_is_refused_before_it_trains(
    unkilled: Path, tmp_path: Path
) -> None:
    job = dataclasses.replace(JOBS[2], options={**OPTIONS, 'test_evaluator.topk': [5]})
    with pytest.raises(PETLError, match=r'which metric of Accuracy tables rank by'):
        run_job(job, tmp_path / 'new')
    assert not any((tmp_path / 'new').iterdir())
    # What another config has left is not removed for it.
    folder = tmp_path / 'run'
    shutil.copytree(RecordStore(unkilled).folder(JOBS[2]), folder)
    with pytest.raises(PETLError, match=r"primary = 'NAME'"):
        run_job(job, folder)
    assert (folder / 'predictions.npz').is_file()


@pytest.mark.parametrize('said', [{}, {'primary': 'accuracy/top2'}])
def test_a_finished_run_is_kept_where_no_score_is_ranked(
    said: dict[str, str], unkilled: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / 'run'
    shutil.copytree(RecordStore(unkilled).folder(JOBS[2]), folder)
    lines = list(read_run_log(folder / 'log.jsonl'))
    (folder / 'log.jsonl').unlink()
    for line in lines:
        if 'test' in line:
            line['test'] = {'mFscore': 40.0}
        append_line(folder / 'log.jsonl', line)
    job = dataclasses.replace(JOBS[2], options={**OPTIONS, **said})
    record = run_job(job, folder)
    assert (record.status, record.metrics) == ('done', {'mFscore': 40.0})
    assert (record.primary, record.score, record.ppt) == ('', None, None)
    assert 'no score is ranked, since' in capsys.readouterr().out
    assert Record.from_json(record.to_json()) == record


@pytest.mark.slow
def test_the_published_protocol_counts_its_readings_of_the_test_set(
    tmp_path: Path,
) -> None:
    options = {
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 1,
        'train_dataloader.batch_size': 10,
    }
    job = Job('mini/digits', 'BitFit', protocol='published', options=options)
    record = run_job(job, tmp_path)
    curve = [value for _, value in record.curves['val/accuracy/top1']]
    assert len(curve) == 3
    assert record.score == max(curve)
    assert record.test_reads == 3 + 1
    logits, labels = read_predictions(tmp_path / 'predictions.npz')
    hits = 100 * (logits.argmax(1) == labels).mean()
    assert hits == pytest.approx(max(curve), abs=1e-4)


def test_files_of_another_config_are_not_continued(
    unkilled: Path, tmp_path: Path
) -> None:
    from mmpetl.benchmark.job import begin
    from mmpetl.benchmark.job_config import compose_job

    folder = tmp_path / 'run'
    shutil.copytree(RecordStore(unkilled).folder(JOBS[2]), folder)
    begin(folder, compose_job(JOBS[2], folder), 'another')
    assert not (folder / 'predictions.npz').exists()
    lines = list(read_run_log(folder / 'log.jsonl'))
    assert [(x['attempt'], x['config']) for x in lines] == [(1, 'another')]


def _inline(jobs: list[Job], out: Path, answers: Any, both: Any) -> None:
    executor = make_executor('inline')
    both.wait()
    summary = Sweep(jobs, out, executor, run='fake_runs:quick', poll_s=0.1).run()
    answers.put((summary.done, len(summary.failed), summary.left))


def test_two_runners_at_once_do_no_job_twice(tmp_path: Path) -> None:
    jobs = [Job('mini/digits', 'LoRA', seed=seed) for seed in range(30)]
    context = multiprocessing.get_context('fork')
    answers, both = context.Queue(), context.Barrier(2)
    runners = [
        context.Process(target=_inline, args=(jobs, tmp_path, answers, both))
        for _ in range(2)
    ]
    for runner in runners:
        runner.start()
    assert [answers.get(timeout=300) for _ in runners] == [(30, 0, 0)] * 2
    for runner in runners:
        runner.join()
    assert [len(fake_runs.attempts(tmp_path, job)) for job in jobs] == [1] * 30
    pids = {fake_runs.attempts(tmp_path, job)[0] for job in jobs}
    assert pids == {runner.pid for runner in runners}, 'both took part'


def test_a_job_held_elsewhere_is_waited_for(tmp_path: Path) -> None:
    """A runner neither takes a job that another holds nor ends before it is done."""
    job = Job('mini/digits', 'LoRA')
    store = RecordStore(tmp_path)

    def hold() -> None:
        with store.claim(job) as mine:
            assert mine
            time.sleep(0.6)
            store.write(Record(job, 'done', metrics={'a': 1.0}, primary='a'))

    thread = threading.Thread(target=hold)
    thread.start()
    wait_for(lambda: store.held(job))
    sweep = Sweep(
        [job], tmp_path, make_executor('inline'), run='fake_runs:quick', poll_s=0.1
    )
    summary = sweep.run()
    thread.join()
    assert (summary.done, summary.left) == (1, 0)
    assert fake_runs.attempts(tmp_path, job) == []


def test_an_interrupt_leaves_everything_resumable(tmp_path: Path) -> None:
    jobs = [Job('mini/digits', 'LoRA'), Job('mini/digits', 'SSF')]
    seen = []

    def interrupt() -> None:
        begun = [tmp_path / f'{job.id}.attempts' for job in jobs]
        wait_for(lambda: all(path.is_file() for path in begun))
        seen.append(standing(jobs, tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    sweep = local(jobs, tmp_path)
    sweep.run_name = 'fake_runs:hanging_once'
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    (found,) = seen
    assert (found.done, len(found.running), found.waiting) == (0, 2, 0)
    assert not any(RecordStore(tmp_path).held(job) for job in jobs)
    assert 'stopped  KeyboardInterrupt' in (tmp_path / 'sweep.log').read_text()
    executor = make_executor('inline')
    summary = Sweep(jobs, tmp_path, executor, run='fake_runs:hanging_once').run()
    assert (summary.done, summary.failed) == (2, {})


def test_a_failing_run_is_recorded_with_its_traceback(tmp_path: Path) -> None:
    """A real failure: the recipe's data are not there."""
    job = Job('mini/counting', 'BitFit', options=OPTIONS)
    sweep = Sweep([job], tmp_path, make_executor('inline'), retries=1)
    summary = sweep.run()
    assert 'PETLError' in summary.failed[job.id]
    record = RecordStore(tmp_path).read(job)
    # What is wrong with data is wrong the second time, too.
    assert (record.status, record.attempts, record.test_reads) == ('failed', 1, 0)
    assert 'Traceback' in record.error
    assert 'counting' in record.error


def test_a_log_with_half_a_line_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / 'log.jsonl'
    append_line(path, {'step': 1, 'loss': 2.0})
    with open(path, 'a') as file:
        file.write('{"step": 2, "lo')
    append_line(path, {'step': 2, 'loss': float('nan')})
    assert list(read_run_log(path)) == [
        {'step': 1, 'loss': 2.0},
        {'step': 2, 'loss': None},
    ]


@pytest.mark.slow
def test_estimates_come_from_records_and_from_a_few_steps(
    unkilled: Path, tmp_path: Path
) -> None:
    from mmpetl.benchmark.cost import calibrate, estimates, to_calibrate, total

    known = estimates(JOBS, unkilled)
    assert {e.source for e in known.values()} == {'records'}
    assert {e.steps for e in known.values()} == {45}
    assert to_calibrate(JOBS, unkilled) == []

    jobs = [job for job in JOBS if job.method == 'LinearProbe']
    (key,) = to_calibrate(jobs, tmp_path)
    assert calibrate([key], tmp_path, make_executor('inline')) == {}
    (found,) = {id(e): e for e in estimates(jobs, tmp_path).values()}.values()
    assert (found.steps, found.source) == (45, 'calibration')
    assert 0.1 < found.seconds < 600
    assert RecordStore(tmp_path).all() == [], 'a calibration is no result'
    assert to_calibrate(jobs, tmp_path) == []
    cost = total(JOBS, estimates(JOBS, tmp_path))
    assert cost.seconds == pytest.approx(2 * found.seconds)
    assert cost.unknown == 2


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (b'PK\x03\x04', b'PK\x03\x00'),
        (b'PK\x01\x02', b'PK\x01\x00'),
        (b'PK\x05\x06', b'PK\x05\x00'),
        (b'PK\x01\x02-\x03-', b'PK\x01\x02-\x03\xff'),
        (b"'<f4'", b"'<f4("),
        (b'NUMPY', b'HUMPY'),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Path, old, new) -> None:
    path = tmp_path / 'a.npz'
    arrays = {'logits': np.ones((2, 2), np.float32), 'labels': np.zeros(2, int)}
    np.savez(path, **arrays)
    assert read_predictions(path)[0].shape == (2, 2)
    assert old in path.read_bytes()
    whole = zipped_anew(path.read_bytes(), old, new)
    path.write_bytes(whole)
    with pytest.raises(PETLError, match='predictions'):
        read_predictions(path)


def zipped_anew(data: bytes, old: bytes, new: bytes) -> bytes:
    """A zip with bytes of it replaced; where they are in a member, its sum is right."""
    if old.startswith(b'PK'):
        return data.replace(old, new)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as one, zipfile.ZipFile(out, 'w') as other:
        for name in one.namelist():
            other.writestr(name, one.read(name).replace(old, new))
    return out.getvalue()


def test_a_console_is_on_file_once_something_is_said(tmp_path):
    path = tmp_path / 'console.log'
    with console_of(tmp_path):
        sys.stdout.flush()
        assert not path.exists()
        print('one')
        print('two', file=sys.stderr)
        kept = sys.stdout
    with console_of(tmp_path):
        sys.stdout.buffer.write(b'three\n')
    assert path.read_text() == 'one\ntwo\nthree\n'
    with pytest.raises(ValueError, match='closed'):
        kept.write('four')


def test_json_is_written_as_pythons_encoder_writes_it(tmp_path):
    data = {'ü"\\': [1, -2.5e-07, 1e22, None, True], 'none': {}, 'nor': [], 'x': [[1]]}
    write_json(tmp_path / 'a.json', data)
    text = (tmp_path / 'a.json').read_text()
    assert text == json.dumps(data, indent=1) + '\n'
    with pytest.raises(ValueError, match='JSON'):
        write_json(tmp_path / 'b.json', {'x': math.nan})
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
