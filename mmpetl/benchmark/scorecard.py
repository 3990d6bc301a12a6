"""The trust scorecard of a method: more of a trained model than its accuracy.

Everything is computed from runs: their records, their predictions, and their deltas on
the base. Nothing is trained. Definitions, with formulas and sources, stand in
``docs/scorecard.md``; what was not measured says why.
"""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import msgspec
import numpy as np

from mmpetl.analysis import agreement, charts, costs, measures, robustness, selection
from mmpetl.benchmark.records import Record, RecordStore, write_json
from mmpetl.benchmark.verdicts import digest_of
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json

FORMAT = 2


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how much.

    Attributes:
        bins: Of the reliability picture and the ECE.
        kinds: Corruptions of the test set.
        severities: Their strengths, 1 to 5.
        limit: Most samples of a shifted or strange set; the whole sets where None.
        batches: Batch sizes of which the latency is taken.
        rounds: Timed calls for each.
        device: Where models run.
        upstream: Config whose test set is the base's own task.
    """

    bins: int = measures.BINS
    kinds: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 3, 5)
    limit: int | None = 1000
    batches: tuple[int, ...] = (1, 32)
    rounds: int = 11
    device: str = 'auto'
    upstream: str | None = None


class Card(msgspec.Struct):
    """What was measured of one run; a text instead of a number says why there is none.

    Attributes:
        key: What it was measured with; another key is measured anew.
        values: By the name of the measure.
        bins: Count, confidence and accuracy of the reliability picture.
    """

    key: dict[str, Any]
    values: dict[str, float | str | None]
    bins: dict[str, list[float | None]] = {}


Values = dict[str, float | str | None]


@dataclass
class _Shared:
    """What runs of one folder have in common, so that it is read once."""

    out: Path
    settings: Settings
    samples: dict[str, robustness.Samples] = field(default_factory=dict)

    def kept(self, name: str, build: Callable[[], Any]) -> Any:
        """Samples by name, built where they are first asked for."""
        if name not in self.samples:
            self.samples[name] = build()
        return self.samples[name]


def measure(
    out: str | os.PathLike,
    records: Sequence[Record],
    settings: Settings,
    watch: Callable[[Record], None] | None = None,
) -> dict[str, Card]:
    """The cards of runs, by their ids; what was measured before is read.

    Args:
        out: The benchmark folder; cards are kept below ``scorecard/cells``.
        records: Finished final runs of classifiers.
        settings: What is measured.
        watch: Called with each record that is begun.

    Raises:
        PETLError: A run left no predictions or no delta.
    """
    shared = _Shared(Path(out), settings)
    store = RecordStore(out)
    found = {}
    for record in records:
        if watch is not None:
            watch(record)
        path = Path(out) / 'scorecard' / 'cells' / f'{record.job.id}.json'
        others = sorted({r.task for r in records if _like(r, record)} - {record.task})
        key = {
            'format': FORMAT,
            'record': digest_of(store.folder(record.job) / 'record.json'),
            'settings': charts.as_data(vars(settings)),
            'strange': others,
        }
        card = read_json(path, Card, 'card') if os.path.lexists(path) else None
        if card is None or card.key != key:
            card = _measure(shared, record, records, key)
            write_json(path, msgspec.to_builtins(card))
        found[record.job.id] = card
    return found


def _like(one: Record, other: Record) -> bool:
    """Whether pictures of one task can be shown to a model of the other."""
    return one.backbone == other.backbone and one.job.protocol == other.job.protocol


def _measure(
    shared: _Shared, record: Record, records: Sequence[Record], key: dict[str, Any]
) -> Card:
    from mmengine.config import Config

    store, settings = RecordStore(shared.out), shared.settings
    run = selection.load_run(shared.out, record)
    values: Values = {'accuracy': run.accuracy}
    bins = measures.reliability(run.logits, run.labels, settings.bins)
    values |= calibration(run.logits, run.labels, settings.bins)
    config = Config.fromfile(run.folder / 'config.py')
    model = robustness.load_classifier(run.folder, settings.device)
    values |= _temperature(model, config, run, settings.bins)
    values |= _strange(shared, model, record, records, run.logits)
    values |= _shifted(shared, model, record, config)
    values |= _kept_base(model, settings)
    values |= _running(model, config, settings)
    values |= _recorded(record, store.folder(record.job))
    columns = {
        'count': bins.count,
        'confidence': bins.confidence,
        'accuracy': bins.accuracy,
    }
    plain = {
        name: [None if not math.isfinite(v) else float(v) for v in column]
        for name, column in columns.items()
    }
    return Card(key, {k: _number(v) for k, v in values.items()}, plain)


def _number(value: Any) -> float | str | None:
    if isinstance(value, str) or value is None:
        return value
    return float(value) if math.isfinite(value) else None


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int) -> Values:
    """ECE in per cent, likelihood and Brier score of test predictions."""
    return {
        'ece': 100 * measures.reliability(logits, labels, bins).ece,
        'nll': measures.negative_log_likelihood(logits, labels),
        'brier': measures.brier(logits, labels),
    }


def _temperature(model: Any, config: Any, run: selection.Run, bins: int) -> Values:
    """The temperature that validation data ask for, and the ECE with it.

    Data that the model was trained on say nothing of its confidence elsewhere, and the
    test set is not to be fitted to.
    """
    why = _no_validation(config)
    if why is not None:
        return {'temperature': why, 'ece_scaled': why}
    logits, labels = robustness.logits_of(model, robustness.samples_of(config, 'val'))
    found = measures.fit_temperature(logits, labels)
    scaled = measures.reliability(run.logits / found, run.labels, bins).ece
    return {'temperature': found, 'ece_scaled': 100 * scaled}


def _no_validation(config: Any) -> str | None:
    """Why a run has no validation data of its own to fit to; None where it has."""
    if not config.get('val_dataloader'):
        return 'no validation data: all of them trained the run'
    from mmpetl.engine.hooks.run_log import same_data

    for phase in ('train', 'test'):
        if same_data(config, 'val', phase):
            return f'its validation data are those of {phase}'
    return None


def _strange(
    shared: _Shared,
    model: Any,
    record: Record,
    records: Sequence[Record],
    known: np.ndarray,
) -> Values:
    """How well confidence tells the task's pictures from those of other tasks."""
    from mmengine.config import Config

    store = RecordStore(shared.out)
    others = {r.task: r for r in records if r.task != record.task and _like(r, record)}
    if not others:
        why = 'no other task of this backbone in the folder'
        names = ('auroc_softmax', 'fpr95_softmax', 'auroc_energy', 'fpr95_energy')
        return dict.fromkeys(names, why)
    parts: dict[str, list[float]] = {}
    for _, other in sorted(others.items()):
        config = Config.fromfile(store.folder(other.job) / 'config.py')
        # Another backbone is shown the pictures of a task at another size.
        samples = shared.kept(
            f'strange {config.test_dataloader.dataset!r}',
            lambda config=config: robustness.samples_of(
                config, limit=shared.settings.limit
            ),
        )
        logits, _ = robustness.logits_of(model, samples)
        for name, score in (
            ('softmax', measures.max_softmax),
            ('energy', measures.energy),
        ):
            pair = score(known), score(logits)
            parts.setdefault(f'auroc_{name}', []).append(100 * measures.auroc(*pair))
            rate = measures.false_positive_rate(*pair)
            parts.setdefault(f'fpr95_{name}', []).append(100 * rate)
    return {name: fmean(found) for name, found in parts.items()}


def _shifted(shared: _Shared, model: Any, record: Record, config: Any) -> Values:
    """Accuracy on corrupted test sets, and what of the clean accuracy is left."""
    from mmpetl.datasets.corruptions import CORRUPTIONS

    settings = shared.settings
    scores = {}
    sets = [None, *((k, s) for k in settings.kinds or CORRUPTIONS
                    for s in settings.severities)]  # fmt: skip
    same = repr(config.test_dataloader.dataset)
    for at in sets:
        name = robustness.CLEAN if at is None else robustness.condition(*at)
        samples = shared.kept(
            same + name,
            lambda name=name, at=at: robustness.samples_of(
                config, name=name, corruption=at, limit=settings.limit
            ),
        )
        scores[name] = robustness.score(model, samples)
    clean = scores[robustness.CLEAN]
    mean = robustness.shifted_mean(scores)
    return {'shifted': mean, 'kept_of_clean': 100 * mean / clean if clean else None}


def _kept_base(model: Any, settings: Settings) -> Values:
    """Whether the base comes back, and how its own head fares with the method on."""
    return {'base_back': _back(model), 'upstream': _upstream(model, settings)}


def _back(model: Any) -> str:
    """Whether the base is what it was, bit for bit, once the method is ejected."""
    from mmpetl.core import eject, injections
    from mmpetl.core.fingerprint import tensor_digests

    bare = copy.deepcopy(model)
    for _, module, record in injections(bare):
        before = {k: v for k, v in record.digests.items() if k not in record.head}
        try:
            for name in list(record.slots):
                eject(module, name)
        except PETLError:
            return 'from its file: the method trains most of it, and keeps no copy'
        state = module.state_dict()
        after = tensor_digests({k: state[k] for k in before})
        wrong = [name for name, digest in before.items() if after[name] != digest]
        if wrong:
            return f'no: {wrong[0]} differs'
    return 'bit-equal'


def _upstream(model: Any, settings: Settings) -> float | str:
    """Points of accuracy lost on the base's own task while the method is on."""
    from mmpetl.analysis.forgetting import forgetting

    if settings.upstream is None:
        return 'not asked for (--upstream CONFIG of the base and its own head)'
    return forgetting(model, settings.upstream, settings.limit, settings.device)


def _running(model: Any, config: Any, settings: Settings) -> Values:
    """Operations, latency, energy, and whether the method folds into the base."""
    import torch

    from mmpetl.analysis.sources import bare_copy

    samples = robustness.samples_of(config, limit=max(settings.batches))
    batch = next(iter(samples))
    with torch.no_grad():
        x = model.data_preprocessor(robustness.copied(batch), False)['inputs']
    bare = bare_copy(model)
    folded, why = _folded(model, x[:2])
    values: Values = {'folds': why}
    with torch.no_grad():
        values['gflops'] = costs.flops_of(lambda: model(x[:1], mode='tensor')) / 1e9
        plain = costs.flops_of(lambda: bare(x[:1], mode='tensor')) / 1e9
        values['gflops_base'] = plain
        for size in settings.batches:
            part = x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]
            models = [m for m in (model, bare, folded) if m is not None]
            calls = [lambda m=m, x=part: m(x, mode='tensor') for m in models]
            times = costs.latencies(calls, settings.rounds)
            values[f'latency_ms_{size}'] = 1000 * times[0]
            values[f'latency_of_base_{size}'] = times[0] / times[1]
            if folded is not None:
                values[f'latency_folded_of_base_{size}'] = times[2] / times[1]
        joules = costs.energy_of(lambda: model(x[:1], mode='tensor'))
    values['joules'] = 'no meter' if joules is None else joules
    return values


def _folded(model: Any, x: Any) -> tuple[Any, str]:
    """A copy with the method in the base's weights; ``yes``, or why there is none."""
    import torch

    from mmpetl.core import find_injected, fold

    plain = copy.deepcopy(model)
    try:
        for _, module in find_injected(plain):
            fold(module)
    except PETLError as error:
        return None, f'no: {" ".join(str(error).split())[:120]}'
    with torch.no_grad():
        one, other = model(x, mode='tensor'), plain(x, mode='tensor')
    gap, spread = float((one - other).abs().max()), float(one.std())
    if not gap <= 1e-3 * spread:  # NaN is no small difference
        share = gap / spread if spread else math.inf
        return None, f'no: folded outputs differ by {share:.1g} of their spread'
    return plain, 'yes'


def _recorded(record: Record, folder: Path) -> Values:
    """What the record says of training, and the bytes that the delta takes."""
    weights = folder / 'delta.safetensors'
    return {
        'train_s': record.seconds,
        'step_ms': None if record.step_seconds is None else 1000 * record.step_seconds,
        'memory_mb': None
        if record.peak_memory_bytes is None
        else record.peak_memory_bytes / 2**20,
        'delta_kb': weights.stat().st_size / 1024 if weights.is_file() else None,
        'trainable': record.trainable,
    }


@dataclass(frozen=True)
class Line:
    """A method on a task, over its seeds.

    Attributes:
        method: Its name, with the variant.
        family: Of the method.
        task: What it was trained for.
        seeds: How many.
        values: Means of numbers; a text where some seed has none, or seeds differ.
        bins: Reliability over all seeds together.
    """

    method: str
    family: str
    task: str
    seeds: int
    values: Mapping[str, float | str | None]
    bins: Mapping[str, Sequence[float | None]]


MEDIANS = ('train_s', 'step_ms', 'memory_mb')
"""Values of which the median is taken: machines are busy now and then."""


def lines_of(
    out: str | os.PathLike, records: Sequence[Record], cards: Mapping[str, Card]
) -> list[Line]:
    """Cards by task and method, with how runs agree."""
    found = []
    for task, some in selection.by_task(records).items():
        groups: dict[str, list[Record]] = {}
        names = selection.names_of(some)
        for record in some:
            groups.setdefault(names[record.job.id], []).append(record)
        alike = _agreement(out, groups)
        for name, rows in groups.items():
            mine = [cards[r.job.id] for r in rows]
            values = _means([c.values for c in mine]) | alike[name]
            bins = _together([c.bins for c in mine])
            family = rows[0].family
            found.append(Line(name, family, task, len(rows), values, bins))
    return found


def _means(cards: Sequence[Mapping[str, Any]]) -> Values:
    values: Values = {}
    for name in dict.fromkeys(name for card in cards for name in card):
        all_of_it = [card.get(name) for card in cards]
        numbers = [v for v in all_of_it if isinstance(v, int | float)]
        texts = [v for v in all_of_it if isinstance(v, str)]
        if numbers and len(numbers) == len(cards):
            mean = median if name in MEDIANS else fmean
            values[name] = mean(numbers)
        elif numbers:
            values[name] = f'known of {len(numbers)} of {len(cards)} seeds'
        else:
            values[name] = _said(texts, len(cards))
    return values


def _said(texts: Sequence[str], seeds: int) -> str | None:
    """What all seeds say, or what each says; None where none says anything."""
    counts = Counter(texts)
    if len(texts) == seeds and len(counts) == 1:
        return texts[0]
    parts = [f'{text} ({number} of {seeds} seeds)' for text, number in counts.items()]
    return '; '.join(parts) or None


def _together(bins: Iterable[Mapping[str, Sequence[float | None]]]) -> dict[str, Any]:
    """One reliability picture of several runs: samples are put together."""
    parts = [
        {k: np.array([np.nan if v is None else v for v in c]) for k, c in part.items()}
        for part in bins
    ]
    count = sum(p['count'] for p in parts)
    found: dict[str, Any] = {'count': count.tolist()}
    for name in ('confidence', 'accuracy'):
        total = sum(np.nan_to_num(p[name]) * p['count'] for p in parts)
        found[name] = [t / n if n else None for t, n in zip(total, count, strict=True)]
    return found


def _agreement(
    out: str | os.PathLike, groups: Mapping[str, Sequence[Record]]
) -> dict[str, Values]:
    """Cohen's kappa between the seeds of a method, and with the other methods."""
    runs = {n: [selection.load_run(out, r) for r in rows] for n, rows in groups.items()}
    every = [run for some in runs.values() for run in some]
    selection.same_labels(every)
    predicted = agreement.predictions_of([run.logits for run in every])
    matrix = agreement.kappa(predicted, every[0].logits.shape[1])
    owner = np.array([n for n, some in runs.items() for _ in some])
    seeds = np.array([run.record.job.seed for run in every])
    found: dict[str, Values] = {}
    for name in runs:
        mine = owner == name
        upper = np.triu(np.ones_like(matrix, bool), 1)
        same = matrix[np.outer(mine, mine) & upper]
        # Of one seed: another seed would be another reason to differ.
        other = matrix[np.outer(mine, ~mine) & (seeds[:, None] == seeds[None])]
        found[name] = {
            'kappa_seeds': _mean_or(same, 'one seed'),
            'kappa_methods': _mean_or(other, 'one method'),
        }
    return found


def _mean_or(values: np.ndarray, why: str) -> float | str:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else why
