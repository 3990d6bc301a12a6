"""Drawn sets, taken for the official ones."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def official(tiny_root) -> Path:
    """A data root in the layouts that converters must arrive at; do not change it."""
    return tiny_root
