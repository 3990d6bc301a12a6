"""Trained classifiers on test sets that have shifted away from their training data.

A shifted set is a corruption of the test set at one of five severities
(:mod:`mmpetl.datasets.corruptions`), or a set of its own such as ImageNet-V2, -R,
-Sketch and -A. R and A hold 200 of the classes: scores of the others are left out.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.datasets.corruptions import CORRUPTIONS, SEVERITIES

KEEP_BYTES = 32 * 2**20
"""Samples of a set stay in memory while they are smaller than this."""

CLEAN = 'clean'
"""Name of the test set as it is."""


def load_classifier(folder: str | os.PathLike, device: str = 'auto') -> nn.Module:
    """The tuned model of a run.

    Args:
        folder: Holds ``config.py`` and ``delta.safetensors``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        PETLError: A file is missing, or the model is no image classifier.
    """
    from mmpetl.apis.model import init_model

    folder = Path(folder)
    config, delta = folder / 'config.py', folder / 'delta.safetensors'
    for path in (config, delta):
        if not path.is_file():
            raise PETLError(
                f'{folder} has no {path.name}; it must be the folder of a finished run'
            )
    model = init_model(config, delta, device)
    check_classifier(model)
    model.eval()
    return model


def check_classifier(model: nn.Module) -> None:
    """Raise PETLError unless the model gives scores (B, C) of pictures."""
    if not hasattr(model, 'extract_feat') or not hasattr(model, 'head'):
        raise PETLError(
            f'{type(model).__name__} is no image classifier; shifted sets and '
            'interpolation are for those'
        )


@dataclass
class Samples:
    """Prepared pictures of a set with their labels, in a fixed order.

    Attributes:
        name: What tables call it.
        dataset: The data set.
        indices: Which of its samples.
        subset: The classes that the set holds, None for all.
        batch_size: Samples per batch.
        workers: Processes that read; a set that is kept is read once.
    """

    name: str
    dataset: Any
    indices: tuple[int, ...]
    subset: tuple[int, ...] | None = None
    batch_size: int = 128
    workers: int = 0
    _kept: list[Any] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._kept is not None:
            yield from self._kept
            return
        from mmengine.dataset import pseudo_collate
        from torch.utils.data import DataLoader, Subset

        loader = DataLoader(
            Subset(self.dataset, self.indices),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=pseudo_collate,
        )
        kept: list[Any] | None = []
        size = 0
        for batch in loader:
            size += sum(t.numel() * t.element_size() for t in batch['inputs'])
            if size > KEEP_BYTES:
                kept = None
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept


def samples_of(
    config: Any,
    phase: str = 'test',
    *,
    name: str = CLEAN,
    corruption: tuple[str, int] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """The samples of a config's loader, corrupted behind the reading of the file.

    Args:
        config: A resolved config.
        phase: ``test`` or ``val``.
        name: What tables call the set.
        corruption: Kind and severity, None for the set as it is.
        limit: Most samples, drawn by ``seed``; the same for all corruptions.
        seed: Of that draw and of the corruption.

    Raises:
        PETLError: The config has no such loader, or nothing reads pictures in it.
    """
    from mmengine.registry import DATASETS

    from mmpetl.apis.building import scope_of
    from mmpetl.config.load import as_config

    config = as_config(config)
    loader = config.get(f'{phase}_dataloader')
    if not loader:
        raise PETLError(f'the config has no {phase}_dataloader, so nothing to score')
    node = copy.deepcopy(loader['dataset'])
    node = node.to_dict() if hasattr(node, 'to_dict') else dict(node)
    if corruption is not None:
        kind, severity = corruption
        step = {
            'type': 'mmpetl.Corruption',
            'kind': kind,
            'severity': severity,
            'seed': seed,
        }
        if not _insert(node, step):
            raise PETLError(
                f'the pipeline of the {phase} set has no LoadImageFromFile to corrupt '
                'the pictures of'
            )
    with scope_of(config):
        dataset = DATASETS.build(node)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    order = np.arange(len(dataset))
    if limit is not None and limit < len(dataset):
        order = np.sort(np.random.default_rng(seed).permutation(order)[:limit])
    subset = (getattr(dataset, 'metainfo', None) or {}).get('subset')
    return Samples(
        name=name,
        dataset=dataset,
        indices=tuple(order.tolist()),
        subset=None if subset is None else tuple(subset),
        batch_size=int(loader.get('batch_size') or 128),
        workers=int(loader.get('num_workers') or 0),
    )


def _insert(node: Any, step: Mapping[str, Any]) -> bool:
    """Put a step behind the reading of the file, in every pipeline below a node."""
    found = False
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('pipeline', 'transforms') and isinstance(value, list | tuple):
                steps = [dict(s) for s in value]
                places = [
                    i
                    for i, s in enumerate(steps)
                    if str(s.get('type')).endswith('LoadImageFromFile')
                ]
                if places:
                    steps.insert(places[0] + 1, dict(step))
                    found = True
                else:
                    found |= any(_insert(s, step) for s in steps)
                node[key] = steps
            elif isinstance(value, Mapping | list | tuple):
                found |= _insert(value, step)
    elif isinstance(node, list | tuple):
        for value in node:
            found |= _insert(value, step)
    return found


@torch.no_grad()
def logits_of(model: nn.Module, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """What a classifier says of the samples: logits (N, C) float32, labels (N,).

    Raises:
        PETLError: A sample has no single label, or the model gives no scores.
    """
    from mmpetl.apis.building import scope_of

    logits, labels = [], []
    with scope_of(model.cfg):
        for batch in samples:
            labels += [label_of(s) for s in batch['data_samples']]
            data = model.data_preprocessor(copied(batch), False)
            out = model(data['inputs'], mode='tensor')
            if not isinstance(out, Tensor) or out.ndim != 2:
                raise PETLError(f'{type(model).__name__} gives no scores (B, C)')
            logits.append(out.float().cpu())
    return torch.cat(logits).numpy(), np.asarray(labels, np.int64)


def copied(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch whose containers may be written to; the pixels are shared."""
    return {
        'inputs': list(batch['inputs']),
        'data_samples': list(batch['data_samples']),
    }


def label_of(sample: Any) -> int:
    """The label of a prepared sample.

    Raises:
        PETLError: It has no single one.
    """
    label = getattr(sample, 'gt_label', None)
    if not isinstance(label, Tensor) or label.numel() != 1:
        raise PETLError('a sample has no single label, so it is no classification set')
    return int(label)


def accuracy_of(
    logits: np.ndarray, labels: np.ndarray, subset: Sequence[int] | None = None
) -> float:
    """Top-1 in per cent; among the classes of ``subset`` where there is one."""
    if subset is None:
        return 100.0 * float((logits.argmax(1) == labels).mean())
    from mmpetl.evaluation.masked_accuracy import reindex, restrict

    best = restrict(torch.from_numpy(logits), subset).argmax(-1)
    return 100.0 * float(
        (best == reindex(torch.from_numpy(labels), subset)).float().mean()
    )


def score(model: nn.Module, samples: Samples) -> float:
    """Accuracy in per cent of a model on a set."""
    logits, labels = logits_of(model, samples)
    return accuracy_of(logits, labels, samples.subset)


def condition(kind: str, severity: int) -> str:
    """Name of a corruption at a severity: ``blur-3``."""
    return f'{kind}-{severity}'


def split_condition(name: str) -> tuple[str, int] | None:
    """Kind and severity of a name that :func:`condition` made; None of others."""
    kind, _, severity = name.rpartition('-')
    made = kind in CORRUPTIONS and severity in map(str, SEVERITIES)
    return (kind, int(severity)) if made else None


def named_sets(
    paths: Iterable[Path] | None, taken: Iterable[str] = (CLEAN,)
) -> dict[str, Path]:
    """Configs of shifted sets by what tables call them: their names without ending.

    Args:
        paths: The files.
        taken: Names that something else has.

    Raises:
        PETLError: There is no such file, or its name is taken: by another set, by what
            is no shifted set, or by a corruption.
    """
    found: dict[str, Path] = {}
    for path in paths or ():
        if not path.is_file():
            raise PETLError(f'there is no config {path} of a shifted set')
        name = path.stem
        other = found.get(name)
        if other is not None or name in taken or split_condition(name):
            of = f'that of {other}' if other else 'the name of another set here'
            raise PETLError(
                f'the set of {path} would be called {name!r}, which is {of}; rename '
                'the file'
            )
        found[name] = path
    return found


def shifted_mean(scores: Mapping[str, float]) -> float:
    """Plain mean over all sets but the clean one."""
    values = [v for k, v in scores.items() if k != CLEAN]
    if not values:
        raise PETLError('there is no shifted set to take the mean of')
    return float(np.mean(values))


def by_kind(scores: Mapping[str, float]) -> dict[str, float]:
    """Mean over severities per kind; a set of its own stands by its own name."""
    groups: dict[str, list[float]] = {}
    for name, value in scores.items():
        if name != CLEAN:
            kind, _ = split_condition(name) or (name, 0)
            groups.setdefault(kind, []).append(value)
    return {kind: float(np.mean(values)) for kind, values in groups.items()}


def by_severity(scores: Mapping[str, float]) -> dict[int, float]:
    """Mean over kinds per severity; 0 is the clean set."""
    groups: dict[int, list[float]] = {}
    for name, value in scores.items():
        _, severity = split_condition(name) or (name, None)
        if name == CLEAN:
            groups.setdefault(0, []).append(value)
        elif severity is not None:
            groups.setdefault(severity, []).append(value)
    return {s: float(np.mean(groups[s])) for s in sorted(groups)}


def line_of(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Slope and offset of least squares; None for fewer than three or equal x."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset)


def above_line(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Effective robustness: how far each lies above the line through all.

    Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image
    Classification", NeurIPS 2020; they fit the line to models without intervention, we
    to the methods at hand, on plain accuracies.
    """
    line = line_of(x, y)
    if line is None:
        return [float('nan')] * len(x)
    return [float(b - (line[0] * a + line[1])) for a, b in zip(x, y, strict=True)]
