"""What of a record follows from the files of its run, and whether it does."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import (
    curves_of,
    features_of,
    passes_of,
    ppt_of,
    primary_of,
    steps_of,
    with_times,
)
from mmpetl.benchmark.config_digest import recipe_digest
from mmpetl.benchmark.finals import replaced_reads, search_folder
from mmpetl.benchmark.records import Found, Record, earlier_reads, reads_by_seed
from mmpetl.benchmark.verdicts import Check
from mmpetl.benchmark.verify.run import Run, Unknown, equal, hash_of, holds, same
from mmpetl.core import Owner, PETLError, injections, methods_family, owners
from mmpetl.core.boundary import read_json
from mmpetl.core.delta_file import file_keys, method_name, methods_of, to_data

NEAR = 1e-6
"""Relative difference of numbers that were computed twice in one way."""


def identity(run: Run) -> Iterator[Check]:
    """A copied or renamed folder is no second run, and a job is what its id says."""
    job = run.record.job
    yield same('id', run.raw.get('id'), job.id, 'what its job makes of it')
    if run.folder.name != job.id:
        yield Check('id', 'falsified', job.id, run.folder.name, 'name of its folder')


def config(run: Run) -> Iterator[Check]:
    """The hash is that of the config that the run left, and of the one asked for."""
    record = run.record
    if run.raw['format'] == 1:
        # Its hash told text and not what decides; nothing computes it any more.
        raise Unknown('records of format 1 have another hash of the config')
    written = hash_of(run.written, run.roots)
    yield same('config_hash', record.config_hash, written, 'of config.py')
    try:
        asked = hash_of(run.asked)
    except Unknown as error:
        yield Check('config', 'unchecked', note=str(error))
        return
    if asked == record.config_hash:
        yield Check('config', 'holds')
        return
    note = 'of what its job composes to here'
    there, here = record.commit, run_facts.commit()
    if there is not None and there == here and not here.endswith('-dirty'):
        yield Check('config', 'falsified', record.config_hash, asked, note)
    elif written == record.config_hash:
        where = f'commit {there}' if there else 'the version that it was run with'
        note = f'recipe or defaults differ in this checkout; verify with {where}'
        yield Check('config', 'unchecked', record.config_hash, asked, note)
    else:
        yield Check('config', 'falsified', record.config_hash, asked, note)


def log(run: Run) -> Iterator[Check]:
    """Readings, curves, times and memory as the run wrote them while it went on."""
    record, lines = run.record, run.log
    from mmpetl.benchmark.collect import last_test

    metrics, reads = last_test(run.folder)
    metrics = {k: v for k, v in metrics.items() if v is not None}
    for name in sorted(record.metrics.keys() | metrics.keys()):
        one, other = record.metrics.get(name), metrics.get(name)
        if not equal(one, other, NEAR):
            yield Check(f'metrics.{name}', 'falsified', one, other, 'in log.jsonl')
    # Those of runs that a search has replaced are in their own logs.
    earlier = earlier_reads(record.search, record.job.seed)
    yield same(
        'test_reads', record.test_reads, reads + earlier, 'readings in log.jsonl'
    )
    yield from _protocol(run, reads)
    yield from _curves(run, lines)
    if record.steps is not None:
        yield _steps(run, lines)
    timed = with_times(Record(record.job, 'done'), lines)
    for field in ('seconds', 'peak_memory_bytes', 'started'):
        one, other = getattr(record, field), getattr(timed, field)
        yield same(field, one, other, 'in log.jsonl', near=1e-3)
    begun = [line for line in lines if 'attempt' in line]
    yield holds(
        'attempts',
        record.attempts <= len(begun),
        record.attempts,
        len(begun),
        'times that log.jsonl says it was begun',
    )
    for line in begun[-1:]:
        if line['config'] != record.config_hash:
            yield Check(
                'config_hash',
                'falsified',
                record.config_hash,
                line['config'],
                'of the last attempt in log.jsonl',
            )


def _curves(run: Run, lines: list[dict[str, Any]]) -> Iterator[Check]:
    """Curves over steps of the optimizer, of which a log counts the passes.

    Older versions had counted passes, in every curve.
    """
    try:
        units = dict.fromkeys((passes_of(run.asked), 1))
    except Unknown as error:
        yield Check('curves', 'unchecked', note=str(error))
        return
    found = [list(_compared(run.record, curves_of(lines, unit))) for unit in units]
    yield from next(
        (some for some in found if all(c.found == 'holds' for c in some)), found[0]
    )


def _compared(
    record: Record, curves: Mapping[str, list[list[float]]]
) -> Iterator[Check]:
    for name in sorted(record.curves.keys() | curves.keys()):
        one, other = record.curves.get(name), curves.get(name)
        field = f'curves.{name}'
        if one is None or other is None or len(one) != len(other):
            yield Check(field, 'falsified', _size(one), _size(other), 'in log.jsonl')
            continue
        differ = next(
            ((a, b) for a, b in zip(one, other, strict=True) if not equal(a, b, NEAR)),
            None,
        )
        yield same(field, *(differ or (None, None)), 'first point that differs')


def _size(curve: Any) -> str:
    return 'no curve' if curve is None else f'{len(curve)} points'


def _steps(run: Run, lines: list[dict[str, Any]]) -> Check:
    """Steps of the optimizer, of which a log counts the passes."""
    try:
        found = steps_of(lines, run.asked)
    except Unknown as error:
        return Check('steps', 'unchecked', run.record.steps, note=str(error))
    return same('steps', run.record.steps, found, 'in log.jsonl')


def _protocol(run: Run, reads: int) -> Iterator[Check]:
    """What the honest protocol promises, of the log and of the config that ran."""
    job = run.record.job
    written = run.written
    for key in ('protocol', 'stage'):
        asked = getattr(job, key)
        yield same(f'job.{key}', asked, written.get(key), 'in config.py')
    if job.protocol != 'honest':
        return
    validated = sum(bool(line.get('reads_test')) for line in run.log)
    yield holds(
        'protocol',
        reads <= 1 and not validated,
        'honest',
        f'the test set was read {reads} times',
    )


def described(run: Run) -> Iterator[Check]:
    """What a record repeats of its config, method and catalogue."""
    record, config = run.record, run.config
    task, group = run_facts.task_of(record.job.recipe, run.asked)
    found: Mapping[str, Any] = {
        'family': methods_family(record.job.method),
        'settings': run_facts.settings_of(config),
        'task': task,
        'group': group,
        'backbone': run_facts.backbone_of(config),
        'preprocessing': _preprocessing(record, config),
    }
    found |= {k: v for k, v in _later(record, config).items() if v is not None}
    for field, value in found.items():
        yield same(
            field, to_data(getattr(record, field)), to_data(value), 'of its config'
        )


def _preprocessing(record: Record, config: Any) -> dict[str, Any]:
    """As of the config; older records do not say the order of channels."""
    found = run_facts.preprocessing_of(config)
    if record.preprocessing and 'channels' not in record.preprocessing:
        found.pop('channels', None)
    return found


def _later(record: Record, config: Any) -> dict[str, Any]:
    """What records say since format 2, as far as this one does."""
    asked = (config.get('train_cfg') or {}).get('max_epochs')
    processes = record.processes
    return {
        'recipe_digest': recipe_digest(config) if record.recipe_digest else None,
        'epochs': asked if record.epochs is not None else None,
        'resolution': run_facts.resolution_of(config) if record.resolution else None,
        'batch': run_facts.batch_of(config, processes)
        if processes and record.batch is not None
        else None,
    }


def derived(run: Run) -> Iterator[Check]:
    """What follows from metrics and counts of the record itself."""
    record = run.record
    primary = record.primary
    value = ppt_of(record.metrics, primary, record.counts) if primary else None
    yield same('ppt', record.ppt, value, 'of metric and counts', near=NEAR)
    try:
        found = primary_of(record.metrics, run.asked)
    except (Unknown, PETLError) as error:
        yield Check('primary', 'unchecked', primary, note=str(error))
        return
    yield same('primary', primary, found, 'of the metrics, by its config')


def counts(run: Run) -> Iterator[Check]:
    """Parameters by owner: of the run's own file, of the model, and of the delta."""
    record = run.record
    try:
        told = run.efficiency.counts
        for name in sorted(record.counts.keys() | told.keys()):
            yield same(
                f'counts.{name}',
                record.counts.get(name),
                told.get(name),
                'in efficiency.json',
            )
    except Unknown as error:
        yield Check('counts', 'unchecked', note=str(error))
    from mmpetl.core import count_trainable

    for name, found in count_trainable(run.model).as_dict().items():
        recorded = record.counts.get(name)
        yield same(f'counts.{name}', recorded, found, 'of the model that is built here')
    yield from _values(run)


def _values(run: Run) -> Iterator[Check]:
    """The delta holds what trains in the model, and nothing that has no place there."""
    from mmpetl.apis.delta import slot_names

    model, (tensors, _) = run.model, run.delta
    params = dict(model.named_parameters())
    state = model.state_dict()
    short = file_keys(state, slot_names(model))
    owner = owners(model)
    totals = dict.fromkeys((o.value for o in Owner if o is not Owner.BASE), 0)
    for name, param in params.items():
        if owner[name] is Owner.BASE or not param.requires_grad:
            continue
        there = tensors.get(short[name])
        if there is None or there.shape != param.shape:
            found = 'nothing' if there is None else f'shape {tuple(there.shape)}'
            wanted = f'shape {tuple(param.shape)} of {name}'
            yield Check('delta', 'falsified', wanted, found, 'in delta.safetensors')
            return
        totals[owner[name].value] += there.numel()
    unknown = sorted(set(tensors) - set(short.values()))
    if unknown:
        yield Check(
            'delta',
            'falsified',
            'tensors of its model',
            unknown[0],
            'in delta.safetensors',
        )
    for name, found in totals.items():
        recorded = run.record.counts.get(name)
        yield same(f'counts.{name}', recorded, found, 'in delta.safetensors')


def delta(run: Run) -> Iterator[Check]:
    """The delta is of this run's method, base and metrics."""
    record, (_, facts) = run.record, run.delta
    method = run.config.model.backbone.method
    from mmpetl.core import build_entries, build_method, methods_name

    name = methods_name(method)
    yield same('delta.method', name, method_name(facts), 'in delta.json')
    if method_name(facts) == name:
        wanted = [to_data(e.method.config()) for e in build_entries(method)]
        kept = [to_data(build_method(m).config()) for m, _ in methods_of(facts)]
        yield same('delta.method', wanted, kept, 'in delta.json')
    base = record.base
    yield same('base.fingerprint', base.get('fingerprint'), facts.get('fingerprint'))
    name = facts.get('base')
    found = Path(name).name if name else None
    yield same('base.file', base.get('file'), found, 'in delta.json')
    told = {
        k: v for k, v in (facts.get('metrics') or {}).items() if k in record.metrics
    }
    for key, value in told.items():
        recorded = record.metrics[key]
        yield same(f'metrics.{key}', recorded, value, 'in delta.json', near=NEAR)
    yield same(
        'versions.mmpetl',
        record.versions.get('mmpetl'),
        facts.get('version'),
        'in delta.json',
    )
    if record.delta_bytes is not None:
        size = (run.folder / 'delta.safetensors').stat().st_size
        yield same('delta_bytes', record.delta_bytes, size, 'of delta.safetensors')


def base(run: Run) -> Iterator[Check]:
    """The base that lies here is the one that the record names."""
    from mmpetl.core import fingerprint

    recorded = run.record.base.get('fingerprint')
    if not injections(run.model):
        raise Unknown('its model holds no method')
    found = fingerprint(run.model)
    yield same('base.fingerprint', recorded, found, 'of the base weights here')


def search(run: Run) -> Iterator[Check]:
    """The settings are those of the best trial, and trials are what their runs say."""
    found = run.record.search
    if found is None:
        return
    trials = {t['number']: t for t in found.get('trials', ()) if 'number' in t}
    values = {
        n: t.get('value') for n, t in trials.items() if t.get('value') is not None
    }
    best = found.get('best')
    if not values or best not in values:
        yield Check(
            'search.best', 'falsified', best, sorted(values), 'trials with a value'
        )
        return
    top = min(values, key=lambda n: (-values[n], n))
    yield same('search.best', best, top, 'best of its trials')
    yield same('search.best_value', found.get('best_value'), values[best], near=NEAR)
    if 0 in trials:
        first = trials[0].get('value')
        yield same('search.default_value', found.get('default_value'), first, near=NEAR)
    options = {k: to_data(v) for k, v in run.record.job.options.items()}
    chosen = trials[best].get('options') or {} if best else {}
    for key, value in chosen.items():
        yield same(f'job.options.{key}', options.get(key), to_data(value), 'best trial')
    yield from _trials(run, trials)
    yield from _went_on(run, trials)


def _went_on(run: Run, trials: Mapping[int, Mapping[str, Any]]) -> Iterator[Check]:
    """A record tells of the search as it is now, and of what it has read before."""
    job, out = run.record.job, run.folder.parent.parent
    # A reading counts for every seed, so none may be hidden; no reading is no entry.
    told, found = +reads_by_seed(run.record.search), +replaced_reads(out, job)
    yield same(
        'search.earlier',
        dict(sorted(told.items())),
        dict(sorted(found.items())),
        'readings by seed of runs that were replaced',
    )
    path = search_folder(out, job.recipe, job.method) / 'trials.json'
    if os.path.lexists(path):
        now = read_json(path, Found, 'trials of a search')
        yield same('search.trials', len(trials), len(now.trials), 'in trials.json')


def _trials(run: Run, trials: Mapping[int, Mapping[str, Any]]) -> Iterator[Check]:
    """Values of trials, of those whose runs lie beside this one."""
    from mmpetl.benchmark.records import read_record

    for number, trial in trials.items():
        name = trial.get('run') or trial.get('id')
        path = run.folder.parent / str(name) / 'record.json'
        if not name or not path.is_file() or trial.get('status') != 'done':
            continue
        other = read_record(path)
        if other.job.stage == 'tune':
            field = f'search.trials.{number}'
            yield same(field, trial.get('value'), other.score, f'in {name}', near=NEAR)


def data(run: Run) -> Iterator[Check]:
    """What each phase read is what lies here: files, labels, order, and how many."""
    from mmpetl.datasets.identity import copies, read_of

    recorded = run.record.data
    if not recorded:
        raise Unknown('the record does not say what was read')
    found = {phase: read_of(run.dataset(phase)) for phase in recorded}
    for phase, told in recorded.items():
        here = found[phase]
        for name in ('digest', 'count', 'kind', 'by'):
            one, other = getattr(told, name), getattr(here, name)
            yield same(f'data.{phase}.{name}', one, other, 'of the data here')
        if told.copies is not None and 'train' in found:
            number = copies(found['train'], here)
            field = f'data.{phase}.copies'
            yield same(field, told.copies, number, 'of the data here')
    if run.record.job.protocol == 'honest' and 'test' not in recorded:
        yield Check('data.test', 'unchecked', note='nothing is said of what was tested')


def features(run: Run) -> Iterator[Check]:
    """Which phases read their features from disk is what the run has kept of it."""
    kept = features_of(run.folder)
    yield same('features', run.record.features, kept, 'in features.json')


LOOKS: Mapping[str, Callable[[Run], Iterator[Check]]] = {
    'id': identity,
    'config': config,
    'log': log,
    'settings': described,
    'ppt': derived,
    'counts': counts,
    'delta': delta,
    'base': base,
    'data': data,
    'features': features,
    'search': search,
}
"""What is looked at in files, by the name that a check has where it cannot be."""


def merged(checks: Iterator[Check]) -> tuple[Check, ...]:
    """Checks in order; of one field a falsification, or else one that it holds."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.field, []).append(check)
    rank = {'falsified': 0, 'unchecked': 1, 'holds': 2}
    return tuple(
        itertools.chain.from_iterable(
            _worst(sorted(some, key=lambda c: rank[c.found])) for some in found.values()
        )
    )


def _worst(checks: list[Check]) -> list[Check]:
    first = checks[0]
    if first.found == 'holds':
        return [Check(first.field, 'holds')]
    return [c for c in checks if c.found == first.found]
