"""Tiny copies of every mini set, drawn once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpetl.datasets import mini


@pytest.fixture(scope='session')
def tiny_root(tmp_path_factory) -> Path:
    """A data root to read from; copy what is to be changed."""
    root = tmp_path_factory.mktemp('tiny')
    mini.make(root, size='tiny')
    return root


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """MMEngine collects garbage at every data set: slow beside many packages."""
    monkeypatch.setattr('mmengine.dataset.base_dataset.gc.collect', lambda: 0)
