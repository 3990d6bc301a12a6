"""Pictures of one colour each with noise: classes that a tiny trunk tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {'blue': (40, 60, 220), 'green': (40, 200, 60), 'red': (220, 50, 40)}


def paint(folder: Path, count: int, seed: int = 0, side: int = 32) -> Path:
    """Write so many PNG pictures of each colour into class folders below a folder."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.normal(0, 25, (side, side, 3))
            pixels = np.clip(noise + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f'{number:02d}.png')
    return folder
