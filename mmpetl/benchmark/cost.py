"""What a plan will take, before it is run.

An estimate of a pair (recipe, method, options) comes from records of the same pair
where there are some, or else from a calibration: the run is built, a few steps are
taken, and it is thrown away. Calibrations are kept below ``calibration`` in the
benchmark's folder.

The data of a recipe are looked at by the first method that is calibrated on it. Recipes
that differ in data alone (:func:`likeness`) take the same steps: the other methods are
calibrated on one of them. A pair that is estimated in this way is still composed and
its model built.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmengine.hooks import Hook

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import passes_of
from mmpetl.benchmark.config_digest import config_hash
from mmpetl.benchmark.executors import Executor
from mmpetl.benchmark.job_config import PROCESSES, compose_job, split_options
from mmpetl.benchmark.phases import phases_of
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.sweep import Sweep
from mmpetl.benchmark.task import Task
from mmpetl.engine.run_names import forget

STEPS, ENOUGH_S = 3, 0.5
"""Steps that a calibration measures at most, after one that warms up, and seconds of
steps behind which it takes no more on a CPU. On a GPU what they take at their peak
decides which jobs share it, and more steps show more of it."""


@dataclass(frozen=True)
class Estimate:
    """What one job of a pair is expected to take.

    Attributes:
        steps: Steps of the optimizer.
        seconds: Wall time on the device where it was measured.
        memory_bytes: Peak memory; None where the system does not tell.
        source: ``records`` or ``calibration``.
        like: Recipe whose calibration it is, where that is another of equal steps.
    """

    steps: int
    seconds: float
    memory_bytes: int | None
    source: Literal['records', 'calibration']
    like: str = ''


def key_of(job: Job) -> Job:
    """The job that stands for all seeds of a pair."""
    return dataclasses.replace(job, seed=0)


def estimates(jobs: Iterable[Job], out: str | os.PathLike) -> dict[str, Estimate]:
    """Estimates by a job's id, as far as records and calibrations tell."""
    jobs = list(jobs)
    store, trial = RecordStore(out), RecordStore(Path(out) / 'calibration')
    by_key: dict[str, list[Record]] = {}
    keys = {job.id: key_of(job) for job in jobs}
    names = {name: key.id for name, key in keys.items()}
    for name, record in store.of(jobs, curves=True).items():
        if record.status == 'done':
            by_key.setdefault(names[name], []).append(record)
    found = {name: _of_records(records) for name, records in by_key.items()}
    unknown = {key.id: key for key in keys.values() if key.id not in found}
    for name, record in trial.of(unknown.values()).items():
        if record.status == 'done':
            found[name] = _of_calibration(record)
    return {name: found[key] for name, key in names.items() if key in found}


def _of_records(records: Sequence[Record]) -> Estimate:
    peaks = [r.peak_memory_bytes for r in records if r.peak_memory_bytes is not None]
    # Curves of older versions count passes.
    ends = [int(r.curves['loss'][-1][0]) for r in records if r.curves.get('loss')]
    steps = [r.steps for r in records if r.steps is not None]
    return Estimate(
        max(steps or ends, default=0),
        statistics.median(r.seconds for r in records),
        max(peaks, default=None),
        'records',
    )


def _of_calibration(record: Record) -> Estimate:
    facts = record.metrics
    seconds = (
        facts['startup_s']
        + facts['steps'] * (record.step_seconds or 0.0)
        + facts['test_batches'] * facts['test_batch_s']
    )
    peak = record.peak_memory_bytes
    steps = math.ceil(facts['steps'] / facts.get(PASSES, 1))
    return Estimate(steps, seconds, peak, 'calibration', record.task)


def to_calibrate(jobs: Iterable[Job], out: str | os.PathLike) -> list[Job]:
    """One job for each pair of which nothing is known."""
    known = estimates(jobs := list(jobs), out)
    keys = {key_of(job).id: key_of(job) for job in jobs if job.id not in known}
    return list(keys.values())


def calibrate(
    jobs: Sequence[Job],
    out: str | os.PathLike,
    executor: Executor,
    toolboxes: Sequence[str] = (),
    watch: Callable[[Any], None] | None = None,
) -> dict[str, str]:
    """Measure pairs; returns the ids of those that failed, with the failure."""
    place = Path(out) / 'calibration'
    store = RecordStore(place)
    for job in jobs:
        record = store.read(job)
        if record is not None and record.status == 'failed':
            # What lacked last time, data for one, may be there now.
            (store.folder(job) / 'record.json').unlink()
    like = models_of(jobs)
    failed: dict[str, str] = {}
    for some in (
        [job for job in jobs if len(like.get(job.id, ())) < 2],
        [job for job in jobs if len(like.get(job.id, ())) == 2],
    ):
        run = f'{__name__}:measure'
        sweep = Sweep(
            some, place, executor, 0, toolboxes, run=run, watch=watch, like=like
        )
        if some:  # the second read what the first have left
            failed |= sweep.run().failed
    return failed


def models_of(jobs: Iterable[Job]) -> dict[str, tuple[Job, ...]]:
    """Which calibrations say what those of other pairs would find out.

    Returns:
        By the id of a job, the one that looks at the data of its recipe; where its own
        steps need not be measured, behind the one of its method on a recipe that
        differs in data alone. Steps of published settings are always measured.
    """
    likes: dict[str, str] = {}
    first: dict[str, Job] = {}
    own: dict[str, Job] = {}
    found: dict[str, tuple[Job, ...]] = {}
    for job in jobs:
        if job.leaf:
            continue
        args, rest = split_options(job.options)
        recipe = _text([job.recipe, job.protocol, job.stage, rest])
        if recipe not in likes:
            likes[recipe] = likeness(job)
        looks = own.setdefault(recipe, job)
        same = first.setdefault(_text([likes[recipe], job.method, args]), job)
        if job is not looks:
            found[job.id] = (looks,) if job is same else (same, looks)
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def likeness(job: Job) -> str:
    """A digest of all of a job's recipe that a step takes time and memory for.

    It holds the model but for its number of classes, the optimizer, hooks, loaders with
    batch and transforms; it leaves out which files are read and for how many epochs.
    """
    rest = split_options(job.options)[1]
    plain = dataclasses.replace(job, method='LinearProbe', options=rest)
    config = compose_job(plain, '').to_dict()
    kept: dict[str, Any] = {key: config.get(key) for key in OF_A_STEP}
    # Not among the others, so that jobs without them are those that were timed before.
    kept |= {key: config[key] for key in OF_MEMORY if config.get(key)}
    for phase in ('train', 'test'):
        loader = dict(config.get(f'{phase}_dataloader') or {})
        kept[phase] = {**loader, 'dataset': _transforms(loader.get('dataset'))}
    return hashlib.sha256(_text(_without_classes(kept)).encode()).hexdigest()


OF_A_STEP = (
    *('model', 'data_preprocessor', 'optim_wrapper', 'batch', PROCESSES, 'env_cfg'),
    *('default_hooks', 'custom_hooks', 'model_wrapper_cfg', 'compile'),
)
"""Keys of a config that a step takes time for, beside its loaders."""

OF_MEMORY = ('deepspeed', 'offload_activations', 'shard_base')
"""The same, of keys that most configs have not."""


def _transforms(node: Any) -> Any:
    """The pipelines of a data set and of those that it wraps."""
    if isinstance(node, list | tuple):
        return [_transforms(part) for part in node if isinstance(part, dict | list)]
    return {
        key: value if key == 'pipeline' else _transforms(value)
        for key, value in (node or {}).items()
        if key == 'pipeline' or isinstance(value, dict | list)
    }


def _without_classes(node: Any) -> Any:
    if isinstance(node, dict):
        items = ((k, v) for k, v in node.items() if k != 'num_classes')
        return {str(key): _without_classes(value) for key, value in items}
    if isinstance(node, list | tuple):
        return [_without_classes(part) for part in node]
    return node


def estimated(task: Task, asked: Any) -> Record | None:
    """The calibration of a pair, from those that stand for it.

    Returns:
        None where these are not there.

    Raises:
        PETLError: The model of the pair cannot be built.
    """
    from mmpetl.apis.building import build_model
    from mmpetl.config.nodes import petl_backbone_of

    records = [_calibrated(task, job) for job in task.like]
    if len(records) < 2 or None in records:
        return None
    same, own = records
    config = copy.deepcopy(asked)
    node = petl_backbone_of(config)
    if node is not None:
        node['checkpoint'] = None  # those that were measured have read it
    build_model(config, quiet=True)
    facts = own.metrics
    steps, batches = _with_phases(asked, int(facts[OWN]), int(facts[OWN_BATCHES]))
    found = copy.copy(same)
    found.job, found.task = task.job, task.like[0].recipe
    found.config_hash = config_hash(asked)
    found.metrics = {**same.metrics, 'steps': steps, 'test_batches': batches}
    found.metrics |= {OWN: facts[OWN], OWN_BATCHES: facts[OWN_BATCHES]}
    found.metrics[PASSES] = passes_of(asked)
    return found


def _calibrated(task: Task, job: Job) -> Record | None:
    """The calibration of a job in the folder of a task, if it is there."""
    record = RecordStore(task.out).read(job)
    if record is None or record.status != 'done' or OWN not in record.metrics:
        return None
    return record


OWN, OWN_BATCHES = 'own_steps', 'own_test_batches'
"""Steps and test batches of a run without the phases of its method."""

PASSES = 'passes'
"""Of the steps that a calibration counts, how many make one of the optimizer."""


def measure(task: Task, folder: Path) -> Record:
    """Build a run, take a few steps, and note what they cost."""
    from mmpetl.apis.run import build_runner

    began = time.perf_counter()
    resting = run_facts.release_peak()
    asked = compose_job(task.job, folder)
    found = estimated(task, asked)
    if found is not None:
        return found
    config = copy.deepcopy(asked)
    config._format_python_code = False  # nobody reads its text
    config.pop('phases', None)
    config.experiment_name = folder.name
    config.resume = False
    phases = ('train', 'val', 'test')
    if task.like and _calibrated(task, task.like[-1]) is not None:
        phases, config.protocol = (), None  # its data were looked at
    hook = _StepsHook(began)
    try:
        runner = build_runner(config, check_data=phases)
        runner.register_hook(hook)
        try:
            runner.train()
        except _Enough:
            pass
        peak = _peak(resting)
        batches, seconds = _test_cost(runner)
    finally:
        forget(config.experiment_name)
    steps = runner.max_iters
    if asked.train_cfg.get('max_epochs'):
        # Here one process has the passes of all.
        steps = math.ceil(steps / asked.get('processes', 1))
    own = {OWN: steps, OWN_BATCHES: batches}
    steps, batches = _with_phases(asked, steps, batches)
    return Record(
        job=task.job,
        status='done',
        metrics={
            'steps': steps,
            'startup_s': hook.startup,
            'test_batches': batches,
            'test_batch_s': seconds,
            PASSES: passes_of(asked),
            **own,
        },
        config_hash=config_hash(asked),
        step_seconds=statistics.median(hook.steps),
        peak_memory_bytes=peak,
        seconds=time.perf_counter() - began,
        device=run_facts.device(),
        versions=run_facts.versions(),
        commit=run_facts.commit(),
    )


class _Enough(Exception):
    """The steps that were wanted are taken."""


class _StepsHook(Hook):
    """Times a few steps, data loading included, and stops."""

    priority = 'VERY_LOW'

    def __init__(self, began: float) -> None:
        self.began = began
        self.startup = 0.0
        self.steps: list[float] = []
        self._last: float | None = None

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._last is None:
            self.startup = now - self.began
        else:
            self.steps.append(now - self._last)
        self._last = now
        enough = len(self.steps) == STEPS
        enough |= sum(self.steps) >= ENOUGH_S and not on_gpu
        if enough or runner.iter + 1 == runner.max_iters:
            if not self.steps:
                self.steps.append(self.startup)
            raise _Enough


def _peak(resting: int | None) -> int | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = run_facts.peak_resident()
    return None if peak is None or resting is None else max(0, peak - resting)


def _test_cost(runner: Any) -> tuple[int, float]:
    """Batches of the test set, and seconds for one; zeros where there is none."""
    import torch

    if not runner.cfg.get('test_dataloader'):
        return 0, 0.0
    loader = runner.build_dataloader(runner.cfg.test_dataloader)
    began = time.perf_counter()
    batch = next(iter(loader))
    runner.model.eval()
    with torch.no_grad():
        runner.model.test_step(batch)
    return len(loader), time.perf_counter() - began


def _with_phases(config: Any, steps: int, batches: int) -> tuple[int, int]:
    """Add what the phases of a method train and score before the run itself."""
    epochs = config.train_cfg.get('max_epochs')
    costs = [loop.cost(given, epochs) for loop, given in phases_of(config).items()]
    # 800 of 1,000 images train in them, the 200 others score: two batches of 128.
    trained = round(0.8 * steps * sum(cost[0] for cost in costs))
    return steps + trained, batches + 2 * sum(cost[1] for cost in costs)


@dataclass(frozen=True)
class Total:
    """Cost of the jobs that are left.

    Attributes:
        seconds: Of all of them one after another.
        memory_bytes: The most that one needs.
        unknown: Jobs of which nothing is known; the sum leaves them out.
    """

    seconds: float
    memory_bytes: int | None
    unknown: int


def total(jobs: Sequence[Job], known: Mapping[str, Estimate]) -> Total:
    """Add up the estimates of jobs."""
    mine = [known[job.id] for job in jobs if job.id in known]
    peaks = [e.memory_bytes for e in mine if e.memory_bytes is not None]
    return Total(
        sum(e.seconds for e in mine), max(peaks, default=None), len(jobs) - len(mine)
    )
