"""Fixtures of this folder; what they build is in ``tests/workbench.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    pixels = np.random.RandomState(0).randint(0, 255, (40, 52, 3)).astype(np.uint8)
    path = tmp_path / 'picture.png'
    Image.fromarray(pixels).save(path)
    return path
