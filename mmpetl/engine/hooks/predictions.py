"""What a classifier said of every test sample, kept beside its metrics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import collect_results, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmpetl.compat.arrays import read_arrays
from mmpetl.core import PETLError
from mmpetl.core.part_files import part_name
from mmpetl.engine.hooks.common import plain_model
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Writes ``logits`` (N, C) float32 and ``labels`` (N,) int64 of the test samples.

    The file is that of ``np.savez``, whole or absent, in the order of the dataset.
    Where a sample has one view, the logits are what the head put out; where it has
    several clips or crops, they are the mean of that, or the logarithm of the mean
    probabilities, as the head averages. Models without a classification head (``head``,
    ``cls_head``) and samples of several labels leave no file.

    Args:
        path: The file.
    """

    priority = 'LOW'

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._handle: Any = None
        self._raw: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[int] = []

    def before_test_epoch(self, runner: Runner) -> None:
        self._stop()
        model = plain_model(runner)
        head = getattr(model, 'cls_head', None) or getattr(model, 'head', None)
        if head is not None and hasattr(head, 'predict'):
            self._averages_scores = getattr(head, 'average_clips', None) == 'score'
            self._handle = head.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._raw.append(output.detach().float().cpu())

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        if self._handle is None or not outputs:
            return
        if not all(hasattr(s, 'pred_score') and _one_label(s) for s in outputs):
            self._stop()
            return
        raw = torch.cat(self._raw) if self._raw else torch.empty(0)
        self._raw = []
        if len(raw) != len(outputs):
            raw = torch.stack([s.pred_score.float().cpu() for s in outputs])
            if not self._averages_scores:
                raw = raw.clamp_min(torch.finfo(torch.float32).tiny).log()
        self._logits.append(raw)
        self._labels += [int(s.gt_label.reshape(-1)[0]) for s in outputs]

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        if self._labels:
            logits = torch.cat(self._logits).numpy()
            labels = np.asarray(self._labels, np.int64)
            if get_world_size() > 1:
                logits, labels = _gathered(logits, labels, runner)
            if is_main_process():
                write_predictions(self.path, logits, labels)
        self._stop()

    @property
    def watches(self) -> bool:
        """Whether what was seen so far will be written."""
        return self._handle is not None

    def _stop(self) -> None:
        """Look at no further batch, and forget those seen."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._raw, self._logits, self._labels = [], [], []


def _gathered(
    logits: np.ndarray, labels: np.ndarray, runner: Runner
) -> tuple[np.ndarray, np.ndarray]:
    """What all processes saw, in the order of the data set, for the first of them."""
    rows = list(zip(logits, labels, strict=True))
    # Samplers give every process as many, and repeat some for that.
    whole = collect_results(rows, len(runner.test_dataloader.dataset))
    if whole is None:
        return logits, labels
    return tuple(np.stack(column) for column in zip(*whole, strict=True))


def _one_label(sample: Any) -> bool:
    return 'gt_label' in sample and sample.gt_label.numel() == 1


def write_predictions(path: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Write a file of predictions, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_name(path)
    with open(part, 'wb') as file:
        np.savez(file, logits=logits.astype(np.float32), labels=labels)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_predictions(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels (N,) of a file of predictions.

    Raises:
        PETLError: There is no such file, or it holds something else.
    """
    try:
        data = read_arrays(path, ('logits', 'labels'))
    except (OSError, ValueError) as error:
        raise PETLError(f'cannot read the predictions {path}: {error}') from None
    logits, labels = data['logits'], data['labels']
    if logits.dtype.kind != 'f' or labels.dtype.kind not in 'iu':
        raise PETLError(
            f'{path} holds no predictions: logits are {logits.dtype} and labels '
            f'{labels.dtype}, wanted are floating point numbers and integers'
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise PETLError(
            f'{path} holds logits of shape {logits.shape} and labels of shape '
            f'{labels.shape}; it needs (N, C) and (N,)'
        )
    return logits, labels
