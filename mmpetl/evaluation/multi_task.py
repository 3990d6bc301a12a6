"""Metrics of multi-task models: depth errors, and what tuning gained over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from mmpetl.core import PETLError
from mmpetl.registry import METRICS


@METRICS.register_module()
class DepthError(BaseMetric):
    """``rmse`` (m) and ``abs_rel`` over all pixels of all images that have a reading.

    Errors are summed over pixels before the root is taken, so that the result does not
    depend on batches or processes.

    Args:
        prefix: In front of the names, ``depth`` by default.
        collect_device: Where results of several processes meet, ``cpu`` or ``gpu``.
    """

    default_prefix = 'depth'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Add images; maps are (1, H, W), in metres, 0 without a reading."""
        for sample in data_samples:
            if 'pred_depth_map' not in sample or 'gt_depth_map' not in sample:
                raise PETLError(
                    'DepthError needs gt_depth_map and pred_depth_map in every sample; '
                    'load the depth in the test pipeline, and give the model a '
                    'mmpetl.DepthHead'
                )
            truth = sample['gt_depth_map']['data'].double()
            found = sample['pred_depth_map']['data'].to(truth)
            seen = truth > 0
            gap = (found - truth)[seen]
            self.results.append(
                (
                    gap.square().sum().item(),
                    (gap.abs() / truth[seen]).sum().item(),
                    int(seen.sum()),
                )
            )

    def compute_metrics(self, results: list[tuple[float, float, int]]) -> dict:
        """The metrics from the sums of every image."""
        squares, relative, count = (
            sum(column) for column in zip(*results, strict=True)
        )
        if not count:
            raise PETLError('DepthError found no pixel with a depth in the whole set')
        return {'rmse': math.sqrt(squares / count), 'abs_rel': relative / count}


def relative_improvement(
    scores: Mapping[str, float],
    single_task: Mapping[str, float],
    lower_is_better: Sequence[str] = (),
) -> float:
    """Mean relative gain over single-task models, in percent (Delta_m).

    Args:
        scores: Metric by task, of the multi-task model.
        single_task: The same metrics of one model per task.
        lower_is_better: Tasks whose metric is an error.

    Raises:
        PETLError: The tasks differ, or a reference is zero.
    """
    if set(scores) != set(single_task):
        raise PETLError(
            f'relative_improvement needs the same tasks twice, got '
            f'{", ".join(sorted(scores))} and {", ".join(sorted(single_task))}'
        )
    gains = []
    for task, score in scores.items():
        reference = single_task[task]
        if reference == 0:
            raise PETLError(f'the single-task score of {task!r} is 0')
        sign = -1 if task in lower_is_better else 1
        gains.append(sign * (score - reference) / reference)
    return 100 * float(torch.tensor(gains, dtype=torch.float64).mean())
