"""Depth errors and the gain over single-task models."""

from __future__ import annotations

import pytest
import torch

from mmpetl.core import PETLError
from mmpetl.evaluation import DepthError, relative_improvement


def sample(truth, found) -> dict:
    def field(values):
        return {'data': torch.tensor([values], dtype=torch.float32)}

    return {'gt_depth_map': field(truth), 'pred_depth_map': field(found)}


def test_errors_are_over_all_pixels_with_a_reading():
    metric = DepthError()
    metric.process(None, [sample([[2.0, 0.0]], [[3.0, 99.0]])])
    metric.process(None, [sample([[4.0, 1.0], [2.0, 2.0]], [[4.0, 2.0], [2.0, 5.0]])])
    found = metric.evaluate(2)
    # Gaps 1 | 0, 1, 0, 3 over five readings.
    assert found['depth/rmse'] == pytest.approx((11 / 5) ** 0.5)
    assert found['depth/abs_rel'] == pytest.approx((0.5 + 0 + 1 + 0 + 1.5) / 5)


def test_no_reading_at_all_is_refused():
    metric = DepthError()
    metric.process(None, [sample([[0.0]], [[1.0]])])
    with pytest.raises(PETLError, match='no pixel with a depth'):
        metric.evaluate(1)


def test_a_sample_without_depth_is_refused():
    with pytest.raises(PETLError, match='needs gt_depth_map and pred_depth_map'):
        DepthError().process(None, [{'gt_sem_seg': None}])


def test_relative_improvement_counts_errors_downwards():
    gain = relative_improvement(
        {'seg': 44.0, 'depth': 0.6}, {'seg': 40.0, 'depth': 0.5}, ['depth']
    )
    assert gain == pytest.approx((10 - 20) / 2)


def test_relative_improvement_needs_the_same_tasks_and_a_reference():
    with pytest.raises(PETLError, match='seg and depth'):
        relative_improvement({'seg': 1.0}, {'depth': 1.0})
    with pytest.raises(PETLError, match="'seg' is 0"):
        relative_improvement({'seg': 1.0}, {'seg': 0.0})
