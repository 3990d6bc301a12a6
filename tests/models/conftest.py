"""Fixtures of this folder."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def same_features(record_property):
    """Equality of features; the largest difference goes into the test's report.

    ``tools/misc/check_weight_formats.py`` prints these reports as a table.
    """

    @torch.no_grad()
    def same(ours, reference, tolerance: float, what: str) -> None:
        ours = ours[-1] if isinstance(ours, tuple) else ours
        gap = (ours - reference).abs().max().item()
        record_property('format', what)
        record_property('max_difference', gap)
        record_property('scale', reference.abs().max().item())
        record_property('tolerance', tolerance)
        assert reference.std() > 0.05
        assert gap <= tolerance

    return same
