"""One run, from a job to its record.

Everything a record says is read off the files of the run's folder, which are written
as the run goes on. A run that is killed at any moment is begun again by the same call:
it continues from its newest checkpoint, and a test reading that is on file is not
repeated.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpetl.benchmark import claims, run_facts
from mmpetl.benchmark.collect import (
    LOG,
    PREDICTIONS,
    RESULTS,
    collect,
    last_test,
    now,
)
from mmpetl.benchmark.config_digest import changes, config_hash, keep
from mmpetl.benchmark.group import train_in_processes
from mmpetl.benchmark.job_config import PROCESSES, compose_job, test_data
from mmpetl.benchmark.optuna_study import Pruned, PruningHook
from mmpetl.benchmark.phases import run_phases
from mmpetl.benchmark.records import Job, Record, earlier_reads
from mmpetl.benchmark.task import Task
from mmpetl.config.protocols import check_ranked
from mmpetl.core import PETLError
from mmpetl.engine.run_names import forget
from mmpetl.engine.zero import check_zero
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'Outcome': 'mmpetl.benchmark.task',
        'console_of': 'mmpetl.benchmark.worker',
        'curves_of': 'mmpetl.benchmark.collect',
        'failed': 'mmpetl.benchmark.worker',
        'is_final': 'mmpetl.benchmark.task',
        'lost': 'mmpetl.benchmark.worker',
        'outcome_of': 'mmpetl.benchmark.task',
        'ppt_of': 'mmpetl.benchmark.collect',
        'primary_of': 'mmpetl.benchmark.collect',
        'tidy': 'mmpetl.benchmark.worker',
        'work': 'mmpetl.benchmark.worker',
    },
)

CHECKPOINTS_MB_PER_S = 4.0
"""What checkpoints of a job may write on average, beside its first and its last."""


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
        pruner: Arguments of :class:`mmpetl.benchmark.optuna_study.PruningHook`.

    Returns:
        The record; the caller writes it.

    Raises:
        PETLError: The job cannot be run as it is asked for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = compose_job(job, folder)
    check_zero(config, config.get(PROCESSES, 1))
    config.work_dir = str(folder)
    digest = config_hash(config)
    if begun_with(folder) != digest or not finished(job, folder):
        check_ranked(config)
    log, restarted = begin(folder, config, digest)
    resting = run_facts.release_peak()
    _write_config(config, folder / 'config.py')
    if run_phases(job, config, folder):
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
    record.restarted = restarted
    record.test_reads += earlier_reads(search, job.seed)
    if pruned:
        record.status = 'pruned'
    return record


def begun_with(folder: Path) -> str:
    """Digest of the config of the last attempt in a folder; empty where none was."""
    from mmpetl.engine.hooks.run_log import read_run_log

    lines = read_run_log(folder / LOG)
    return next((x['config'] for x in reversed(list(lines)) if 'attempt' in x), '')


def begin(folder: Path, config: Any, digest: str) -> tuple[Any, str]:
    """Open the log of an attempt; files of another config are removed first.

    Returns:
        The hook that writes the log, and why files were removed: empty where none were.
    """
    from mmpetl.engine.hooks.run_log import RunLogHook, append_line, read_run_log

    lines = list(read_run_log(folder / LOG))
    attempts = [line for line in lines if 'attempt' in line]
    restarted = attempts[-1].get('restarted', '') if attempts else ''
    if attempts and attempts[-1]['config'] != digest:
        restarted = f'begun anew, since {changes(folder, config)}'
        print(f'{folder.name}: {restarted}', flush=True)
        for path in folder.iterdir():
            # The lock or the leases hold the run, now too.
            kept = path.name in (claims.LOCK, 'console.log', 'record.json')
            if kept or path.name.startswith(claims.LEASE):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        attempts = []
    keep(folder, config)
    line = {'attempt': len(attempts) + 1, 'begun': now(), 'config': digest}
    line['pid'] = os.getpid()
    if restarted:
        line['restarted'] = restarted
    append_line(folder / LOG, line)
    return RunLogHook(str(folder / LOG)), restarted


def _write_config(config: Any, path: Path) -> None:
    part = path.with_name('config.part.py')
    part.write_text(config.pretty_text, encoding='utf-8')
    part.replace(path)


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

    A job of several processes trains in them, and is read here. Its trials run to their
    end, whatever the pruner.

    Args:
        job: What is asked.
        config: Its config.
        folder: Where the run lives.
        log: The hook that writes the log.
        resting: Resident memory in bytes from which the peak is counted.
        pruner: Arguments of the pruning hook.

    Raises:
        mmpetl.engine.stopping.Stopped: A signal came; what could be saved is.
    """
    from mmpetl.engine.best import best_checkpoint
    from mmpetl.engine.latest import newest_checkpoint

    config = prepare(config, folder)
    processes = config.get(PROCESSES, 1)
    try:
        if processes > 1:
            train_in_processes(job, folder, processes)
            if job.stage == 'tune':
                return
            config.resume = False
            runner = _built(config, folder, [log], ('test',))
            source = newest_checkpoint(folder)[0]
        else:
            runner = train_only(job, config, folder, [log], resting, pruner)
            source = None
        if job.stage != 'tune':
            # What a protocol with validations reports is the best of its readings.
            source = best_checkpoint(folder) or source
            if source is not None:
                runner.load_checkpoint(str(source))
            runner.test()
    finally:
        forget(config.experiment_name)


def train_only(
    job: Job,
    config: Any,
    folder: Path,
    hooks: Sequence[Any],
    resting: int | None = None,
    pruner: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Any:
    """Train from the newest checkpoint on; a trial is scored at its end.

    Args:
        job: What is asked.
        config: Its config, of :func:`prepare`.
        folder: Where the run lives.
        hooks: The hook that writes the log, and others.
        resting: Resident memory in bytes from which the peak is counted.
        pruner: Arguments of the pruning hook.
        launcher: ``pytorch`` in one of several processes.

    Returns:
        The Runner.
    """
    import torch

    from mmpetl.engine.stopping import stop_on_signals, train_until_stopped

    log = hooks[0]
    if pruner is not None:
        hooks = [*hooks, PruningHook(**pruner)]
    # A reading of the test set that nothing asked for could not be taken back.
    phases = ('train', 'val') if job.stage == 'tune' else ('train', 'val', 'test')
    # Jobs go on by themselves: there is no flag to add.
    with stop_on_signals(flag='') as stop:
        test = test_data(job) if job.stage == 'tune' else None
        runner = _built(config, folder, hooks, phases, launcher, test)
        train_until_stopped(runner, stop)
    peak = run_facts.peak_resident()
    if torch.cuda.is_available():
        log.write({'peak_memory_bytes': torch.cuda.max_memory_allocated()})
    elif peak is not None and resting is not None:
        log.write({'peak_memory_bytes': max(0, peak - resting)})
    if job.stage == 'tune':
        _last_validation(runner, folder, log)
    return runner


def _built(
    config: Any,
    folder: Path,
    hooks: Sequence[Any],
    phases: tuple[str, ...],
    launcher: str = 'none',
    test: Any = None,
) -> Any:
    from mmpetl.apis.run import build_runner
    from mmpetl.engine.hooks.predictions import PredictionsHook
    from mmpetl.engine.hooks.results import ResultsHook

    runner = build_runner(config, check_data=phases, launcher=launcher, test_data=test)
    said = PredictionsHook(str(folder / PREDICTIONS))
    for hook in (*hooks, said, ResultsHook(str(folder / RESULTS))):
        runner.register_hook(hook)
    return runner


def prepare(config: Any, folder: Path) -> Any:
    """A copy of the config with what the run needs and its result does not."""
    from mmpetl.engine.latest import newest_checkpoint

    config = copy.deepcopy(config)
    config.experiment_name = folder.name
    config.resume = newest_checkpoint(folder)[0] is not None
    if config.resume:
        config.load_from = None
    saves = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if str(saves.get('type', '')).endswith('DeltaCheckpointHook'):
        # What a run goes on from is one file. Of a whole backbone with its optimizer
        # it is a gigabyte, which epochs of some seconds need not write each time.
        saves['max_keep_ckpts'] = 1
        saves.setdefault('most_mb_per_s', CHECKPOINTS_MB_PER_S)
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


def export(config: Any, folder: Path) -> None:
    """Write the delta beside the record, from the checkpoint that was tested."""
    from mmpetl.apis.delta import delta_paths, export_delta
    from mmpetl.engine.best import best_checkpoint
    from mmpetl.engine.latest import newest_checkpoint

    out = folder / 'delta'
    if all(path.is_file() for path in delta_paths(out)):
        return
    source = best_checkpoint(folder) or newest_checkpoint(folder)[0]
    if source is None:
        raise PETLError(
            f'{folder.name} has no checkpoint to export; default_hooks.checkpoint must '
            'save the last step (save_last=True)'
        )
    export_delta(source, config, out, metrics=last_test(folder)[0])
