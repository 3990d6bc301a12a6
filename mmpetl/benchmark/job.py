"""One run, from a job to its record.

Everything a record says is read off the files of the run's folder, which are written
as the run goes on. A run that is killed at any moment is begun again by the same call:
it continues from its newest checkpoint, and a test reading that is on file is not
repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmpetl.benchmark import facts
from mmpetl.benchmark.compose import compose_job, config_hash
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.core import PETLError

LOG = 'log.jsonl'
PREDICTIONS = 'predictions.npz'

_runs = itertools.count()


class Pruned(Exception):
    """A trial was stopped since others did better at the same step."""


@dataclass(frozen=True)
class Task:
    """What a worker is told: a job and all that it needs to do it.

    It is plain data, so that it travels to other processes and machines.

    Attributes:
        job: What to run.
        out: The benchmark's folder, absolute.
        retries: How often a job that failed is begun again.
        env: Environment variables that matter: where data and weights lie.
        threads: Threads of torch; None leaves them.
        search: Record of the search that chose the options.
        pruner: Arguments of :class:`mmpetl.benchmark.search.PruningHook`, for a trial.
        run: What does the work, ``module:function``; called with the task and the
            run's folder, it returns a record.
    """

    job: Job
    out: str
    retries: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    search: Mapping[str, Any] | None = None
    pruner: Mapping[str, Any] | None = None
    run: str = 'mmpetl.benchmark.job:run_task'


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        id: The job's.
        status: ``done``, ``failed`` or ``pruned`` as the record says; ``elsewhere``
            where another process holds the job; ``lost`` where the worker died.
        note: The failure in a line.
        again: Whether the job may be begun again.
    """

    id: str
    status: str
    note: str = ''
    again: bool = False


def work(task: Task) -> Outcome:
    """Do a task, unless it is done or another process is at it; leaves a record.

    An exception of the run becomes a record of a failure. What ends the process itself
    leaves no record, and the next call continues.
    """
    store, job = RecordStore(task.out), task.job
    os.environ.update(task.env)
    with store.claim(job) as mine:
        if not mine:
            return Outcome(job.id, 'elsewhere')
        before = store.read(job)
        if before is not None and is_final(before, task.retries):
            return outcome_of(before, task.retries)
        folder = store.folder(job)
        with console_of(folder):
            if task.threads:
                import torch

                torch.set_num_threads(task.threads)
            try:
                record = _resolve(task.run)(task, folder)
            except Exception as error:
                traceback.print_exc()
                record = failed(task, folder, error)
        record.attempts = 1 + (before.attempts if before is not None else 0)
        store.write(record)
        if record.status != 'failed':
            tidy(folder)
        return outcome_of(record, task.retries)


def is_final(record: Record, retries: int) -> bool:
    """Whether a record leaves nothing to do: no failure, or one too many."""
    return record.status != 'failed' or record.attempts > retries


def outcome_of(record: Record, retries: int) -> Outcome:
    """The outcome that a record tells."""
    lines = (record.error or '').strip().splitlines()
    note = lines[-1] if lines else ''
    return Outcome(record.job.id, record.status, note, not is_final(record, retries))


def _resolve(name: str) -> Any:
    import importlib

    module, _, function = name.partition(':')
    return getattr(importlib.import_module(module), function)


@contextlib.contextmanager
def console_of(folder: Path) -> Iterator[None]:
    """Send what a run prints to ``console.log``: the screen belongs to the table."""
    with (
        open(folder / 'console.log', 'a', encoding='utf-8', errors='replace') as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def run_task(task: Task, folder: Path) -> Record:
    """Train, test and record a task."""
    return run_job(task.job, folder, search=task.search, pruner=task.pruner)


def run_job(
    job: Job,
    folder: str | os.PathLike,
    search: Mapping[str, Any] | None = None,
    pruner: Mapping[str, Any] | None = None,
) -> Record:
    """Do a job in a folder, or what is left of it.

    Args:
        job: What to run.
        folder: Where the run lives. Files of the same run in it are continued, those
            of a run with another config are removed.
        search: Goes into the record.
        pruner: Arguments of :class:`mmpetl.benchmark.search.PruningHook`.

    Returns:
        The record; the caller writes it.

    Raises:
        PETLError: The job cannot be run as it is asked for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = compose_job(job, folder)
    config.work_dir = str(folder)
    digest = config_hash(config)
    log = begin(folder, digest)
    resting = facts.release_peak()
    _write_config(config, folder / 'config.py')
    if job.method == 'NOAH' and needs_phases(config):
        from mmpetl.benchmark.phases import run_phases

        run_phases(job, config, folder)
        _write_config(config, folder / 'config.py')
    pruned = False
    if not finished(job, folder):
        try:
            train_and_read(job, config, folder, log, resting, pruner)
        except Pruned:
            pruned = True
    if not pruned and job.stage == 'final':
        export(config, folder)
    record = collect(job, config, folder, digest)
    record.search = dict(search) if search else None
    if pruned:
        record.status = 'pruned'
    return record


def begin(folder: Path, digest: str) -> Any:
    """Open the log of an attempt; files of another config are removed first."""
    from mmpetl.engine.hooks.run_log import RunLogHook, append_line, read_run_log

    attempts = [line for line in read_run_log(folder / LOG) if 'attempt' in line]
    if attempts and attempts[-1]['config'] != digest:
        for path in folder.iterdir():
            if path.name in ('lock', 'console.log', 'record.json'):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        attempts = []
    line = {'attempt': len(attempts) + 1, 'begun': _now(), 'config': digest}
    line['pid'] = os.getpid()
    append_line(folder / LOG, line)
    return RunLogHook(str(folder / LOG))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def _write_config(config: Any, path: Path) -> None:
    part = path.with_name('config.part.py')
    part.write_text(config.pretty_text, encoding='utf-8')
    part.replace(path)


def needs_phases(config: Any) -> bool:
    """Whether a NOAH run has no subnet yet, so that one must be searched first."""
    method = config.model.backbone.method
    return method.get('space') is not None


def finished(job: Job, folder: Path) -> bool:
    """Whether the reading that a job ends with is on file."""
    from mmpetl.engine.hooks.run_log import read_run_log

    lines = list(read_run_log(folder / LOG))
    if job.stage == 'tune':
        return any('val' in x and x.get('last') for x in lines)
    return any('test' in x for x in lines)


def train_and_read(
    job: Job,
    config: Any,
    folder: Path,
    log: Any,
    resting: int | None = None,
    pruner: Mapping[str, Any] | None = None,
) -> None:
    """Train from the newest checkpoint on, then read the test set, once.

    ``resting`` is the resident memory in bytes from which the peak is counted.
    """
    import torch

    from mmpetl.apis.run import build_runner
    from mmpetl.engine.hooks.predictions import PredictionsHook

    config = _prepare(config, folder)
    # A reading of the test set that nothing asked for could not be taken back.
    phases = ('train', 'val') if job.stage == 'tune' else ('train', 'val', 'test')
    hooks = [log, PredictionsHook(str(folder / PREDICTIONS))]
    if pruner is not None:
        from mmpetl.benchmark.search import PruningHook

        hooks.append(PruningHook(**pruner))
    try:
        runner = build_runner(config, check_data=phases)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
        peak = facts.peak_resident()
        if torch.cuda.is_available():
            log.write({'peak_memory_bytes': torch.cuda.max_memory_allocated()})
        elif peak is not None and resting is not None:
            log.write({'peak_memory_bytes': max(0, peak - resting)})
        if job.stage == 'tune':
            _last_validation(runner, folder, log)
        else:
            best = sorted(folder.glob('best_*.pth'))
            if best:
                # What such a protocol reports is the best of its readings.
                runner.load_checkpoint(str(best[-1]))
            runner.test()
    finally:
        _forget(config.experiment_name)


def _prepare(config: Any, folder: Path) -> Any:
    """A copy of the config with what the run needs and its result does not."""
    import copy

    config = copy.deepcopy(config)
    config.experiment_name = f'{folder.name}-{os.getpid()}-{next(_runs)}'
    config.resume = (folder / 'last_checkpoint').is_file()
    if config.resume:
        config.load_from = None
    return config


def _last_validation(runner: Any, folder: Path, log: Any) -> None:
    """Mark the reading of the last step; take it where the run was killed before it."""
    from mmpetl.engine.hooks.run_log import read_run_log

    def readings() -> list[dict[str, Any]]:
        lines = read_run_log(folder / LOG)
        return [x for x in lines if 'val' in x and x['step'] == runner.max_iters]

    if not readings():
        runner.val()
    if not readings():
        raise PETLError(
            f'{folder.name} has no validation to choose by; the recipe needs '
            'val_dataloader, val_evaluator and val_cfg in stage tune'
        )
    line = readings()[-1]
    log.write({'step': line['step'], 'val': line['val'], 'last': True})


def _forget(name: str) -> None:
    """Drop MMEngine's globals of a run: the next one in this process is another."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    for kind in (MessageHub, MMLogger, Visualizer):
        instance = kind._instance_dict.pop(name, None)
        for handler in getattr(instance, 'handlers', ()):
            handler.close()


def export(config: Any, folder: Path) -> None:
    """Write the delta beside the record, from the checkpoint that was tested."""
    from mmpetl.apis.delta import delta_paths, export_delta

    out = folder / 'delta'
    if all(path.is_file() for path in delta_paths(out)):
        return
    best = sorted(folder.glob('best_*.pth'))
    if best:
        source = best[-1]
    else:
        pointer = folder / 'last_checkpoint'
        if not pointer.is_file():
            raise PETLError(
                f'{folder.name} has no checkpoint to export; default_hooks.checkpoint '
                'must save the last step (save_last=True)'
            )
        source = folder / Path(pointer.read_text(encoding='utf-8').strip()).name
    export_delta(source, config, out, metrics=_reading(folder)[0])


def _reading(folder: Path) -> tuple[dict[str, float], int]:
    """The last metrics of the test set, and how often it was scored."""
    from mmpetl.engine.hooks.run_log import read_run_log

    metrics, reads = {}, 0
    for line in read_run_log(folder / LOG):
        if 'test' in line:
            metrics = line['test']
        reads += 'test' in line or bool(line.get('reads_test'))
    return metrics, reads


def collect(job: Job, config: Any, folder: Path, digest: str) -> Record:
    """The record that a run's files tell."""
    import json

    from mmpetl.core import registered_methods
    from mmpetl.engine.hooks.run_log import read_run_log

    lines = list(read_run_log(folder / LOG))
    metrics, reads = _reading(folder)
    if job.stage == 'tune':
        last = [x['val'] for x in lines if 'val' in x]
        metrics = last[-1] if last else {}
    metrics = {k: v for k, v in metrics.items() if v is not None}
    efficiency = {}
    path = folder / 'efficiency.json'
    if path.is_file():
        efficiency = json.loads(path.read_text(encoding='utf-8'))
    counts = efficiency.get('counts', {})
    task, group = facts.task_of(job.recipe, config)
    primary = primary_of(metrics)
    record = Record(
        job=job,
        status='done',
        family=registered_methods()[job.method].family,
        settings=facts.settings_of(config),
        task=task,
        group=group,
        backbone=facts.backbone_of(config),
        metrics=metrics,
        primary=primary,
        ppt=ppt_of(metrics, primary, counts),
        counts=counts,
        curves=curves_of(lines),
        config_hash=digest,
        base=_base(folder),
        preprocessing=facts.preprocessing_of(config),
        test_reads=reads,
        step_seconds=efficiency.get('step_time_s') or _step_seconds(lines),
        device=facts.device(),
        versions=facts.versions(),
        commit=facts.commit(),
    )
    return _timed(record, lines)


def _timed(record: Record, lines: list[dict[str, Any]]) -> Record:
    """Fill in what the log says of time and memory."""
    begun = [line['begun'] for line in lines if 'attempt' in line]
    seconds, last = 0.0, 0.0
    for line in lines:
        if 'attempt' in line:
            seconds, last = seconds + last, 0.0
        last = line.get('t', last)
    peaks = [x['peak_memory_bytes'] for x in lines if 'peak_memory_bytes' in x]
    record.seconds = round(seconds + last, 3)
    record.peak_memory_bytes = max(peaks, default=None)
    record.started = begun[0] if begun else _now()
    record.finished = _now()
    return record


def primary_of(metrics: Mapping[str, float]) -> str:
    """The metric that tables rank by: the first of MMEngine's usual ones."""
    from mmpetl.engine.hooks.efficiency import PRIMARY

    known = [name for name in PRIMARY if name in metrics]
    return known[0] if known else next(iter(metrics), '')


def ppt_of(
    metrics: Mapping[str, float], primary: str, counts: Mapping[str, int]
) -> float | None:
    """PPT of the primary metric; None where it is no accuracy, AP or mIoU."""
    from mmpetl.engine.hooks.efficiency import FRACTIONS, PRIMARY
    from mmpetl.evaluation.ppt import ppt

    if primary not in PRIMARY or not counts:
        return None
    score = metrics[primary] / (1 if primary in FRACTIONS else 100)
    if not 0 <= score <= 1:  # COCO reports -1 where there is nothing to score
        return None
    return ppt(score, counts['delta'] + counts['selected'])


def curves_of(lines: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Curves by name; of several values of a step the last counts."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for key in ('loss', 'lr'):
            if line.get(key) is not None:
                found.setdefault(key, {})[line['step']] = line[key]
        for key, value in (line.get('val') or {}).items():
            if value is not None and not key.endswith('time'):
                found.setdefault(f'val/{key}', {})[line['step']] = value
    return {
        name: [[step, points[step]] for step in sorted(points)]
        for name, points in found.items()
    }


def _step_seconds(lines: list[dict[str, Any]]) -> float | None:
    """Median time of a step as the log's times tell it, data loading included."""
    gaps = []
    for one, other in itertools.pairwise(x for x in lines if 'loss' in x):
        if other['step'] > one['step'] and other['t'] > one['t']:
            gaps.append((other['t'] - one['t']) / (other['step'] - one['step']))
    return statistics.median(gaps) if gaps else None


def _base(folder: Path) -> dict[str, Any]:
    """File and fingerprint of the base, as the exported delta states them."""
    import json

    path = folder / 'delta.json'
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding='utf-8'))
    name = data.get('base')
    return {
        'file': Path(name).name if name else None,
        'fingerprint': data.get('fingerprint'),
    }


def failed(task: Task, folder: Path, error: BaseException) -> Record:
    """The record of a failure, with the time so far."""
    from mmpetl.engine.hooks.run_log import append_line, read_run_log

    text = ''.join(traceback.format_exception(error)).strip()
    append_line(folder / LOG, {'failed': f'{type(error).__name__}: {error}'})
    return _timed(
        Record(
            job=task.job,
            status='failed',
            error=text,
            search=dict(task.search) if task.search else None,
            device=facts.device(),
            versions=facts.versions(),
            commit=facts.commit(),
        ),
        list(read_run_log(folder / LOG)),
    )


def lost(task: Task, note: str) -> Outcome:
    """Record that workers died at a task too often."""
    store = RecordStore(task.out)
    with store.claim(task.job) as mine:
        if not mine:
            return Outcome(task.job.id, 'elsewhere')
        record = store.read(task.job)
        if record is None or record.status == 'failed':
            record = failed(task, store.folder(task.job), PETLError(note))
            record.attempts = task.retries + 1
            store.write(record)
        return outcome_of(record, task.retries)


def tidy(folder: Path) -> None:
    """Remove what only a resumed run would need; the delta stays."""
    for path in folder.rglob('*.pth'):
        path.unlink(missing_ok=True)
    (folder / 'last_checkpoint').unlink(missing_ok=True)
