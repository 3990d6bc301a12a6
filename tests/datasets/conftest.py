"""Tiny copies of every mini set, drawn once for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpetl.datasets.catalog import CATALOG


@pytest.fixture(scope='session')
def tiny_root(tiny_data) -> Path:
    """A data root to read from; copy what is to be changed."""
    return tiny_data()


@pytest.fixture
def copy(tiny_root, tmp_path) -> Callable[[str], Path]:
    """``copy(id)`` gives a data root that holds one set, to be spoilt."""

    def make(id: str) -> Path:
        path = 'VOCdevkit' if id.startswith('voc') else CATALOG[id].path
        shutil.copytree(tiny_root / path, tmp_path / path)
        return tmp_path

    return make
