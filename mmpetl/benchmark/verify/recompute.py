"""Metrics of a run once more: from what it predicted, from its delta, by training."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.collect import PREDICTIONS, RESULTS
from mmpetl.benchmark.verdicts import Check
from mmpetl.benchmark.verify.checks import NEAR
from mmpetl.benchmark.verify.run import Run, Unknown, equal, same
from mmpetl.core import PETLError

AGAIN = 1e-3
"""Relative difference of logits that are computed on another device or in another
version, as part of their spread."""


def predictions(run: Run) -> Iterator[Check]:
    """Every metric, by the evaluators of the config, from what the run predicted."""
    from mmpetl.engine.hooks.results import read_results

    if not run.record.metrics:
        # COCO's evaluator gives none where a model has found nothing at all.
        raise Unknown('the record has no metric')

    if (run.folder / PREDICTIONS).is_file():
        logits, labels = _predicted(run)
        found = of_logits(run.asked, logits, labels, _meta(run))
        source = f'from {PREDICTIONS}'
    elif (run.folder / RESULTS).is_file():
        kept = read_results(run.folder / RESULTS)
        found = of_results(run.asked, kept)
        source = f'from {RESULTS}'
    else:
        raise Unknown(f'the run left neither {PREDICTIONS} nor {RESULTS}')
    yield from _metrics(run, found, source)


def _metrics(
    run: Run, found: Mapping[str, Any], source: str, near: float = NEAR
) -> Iterator[Check]:
    from mmpetl.engine.hooks.run_log import plain_metrics

    plain = {k: v for k, v in plain_metrics(found).items() if np.isfinite(v)}
    recorded = run.record.metrics
    for name in sorted(recorded.keys() | plain.keys()):
        one, other = recorded.get(name), plain.get(name)
        yield same(f'metrics.{name}', one, other, source, near)


def _predicted(run: Run) -> tuple[np.ndarray, np.ndarray]:
    from mmpetl.engine.hooks.predictions import read_predictions

    path = run.folder / PREDICTIONS
    logits, labels = read_predictions(path)
    if not len(labels) or not np.isfinite(logits).all():
        raise PETLError(f'{path} is empty or holds logits that are not finite')
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise PETLError(f'{path} holds labels that are no class of its logits')
    return logits, labels


def _meta(run: Run) -> dict[str, Any]:
    """What evaluators are told of the data; classes alone where it is not there."""
    try:
        return dict(getattr(run.test_set, 'metainfo', None) or {})
    except Unknown:
        from mmpetl.apis.building import dataset_meta

        return dataset_meta(run.asked)


def of_logits(
    config: Any, logits: np.ndarray, labels: np.ndarray, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Metrics of a classifier by the evaluators of a config.

    Args:
        config: A composed config.
        logits: (N, C), raw or as logarithms of probabilities.
        labels: (N,).
        meta: What the evaluators are told of the data set.
    """
    import torch

    evaluator = _evaluator(config, meta)
    scores = torch.from_numpy(logits).float().softmax(-1)
    targets = torch.from_numpy(labels)
    samples = [
        {'pred_score': score, 'pred_label': score.argmax(-1, True), 'gt_label': label}
        for score, label in zip(scores, targets[:, None], strict=True)
    ]
    evaluator.process(data_samples=samples)
    return evaluator.evaluate(len(samples))


def of_results(config: Any, kept: Any) -> dict[str, Any]:
    """Metrics of any model by the evaluators of a config, from what they kept."""
    from mmpetl.engine.hooks.results import scored

    return scored(_evaluator(config, kept.meta).metrics, kept)


def _evaluator(config: Any, meta: Mapping[str, Any]) -> Any:
    from mmengine.evaluator import Evaluator

    from mmpetl.config.scope import scope_of

    node = copy.deepcopy(config.get('test_evaluator'))
    if not node:
        raise Unknown('its config has no evaluator of the test set')
    try:
        with scope_of(config):
            found = Evaluator(node)
    except OSError as error:
        raise Unknown(f'its evaluator needs a file: {error}') from None
    found.dataset_meta = dict(meta)
    return found


def labels(run: Run) -> Iterator[Check]:
    """The labels that were scored are those of the data here, in their order."""
    if not (run.folder / PREDICTIONS).is_file():
        return
    _, kept = _predicted(run)
    known = labels_of(run.test_set)
    if known is None:
        raise Unknown('its test set tells no labels')
    if len(known) != len(kept):
        yield Check(
            'predictions.labels',
            'falsified',
            f'{len(kept)} samples',
            f'{len(known)} samples',
            'of the test set here',
        )
        return
    wrong = np.flatnonzero(known != kept)
    place = int(wrong[0]) if len(wrong) else 0
    yield same(
        'predictions.labels',
        int(kept[place]),
        int(known[place]),
        f'label of sample {place} of the test set, one of {len(wrong)} that differ',
    )


def labels_of(dataset: Any) -> np.ndarray | None:
    """Labels in the order of the data set, (N,); None where there is no single one."""
    found = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        label = info.get('gt_label', info.get('label'))
        if not isinstance(label, int | np.integer):
            return None
        found.append(int(label))
    return np.asarray(found, np.int64)


def from_delta(run: Run) -> Iterator[Check]:
    """Metrics and logits by the project's own test of delta, base and data."""
    from mmpetl.apis.run import test
    from mmpetl.engine.hooks.predictions import read_predictions

    if not (run.folder / 'delta.safetensors').is_file():
        raise Unknown('the run left no delta')
    config = copy.deepcopy(run.config)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / PREDICTIONS
        config.work_dir = place
        config.experiment_name = Path(place).name
        hook = {'type': 'mmpetl.PredictionsHook', 'path': str(path)}
        config.custom_hooks = [*(config.get('custom_hooks') or ()), hook]
        try:
            with _quiet():
                found = test(config, run.folder / 'delta.safetensors')
        except OSError as error:
            raise Unknown(f'the delta cannot be tested: {error}') from None
        finally:
            from mmpetl.engine.run_names import forget

            forget(config.experiment_name)
        again = read_predictions(path) if path.is_file() else None
    near = NEAR if _like(run) else AGAIN
    yield from _metrics(run, found, 'from delta, base and data', near)
    if again is not None and (run.folder / PREDICTIONS).is_file():
        yield from _same_logits(_predicted(run), again)


def _same_logits(
    kept: tuple[np.ndarray, np.ndarray], again: tuple[np.ndarray, np.ndarray]
) -> Iterator[Check]:
    for name, one, other in zip(('logits', 'labels'), kept, again, strict=True):
        field, note = f'predictions.{name}', 'from delta, base and data'
        if one.shape != other.shape:
            yield Check(field, 'falsified', one.shape, other.shape, note)
            return
        near = AGAIN * float(other.std() + 1e-12) if name == 'logits' else 0.0
        gaps = np.abs(one.astype(np.float64) - other)
        worst = np.unravel_index(int(gaps.argmax()), gaps.shape)
        if gaps[worst] <= near:
            yield Check(field, 'holds')
        else:
            yield Check(
                field,
                'falsified',
                one[worst].item(),
                other[worst].item(),
                f'{note}, sample {int(worst[0])}',
            )


def _like(run: Run) -> bool:
    """Whether device and versions are those that the record names."""
    here = run_facts.versions(run.record.job.method)
    there = run.record.versions
    # A method from outside of the package has the digest of its file there.
    decide = ('torch', 'numpy', *(name for name in here if name.endswith('.py')))
    same_software = all(here.get(key) == there.get(key) for key in decide)
    return same_software and run.record.device == run_facts.device()


def retrained(run: Run) -> Iterator[Check]:
    """Train again from the job alone, and compare metrics, delta and predictions.

    On the device and with the versions and threads of the record a run ends bit-equal,
    so a difference falsifies it. Elsewhere a difference says nothing.
    """
    import torch

    from mmpetl.benchmark.job import run_job
    from mmpetl.config.protocols import check_ranked

    record = run.record
    try:
        check_ranked(run.asked)  # older versions had run it
    except PETLError as error:
        raise Unknown(f'it cannot be trained again: {error}') from None
    threads = record.threads
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as place, _quiet():
            folder = Path(place) / record.job.id
            again = run_job(record.job, folder, search=record.search)
            delta = (folder / 'delta.safetensors').read_bytes()
    except OSError as error:
        raise Unknown(f'it cannot be trained again: {error}') from None
    finally:
        torch.set_num_threads(before)
    like = _like(run) and threads == torch.get_num_threads()
    path = run.folder / 'delta.safetensors'
    equal_delta = path.is_file() and path.read_bytes() == delta
    for name in sorted(record.metrics.keys() | again.metrics.keys()):
        one, other = record.metrics.get(name), again.metrics.get(name)
        if equal(one, other, NEAR):
            yield Check(f'metrics.{name}', 'holds')
            continue
        note = 'by training again' if like else NOT_ALIKE
        state = 'falsified' if like else 'unchecked'
        yield Check(f'metrics.{name}', state, one, other, note)
    for field in ('counts', 'config_hash', 'settings', 'test_reads'):
        yield same(
            field, getattr(record, field), getattr(again, field), 'trained again'
        )
    if equal_delta:
        yield Check('delta.values', 'holds')
    elif like:
        yield Check(
            'delta.values',
            'falsified',
            'delta.safetensors',
            'another one',
            'by training again',
        )
    else:
        yield Check('delta.values', 'unchecked', note=NOT_ALIKE)


NOT_ALIKE = (
    'trained again on another device, with other versions or threads than the record '
    'names, which may end elsewhere'
)


def _quiet() -> Any:
    """Keep what a run prints from the screen."""
    import contextlib
    import io

    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    return stack
