"""Where jobs run: the same promises from every executor."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_runs
import pytest

from mmpetl.benchmark.executors import Executor, make_executor, ray_cluster
from mmpetl.benchmark.executors import local as local_module
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.sweep import Dispatcher, Sweep
from mmpetl.benchmark.task import Task
from mmpetl.core import PETLError

JOBS = [Job('mini/digits', m, seed=s) for m in ('LoRA', 'SSF') for s in (0, 1)]


@pytest.fixture(scope='module')
def ray_executor() -> Iterator[Executor]:
    """One cluster for all tests of this file: it takes seconds to start."""
    pytest.importorskip('ray')
    executor = make_executor('ray', workers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(Path(__file__).parent), prepend=os.pathsep)
        executor.start()
    executor._own = False  # close() of a sweep leaves it
    yield executor
    executor._own = True
    executor.close()


def submitit_here(monkeypatch: pytest.MonkeyPatch) -> Executor:
    # Not imported here: a test below looks at what its first import does.
    if importlib.util.find_spec('submitit') is None:
        pytest.skip("could not import 'submitit'")
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent), prepend=os.pathsep)
    return make_executor('slurm', cluster='local', workers=2)


@pytest.fixture(params=['inline', 'local', 'ray', 'slurm'])
def executor(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Executor:
    if request.param == 'ray':
        return request.getfixturevalue('ray_executor')
    if request.param == 'slurm':
        return submitit_here(monkeypatch)
    options = {'workers': 2} if request.param == 'local' else {}
    return make_executor(request.param, **options)


def sweep(out: Path, executor: Executor, run: str, **args: Any) -> Sweep:
    jobs = args.pop('jobs', JOBS)
    # The process that workers are forked from is one for all tests of a session.
    boxes = ('mmpretrain',)
    run = f'fake_runs:{run}'
    return Sweep(jobs, out, executor, toolboxes=boxes, run=run, poll_s=0.1, **args)


def test_every_job_runs_once_and_leaves_a_record(
    executor: Executor, tmp_path: Path
) -> None:
    jobs = JOBS if executor.slots == 1 else JOBS[:2]
    summary = sweep(tmp_path, executor, 'quick', jobs=jobs).run()
    assert (summary.done, summary.ran, summary.left) == (len(jobs), len(jobs), 0)
    assert sorted(r.job.id for r in RecordStore(tmp_path).all()) == sorted(
        job.id for job in jobs
    )
    assert all(len(fake_runs.attempts(tmp_path, job)) == 1 for job in jobs)
    again = sweep(tmp_path, executor, 'quick', jobs=jobs).run()
    assert (again.done, again.ran) == (len(jobs), 0)


def test_a_worker_with_much_to_say_ends(tmp_path: Path) -> None:
    executor = make_executor('local', workers=1)
    summary = sweep(tmp_path, executor, 'wordy', jobs=JOBS[:1], retries=0).run()
    assert len(summary.failed[JOBS[0].id]) > 2**17


def test_a_worker_collects_no_garbage_among_what_was_loaded(tmp_path: Path) -> None:
    executor = make_executor('local', workers=1)
    sweep(tmp_path, executor, 'loaded', jobs=JOBS[:1]).run()
    assert RecordStore(tmp_path).read(JOBS[0]).metrics['accuracy/top1'] > 100_000


def test_what_is_forked_under_ray_ends_when_it_is_told(
    ray_executor: Executor, tmp_path: Path
) -> None:
    """Ray leaves a handler behind that a child, told to end early, would survive."""
    sweep(tmp_path, ray_executor, 'forking', jobs=JOBS[:1]).run()
    record = RecordStore(tmp_path).read(JOBS[0])
    # By the handler, or by the system where it is the child's own again.
    ended = (128 + signal.SIGTERM, -signal.SIGTERM)
    assert record.metrics['accuracy/top1'] in ended
    assert getattr(signal.getsignal(signal.SIGTERM), 'ends_forks', False)
    assert fake_runs.told_to_end_at_once() in ended
    assert fake_runs.handler_in_a_fork() == signal.SIG_DFL


@pytest.mark.parametrize('name', ['inline', 'local', 'ray'])
def test_a_failure_is_tried_again_up_to_the_limit(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    executor = (
        request.getfixturevalue('ray_executor')
        if name == 'ray'
        else make_executor(name)
    )
    jobs = [Job('mini/digits', 'LoRA', seed=s) for s in (0, 1, 5)]
    summary = sweep(tmp_path, executor, 'failing', jobs=jobs, retries=1).run()
    assert [len(fake_runs.attempts(tmp_path, job)) for job in jobs] == [1, 2, 2]
    assert (summary.done, summary.left) == (2, 0)
    assert list(summary.failed) == [jobs[2].id]
    store = RecordStore(tmp_path)
    bad = store.read(jobs[2])
    assert (bad.status, bad.attempts) == ('failed', 2)
    assert 'RuntimeError: as the test wants it' in bad.error
    assert 'Traceback' in bad.error
    assert [store.read(job).attempts for job in jobs[:2]] == [1, 2]


def test_a_later_call_with_a_higher_limit_goes_on(tmp_path: Path) -> None:
    job = Job('mini/digits', 'LoRA', seed=2)
    executor = make_executor('inline')
    assert sweep(tmp_path, executor, 'failing', jobs=[job], retries=0).run().failed
    assert sweep(tmp_path, executor, 'failing', jobs=[job], retries=0).run().ran == 0
    summary = sweep(tmp_path, executor, 'failing', jobs=[job], retries=2).run()
    assert (summary.done, summary.failed) == (1, {})
    assert RecordStore(tmp_path).read(job).attempts == 3


@pytest.mark.parametrize(('run', 'attempts'), [('certain', 2), ('misconfigured', 1)])
def test_a_failure_that_is_certain_is_not_tried_again(
    run: str, attempts: int, tmp_path: Path
) -> None:
    job = Job('mini/digits', 'LoRA')
    executor = make_executor('inline')
    summary = sweep(tmp_path, executor, run, jobs=[job], retries=5).run()
    assert len(fake_runs.attempts(tmp_path, job)) == attempts
    assert (list(summary.failed), summary.left) == ([job.id], 0)
    # What was wrong may be mended by the next call, which tries once.
    sweep(tmp_path, executor, run, jobs=[job], retries=5).run()
    assert len(fake_runs.attempts(tmp_path, job)) == attempts + 1


def test_a_worker_does_several_jobs_where_it_may(tmp_path: Path) -> None:
    jobs = [Job('mini/digits', 'LoRA', seed=s) for s in range(5)]
    executor = make_executor('local', workers=1, reuse=3)
    summary = sweep(tmp_path, executor, 'quick', jobs=jobs).run()
    assert (summary.done, summary.failed) == (5, {})
    pids = [fake_runs.attempts(tmp_path, job)[0] for job in jobs]
    assert len(set(pids[:3])) == len(set(pids[3:])) == 1
    assert pids[0] != pids[3]
    assert executor.free == executor.slots


def test_a_worker_of_several_jobs_that_dies_is_replaced(tmp_path: Path) -> None:
    job = Job('mini/digits', 'LoRA')
    executor = make_executor('local', workers=1, reuse=3)
    thread = kill_when_it_hangs(tmp_path, job)
    summary = sweep(tmp_path, executor, 'hanging_once', jobs=[job]).run()
    thread.join()
    assert (summary.done, summary.failed) == (1, {})
    assert len(fake_runs.attempts(tmp_path, job)) == 2


def test_a_job_of_more_processes_than_there_are_places_is_refused(
    tmp_path: Path,
) -> None:
    job = Job('mini/voc', 'LoRA', options={'processes': 8})
    executor = make_executor('local', workers=2)
    with pytest.raises(PETLError, match='in 8 processes, .* room for 2; ask for fewer'):
        sweep(tmp_path, executor, 'quick', jobs=[job]).run()
    assert RecordStore(tmp_path).all() == []


def test_a_job_of_several_processes_takes_as_many_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_module, 'gpu_slots', lambda *args: ['0', '1', '2'])
    executor = make_executor('local')
    two = Task(Job('voc', 'LoRA', options={'processes': 2}), str(tmp_path))
    assert (executor.slots, executor.most_processes) == (3, 3)
    sent: list[Any] = []
    monkeypatch.setattr(executor, '_worker', lambda devices: FakeWorker(devices, sent))
    executor.submit(two)
    assert sent[0].env['CUDA_VISIBLE_DEVICES'] == '0,1'
    assert executor.free == 1
    assert not executor.room(two)
    assert executor.room(Task(JOBS[0], str(tmp_path)))


class FakeWorker(local_module._Worker):
    """Keeps what it is sent."""

    def __init__(self, devices: list[Any], sent: list[Any]) -> None:
        super().__init__(None, self, devices)
        self.send = sent.append


def kill_when_it_hangs(out: Path, job: Job) -> threading.Thread:
    """Kill the worker of a job as soon as it has one."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pids = fake_runs.attempts(out, job)
            if pids:
                os.kill(pids[0], signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    'name', ['local', 'ray', pytest.param('slurm', marks=pytest.mark.slow)]
)
def test_a_killed_worker_is_noticed_and_its_job_done_again(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == 'ray':
        executor = request.getfixturevalue('ray_executor')
    elif name == 'slurm':
        executor = submitit_here(monkeypatch)
    else:
        executor = make_executor('local', workers=2)
    job = Job('mini/digits', 'LoRA')
    thread = kill_when_it_hangs(tmp_path, job)
    began = time.monotonic()
    summary = sweep(tmp_path, executor, 'hanging_once', jobs=[job]).run()
    thread.join()
    assert time.monotonic() - began < 50
    assert (summary.done, summary.failed) == (1, {})
    assert len(fake_runs.attempts(tmp_path, job)) == 2
    assert RecordStore(tmp_path).read(job).status == 'done'


def test_making_the_slurm_executor_leaves_open_logs_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition('.')[0] == 'submitit']:
        monkeypatch.delitem(sys.modules, name)
    log = logging.FileHandler(tmp_path / 'run.log', mode='w')
    executor = submitit_here(monkeypatch)
    assert log.stream is not None
    executor.close()
    log.close()


def test_submitit_jobs_on_one_machine_share_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(local_module, 'cores', lambda: 6)
    executor = submitit_here(monkeypatch)  # two workers
    executor.submit(Task(JOBS[0], str(tmp_path)))
    assert [task.threads for task in executor._waiting] == [3]
    executor.close()


class FakeRemote:
    """A function of Ray that keeps what it is called with."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.asked: list[dict[str, Any]] = []

    def options(self, **asked: Any) -> FakeRemote:
        self.asked.append(asked)
        return self

    def remote(self, task: Task) -> object:
        self.tasks.append(task)
        return object()


@pytest.mark.parametrize(
    ('gpus', 'per_gpu', 'alone', 'shared', 'of_two_processes'),
    [
        (0, 1, True, 2, 2),
        (0, 1, False, None, None),  # others may compute on its nodes
        (4, 1, False, 1, 1),
        (4, 3, True, 3, 1),  # several processes have whole GPUs
        (4, 3, False, None, 1),
    ],
)
def test_ray_says_how_many_jobs_share_a_device_where_it_knows(
    gpus: int, per_gpu: int, alone: bool, shared: int, of_two_processes: int
) -> None:
    pytest.importorskip('ray')
    executor = make_executor('ray', workers=2, per_gpu=per_gpu)
    executor._gpus, executor._alone = gpus, alone
    executor._remote = remote = FakeRemote()
    executor.submit(Task(JOBS[0], 'x'))
    executor.submit(Task(Job('voc', 'LoRA', options={'processes': 2}), 'x'))
    assert [task.shared for task in remote.tasks] == [shared, of_two_processes]


def test_quick_jobs_share_a_call_of_ray(ray_executor: Executor, tmp_path: Path) -> None:
    jobs = [Job('mini/digits', 'LoRA', seed=s) for s in range(40)]
    summary = sweep(tmp_path, ray_executor, 'quick', jobs=jobs).run()
    assert ray_executor._size > 1
    assert (summary.done, summary.ran, summary.left) == (40, 40, 0)
    assert all(len(fake_runs.attempts(tmp_path, job)) == 1 for job in jobs)


def test_what_fails_in_a_shared_call_is_begun_again_alone(
    ray_executor: Executor, tmp_path: Path
) -> None:
    """And what dies in it takes no other job along."""
    jobs = [Job('mini/digits', 'LoRA', seed=s) for s in (0, 1, 5)]
    runs = ['failing', 'failing', 'failing', 'hanging_once']
    tasks = [
        Task(job, str(tmp_path), run=f'fake_runs:{run}')
        for job, run in zip([*jobs, Job('mini/digits', 'SSF')], runs, strict=True)
    ]
    thread = kill_when_it_hangs(tmp_path, tasks[-1].job)
    dispatcher = Dispatcher(ray_executor)
    ray_executor._size = 4
    for task in tasks:
        dispatcher.put(task)
    ends = {}
    while dispatcher.busy:
        ends |= {outcome.id: outcome.status for _, outcome in dispatcher.step()}
    thread.join()
    assert [ends[task.job.id] for task in tasks] == ['done', 'done', 'failed', 'done']
    counts = [len(fake_runs.attempts(tmp_path, task.job)) for task in tasks]
    assert counts == [1, 2, 2, 2]


def test_a_call_of_ray_hands_back_what_it_has_no_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(job, str(tmp_path), run='fake_runs:quick') for job in JOBS]
    outcomes, seconds = ray_cluster.remote_several(tasks)
    assert [outcome.id for outcome in outcomes] == [job.id for job in JOBS]
    monkeypatch.setattr(ray_cluster, 'CALL_S', seconds / 1000)
    outcomes, _ = ray_cluster.remote_several(tasks)
    assert [outcome.id for outcome in outcomes] == [JOBS[0].id]


def test_submitit_says_how_many_jobs_share_a_device_where_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = submitit_here(monkeypatch)  # two workers on this machine
    assert executor._shared() == 2
    executor._threads = None  # as on Slurm
    assert executor._shared() is None
    for asked in ({'gpus_per_node': 1}, {'slurm_exclusive': True}):
        executor._parameters = asked
        assert executor._shared() == 1
    executor.close()


def test_a_worker_that_always_dies_becomes_a_failure(tmp_path: Path) -> None:
    job = Job('mini/digits', 'LoRA')
    executor = make_executor('local', workers=1)
    summary = sweep(tmp_path, executor, 'dying', jobs=[job], retries=2).run()
    assert len(fake_runs.attempts(tmp_path, job)) == 3
    record = RecordStore(tmp_path).read(job)
    assert (record.status, record.attempts) == ('failed', 3)
    assert 'killed by SIGKILL, 3 times' in summary.failed[job.id]
    again = sweep(tmp_path, executor, 'dying', jobs=[job], retries=2).run()
    assert again.ran == 0


def test_gpus_are_shared_by_turns_and_by_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    class Card:
        def __init__(self, gb: int) -> None:
            self.total_memory = gb * 2**30

    cards = [Card(40), Card(10)]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: cards[i])
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert local_module.gpu_slots(2, None) == ['0', '1', '0', '1']
    assert local_module.gpu_slots(4, 9.0) == ['0', '1', '0', '0', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    executor = make_executor('local', per_gpu=3, memory_gb=16.0)
    assert executor.slots == 2
    assert executor._places == ['3', '3']
    with pytest.raises(PETLError, match='no GPU here has that much'):
        make_executor('local', memory_gb=50.0)


BAD = {
    'name': (('rai',), {}, "no executor 'rai'. Did you mean 'ray'"),
    'option': (('local',), {'partition': 'x'}, "unexpected keyword.*'partition'"),
    'workers': (('local',), {'workers': 0}, 'needs workers of at least 1'),
    'per_gpu': (('ray',), {'per_gpu': 0}, 'needs per_gpu of at least 1'),
    'cluster': (('slurm',), {'cluster': 'pbs'}, "no cluster 'pbs'"),
    'parameter': (('slurm',), {'tmeout_min': 3, 'cluster': 'local'}, 'tmeout_min'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_options_fail_in_a_line(case: str) -> None:
    names, options, message = BAD[case]
    for package in {'ray': ['ray'], 'slurm': ['submitit']}.get(names[0], []):
        pytest.importorskip(package)
    with pytest.raises(PETLError, match=message) as error:
        make_executor(*names, **options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'module'), [('ray', 'ray'), ('slurm', 'submitit')])
def test_a_missing_extra_is_named(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PETLError, match=f'pip install .*"{module}>='):
        make_executor(name)


def test_slurm_settings_are_key_value_pairs() -> None:
    from mmpetl.benchmark.executors.slurm import parse_settings

    found = parse_settings(['slurm_partition=gpu', 'timeout_min=30'])
    assert found == {'slurm_partition': 'gpu', 'timeout_min': 30}
    with pytest.raises(PETLError, match='KEY=VALUE'):
        parse_settings(['gpu'])
