"""What a record says, read off the files of a run's folder."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.config_digest import recipe_digest
from mmpetl.benchmark.records import DataRead, Job, Record
from mmpetl.core import PETLError, methods_family
from mmpetl.core.boundary import read_json

LOG = 'log.jsonl'
DELTA = 'delta.safetensors'
PREDICTIONS = 'predictions.npz'
RESULTS = 'results.json.gz'


class Efficiency(msgspec.Struct):
    """What is read of ``efficiency.json``.

    Attributes:
        counts: Parameters by owner.
        step_time_s: Median time of a step of the optimizer.
    """

    counts: dict[str, int] = {}
    step_time_s: float | None = None


class Base(msgspec.Struct):
    """What is read of the record of an exported delta.

    Attributes:
        base: File of the base weights.
        fingerprint: Their digest.
    """

    base: str | None = None
    fingerprint: str | None = None


def collect(job: Job, config: Any, folder: Path, digest: str) -> Record:
    """The record that a run's files tell."""
    from mmpetl.engine.hooks.run_log import read_run_log

    lines = list(read_run_log(folder / LOG))
    metrics, reads = last_test(folder)
    if job.stage == 'tune':
        last = [x['val'] for x in lines if 'val' in x]
        metrics = last[-1] if last else {}
    metrics = {k: v for k, v in metrics.items() if v is not None}
    efficiency = Efficiency()
    path = folder / 'efficiency.json'
    if path.is_file():
        efficiency = read_json(path, Efficiency, 'record of costs')
    base = _base(folder)
    counts = efficiency.counts
    task, group = run_facts.task_of(job.recipe, config)
    try:
        primary = primary_of(metrics, config)
    except PETLError as error:
        # The test set was read: what came out is kept, and ranks nowhere.
        print(f'{folder.name}: no score is ranked, since {error}', flush=True)
        primary = ''
    machine = run_facts.machine()
    # Those that trained; what is read here is read by one.
    machine['processes'] = config.get('processes', machine['processes'])
    record = Record(
        job=job,
        status='done',
        family=methods_family(job.method),
        settings=run_facts.settings_of(config),
        task=task,
        group=group,
        backbone=run_facts.backbone_of(config),
        metrics=metrics,
        primary=primary,
        ppt=ppt_of(metrics, primary, counts),
        counts=counts,
        curves=curves_of(lines, passes_of(config)),
        config_hash=digest,
        base=base,
        preprocessing=run_facts.preprocessing_of(config),
        test_reads=reads,
        step_seconds=efficiency.step_time_s or _step_seconds(lines, passes_of(config)),
        device=run_facts.device(),
        versions=run_facts.versions(job.method),
        commit=run_facts.commit(),
        recipe_digest=recipe_digest(config),
        steps=steps_of(lines, config),
        epochs=(config.get('train_cfg') or {}).get('max_epochs'),
        batch=run_facts.batch_of(config, machine['processes']),
        resolution=run_facts.resolution_of(config),
        delta_bytes=size_of(folder / DELTA),
        data=data_of(folder),
        features=features_of(folder),
        **machine,
    )
    return with_times(record, lines)


def steps_of(lines: list[dict[str, Any]], config: Any) -> int | None:
    """Steps of the optimizer; a log counts passes, of which a step may take several."""
    passes = max((x['of'] for x in lines if 'of' in x), default=None)
    return None if passes is None else math.ceil(passes / passes_of(config))


def passes_of(config: Any) -> int:
    """Passes whose gradients make one step of the optimizer."""
    return (config.get('optim_wrapper') or {}).get('accumulative_counts') or 1


def data_of(folder: Path) -> dict[str, DataRead]:
    """What each phase of a run has read, as the run has kept it."""
    from mmpetl.engine.hooks.data_read import read_data_file

    return {
        phase: DataRead(**msgspec.structs.asdict(read))
        for phase, read in read_data_file(folder).items()
    }


def features_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Phases whose features a run has read from disk, as it has kept it."""
    from mmpetl.engine.hooks.feature_cache import read_features_file

    return {
        phase: {
            'key': found.key,
            'pictures': found.pictures,
            'computed': found.computed,
            'checked': found.checked,
            'difference': found.difference,
        }
        for phase, found in read_features_file(folder).items()
        if not found.why
    }


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def last_test(folder: Path) -> tuple[dict[str, float], int]:
    """The last metrics of the test set, and how often it was scored.

    A validation on it that a killed run has made again is the same, and counts once.
    """
    from mmpetl.engine.hooks.run_log import read_run_log

    metrics, reads, steps = {}, 0, set()
    for line in read_run_log(folder / LOG):
        if 'test' in line:
            metrics = line['test']
            reads += 1
        elif line.get('reads_test'):
            steps.add(line['step'])
    return metrics, reads + len(steps)


def with_times(record: Record, lines: list[dict[str, Any]]) -> Record:
    """Fill in what the log says of time and memory."""
    begun = [line['begun'] for line in lines if 'attempt' in line]
    peaks = [x['peak_memory_bytes'] for x in lines if 'peak_memory_bytes' in x]
    record.seconds = round(sum(attempt_seconds(lines)), 3)
    record.peak_memory_bytes = max(peaks, default=None)
    record.started = begun[0] if begun else now()
    record.finished = now()
    return record


def attempt_seconds(lines: list[dict[str, Any]]) -> list[float]:
    """How long each attempt was at work by the last line that it wrote, seconds."""
    found = [0.0]
    for line in lines:
        if 'attempt' in line:
            found.append(0.0)
        found[-1] = line.get('t', found[-1])
    return found


def now() -> str:
    """This moment as records write it: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def primary_of(metrics: Mapping[str, float], config: Any = None) -> str:
    """The metric that tables rank by, which is better the higher it is.

    What the config says in ``primary``; else the metric by which the published protocol
    keeps the best checkpoint; else the first of upstream's usual ones, whatever prefix
    the config gives it.

    Args:
        metrics: Those of a reading.
        config: Of the run.

    Returns:
        Its name; empty where there are no metrics.

    Raises:
        PETLError: None of the metrics is one of these. The first of them may be an
            error, which is better the lower it is.
    """
    from mmpetl.config.protocols import best_by
    from mmpetl.evaluation.metric_names import PRIMARY, last_of

    config = config or {}
    there = ', '.join(metrics)
    asked = config.get('primary')
    if asked and metrics and asked not in metrics:
        raise PETLError(f'primary is {asked!r}, and the evaluators give {there}')
    named = (asked, best_by(config), *PRIMARY)
    found = [name for name in named if name in metrics]
    found += [n for k in PRIMARY for n in metrics if last_of(n) == last_of(k)]
    if metrics and not found:
        raise PETLError(
            f'which metric tables rank by is not known of {there}; say it in the '
            "config, primary = 'NAME', of one that is better the higher it is"
        )
    return found[0] if found else ''


def ppt_of(
    metrics: Mapping[str, float], primary: str, counts: Mapping[str, int]
) -> float | None:
    """PPT of the primary metric; None where it is no accuracy, AP or mIoU."""
    from mmpetl.evaluation.metric_names import FRACTIONS, PRIMARY, meant
    from mmpetl.evaluation.ppt import ppt

    if meant(primary) not in PRIMARY or not counts:
        return None
    score = metrics[primary] / (1 if meant(primary) in FRACTIONS else 100)
    if not 0 <= score <= 1:  # COCO reports -1 where there is nothing to score
        return None
    return ppt(score, counts['delta'] + counts['selected'])


def curves_of(
    lines: list[dict[str, Any]], passes: int = 1
) -> dict[str, list[list[float]]]:
    """Curves by name; of several values of a step the last counts.

    Args:
        lines: Of a log, which counts passes.
        passes: Behind one step of the optimizer, by which curves and ``steps`` count.
    """
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        step = math.ceil(line.get('step', 0) / passes)
        for key in ('loss', 'lr'):
            if line.get(key) is not None:
                found.setdefault(key, {})[step] = line[key]
        for key, value in (line.get('val') or {}).items():
            if value is not None and not key.endswith('time'):
                found.setdefault(f'val/{key}', {})[step] = value
    return {
        name: [[step, points[step]] for step in sorted(points)]
        for name, points in found.items()
    }


def _step_seconds(lines: list[dict[str, Any]], passes: int = 1) -> float | None:
    """Median time of a step as the log's times tell it, data loading included.

    Args:
        lines: Of a log, which counts passes.
        passes: Behind one step of the optimizer.
    """
    gaps = []
    for one, other in itertools.pairwise(x for x in lines if 'loss' in x):
        steps = other['step'] - one['step']
        seconds = other.get('t', 0.0) - one.get('t', 0.0)
        if steps > 0 and seconds > 0:
            gaps.append(seconds / steps)
    return passes * statistics.median(gaps) if gaps else None


def _base(folder: Path) -> dict[str, Any]:
    """File and fingerprint of the base, as the exported delta states them."""
    path = folder / 'delta.json'
    if not path.is_file():
        return {}
    data = read_json(path, Base, 'record of a delta', finite=False)
    return {
        'file': Path(data.base).name if data.base else None,
        'fingerprint': data.fingerprint,
    }
