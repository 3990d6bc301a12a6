"""Accuracy against the number of training images, for methods and their sizes.

Follows the low-shot and many-shot study of Mai et al.,
https://arxiv.org/abs/2409.16434. Subsets are nested and hold every class as often as
they can; each seed draws its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpetl.analysis.selection import by_family
from mmpetl.benchmark.job_config import METHOD
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.scores import percent
from mmpetl.benchmark.statistics import rounded
from mmpetl.core import PETLError, check_range
from mmpetl.engine.schedule_nodes import schedule_nodes
from mmpetl.engine.stretching import EVERY, POINTS, SPANS
from mmpetl.engine.stretching import stretched as engine_stretched

INDICES = 'train_dataloader.dataset.indices'
"""Key of a job's option that says which images train."""

UNKNOWN = 'how {} is to follow the number of epochs is not known; give --same-epochs'


def balanced_order(labels: Sequence[int], seed: int) -> np.ndarray:
    """Samples in an order whose every beginning holds all classes alike.

    The classes take turns, each with its samples in random order; a class that has run
    out is passed over.

    Args:
        labels: (N,).
        seed: Of the draw.

    Returns:
        A permutation of 0..N-1, (N,).
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    turn = np.empty(len(labels))
    for c in np.unique(labels):
        places = np.flatnonzero(labels == c)
        # Within a round the classes come in random order too.
        turn[rng.permutation(places)] = np.arange(len(places)) + rng.random(len(places))
    return np.argsort(turn, kind='stable')


def training_labels(config: Any) -> np.ndarray:
    """Labels of the training set of a config, (N,).

    Raises:
        PETLError: The set is wrapped, or its samples have no single label.
    """
    from mmengine.registry import DATASETS

    from mmpetl.apis.building import scope_of
    from mmpetl.config.nodes import WRAPPED

    node = config.train_dataloader.dataset
    if any(key in node for key in WRAPPED):
        raise PETLError(
            f'the training set is a {node["type"]} around another one; subsets need a '
            'set that takes indices itself'
        )
    with scope_of(config):
        dataset = DATASETS.build(node)
        dataset.full_init()
    try:
        return np.array(
            [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]
        )
    except (KeyError, TypeError):
        raise PETLError(
            'the training samples have no single label; many-shot curves are for '
            'classification'
        ) from None


def shot_options(
    config: Any, labels: Sequence[int], shots: int, seed: int, same_steps: bool = True
) -> dict[str, Any]:
    """Options of a job that trains on ``shots`` images.

    Args:
        config: The resolved config of the job on all images.
        labels: Of its training set.
        shots: How many train.
        seed: Of the draw.
        same_steps: Take as many optimizer steps as the run on all images, rather than
            as many epochs; the schedule is stretched with them.

    Raises:
        PETLError: There are not so many images, or steps cannot be kept.
    """
    check_range('many-shot', 'shots', shots, 1, len(labels))
    if shots == len(labels):
        return {}
    chosen = balanced_order(labels, seed)[:shots]
    options: dict[str, Any] = {INDICES: sorted(chosen.tolist())}
    if same_steps:
        options |= stretched(config, len(labels), shots)
    return options


def stretched(config: Any, full: int, shots: int) -> dict[str, Any]:
    """Options that keep the number of steps: more epochs, in a longer schedule.

    Raises:
        PETLError: The training counts no epochs, its batches leave no step, or how a
            scheduler is to follow is not known.
    """
    epochs = config.train_cfg.get('max_epochs')
    if not epochs or not config.train_cfg.get('by_epoch', True):
        raise PETLError('steps are kept for schedules in epochs; give --same-epochs')
    factor = _steps(config, full) / _steps(config, shots)
    longer = round(epochs * factor)
    options: dict[str, Any] = {'train_cfg.max_epochs': longer}
    for place, node in schedule_nodes(config.get('param_scheduler') or []):
        if not node.get('by_epoch', True):
            # There are as many iterations as before. Saying so keeps the config's
            # reader from stretching them with the epochs.
            options[f'{place}.by_epoch'] = False
            continue
        (new,) = engine_stretched([copy.deepcopy(node)], epochs, longer, UNKNOWN)
        for key in (*SPANS, *EVERY, *POINTS):
            if new.get(key):
                options[f'{place}.{key}'] = new[key]
    # Checkpoints and validations are of epochs, which are short now.
    options['default_hooks.checkpoint.interval'] = max(1, round(factor))
    if config.get('val_cfg') is not None:
        options['train_cfg.val_interval'] = max(1, round(factor))
    return options


def _steps(config: Any, images: int) -> int:
    """Steps of an epoch over so many images."""
    loader = config.train_dataloader
    batch = loader.batch_size
    if not loader.get('drop_last'):
        return math.ceil(images / batch)
    if images < batch:
        raise PETLError(
            f'{images} images fill no batch of {batch}, and drop_last of the '
            'train_dataloader drops what does not; train on more of them'
        )
    return images // batch


@dataclass(frozen=True)
class Point:
    """A method at one number of images.

    Attributes:
        name: The method, its settings in brackets.
        method: Its name in the registry.
        family: Its family.
        settings: What departs from the benchmark's run of it.
        shots: Training images.
        trainable: Trainable parameters of the backbone.
        share: Their share of the backbone, frozen parameters included.
        scores: Primary metric of every seed.
    """

    name: str
    method: str
    family: str
    settings: Mapping[str, Any]
    shots: int
    trainable: int
    share: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1); 0 for one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


def points(
    records: Iterable[Record], named: Mapping[str, tuple[str, int]]
) -> list[Point]:
    """Records of the same method, settings and number of images as one point.

    Args:
        records: Finished runs.
        named: Job id to the name of its curve and its number of images.
    """
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in by_family(records):
        if percent(record) is not None and record.job.id in named:
            groups.setdefault(named[record.job.id], []).append(record)
    found = []
    for (name, shots), rows in groups.items():
        first = rows[0]
        total = sum(first.counts.get(k, 0) for k in ('delta', 'selected', 'base'))
        settings = {
            k.removeprefix(METHOD): v
            for k, v in first.job.options.items()
            if k.startswith(METHOD)
        }
        found.append(
            Point(
                name=name,
                method=first.job.method,
                family=first.family,
                settings=settings,
                shots=shots,
                trainable=first.trainable,
                share=first.trainable / total if total else 0.0,
                scores=tuple(map(percent, rows)),
            )
        )
    return sorted(found, key=lambda p: p.shots)


def curves(found: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by name, by rising number of images."""
    groups: dict[str, list[Point]] = {}
    for point in sorted(found, key=lambda p: p.shots):
        groups.setdefault(point.name, []).append(point)
    return groups


def crossings(
    first: Sequence[Point], second: Sequence[Point]
) -> list[tuple[float, str]]:
    """Where one curve overtakes another: images, and who leads from there on.

    Between two measured sizes the place is interpolated on a logarithmic axis. Where
    both are equal in between, it is the last size at which they are.
    """
    other = {p.shots: p.mean for p in second}
    both = [p for p in first if p.shots in other]
    gaps = rounded(p.mean - other[p.shots] for p in both)
    found = []
    last: tuple[int, float] | None = None
    equal: int | None = None
    for b, e in zip((p.shots for p in both), gaps, strict=True):
        if not e:
            equal = b
            continue
        if last is not None and last[1] * e < 0:
            a, d = last
            share = d / (d - e)
            place = math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
            leader = first[0].name if e > 0 else second[0].name
            found.append((place if equal is None else float(equal), leader))
        last, equal = (b, e), None
    return found
