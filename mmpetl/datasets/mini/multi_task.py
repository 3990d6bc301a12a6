"""Scenes with a label map and a depth map each, in the layout of ``DenseTasks``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .glyphs import DIGITS
from .scenes import GROUNDS, Scene, draw_scene
from .storage import save_lines, save_picture

UNLABELLED = 255
"""Label of the pixels that do not count."""

NYU_GROUNDS = {0: 0, 1: 21, 2: 1, 3: 19}
"""Index of a ground to the NYU label that it plays: wall, ceiling, floor, floor mat."""

NYU_THINGS = (3, 4, 5, 6, 7, 8, 9, 10, 17, 24)
"""NYU labels that the ten digits play: bed, chair, sofa, table, door, ..."""

BEHIND_M = {0: 6.0, 1: 10.0}
"""Distance of the ground behind, m: a wall is near, the sky far."""

CAMERA = 0.9
TILT = 0.15
"""The floor at the share ``v`` of the height below its far edge is CAMERA / (v + TILT)
metres away: 6 m at the edge, where the wall stands."""


def write_nyud_mt(folder: Path, train: int, val: int, seed: int) -> None:
    """``images``, ``segmentation`` and ``depth``, with lists in ``splits``."""
    rng = np.random.default_rng(seed)
    number = 0
    for split, count in (('train', train), ('val', val)):
        names = []
        for _ in range(count):
            number += 1
            name = f'{number:04d}'
            scene = draw_scene(rng, tuple(DIGITS))
            save_picture(folder / 'images' / f'{name}.jpg', scene.picture)
            save_picture(folder / 'segmentation' / f'{name}.png', nyu_labels(scene))
            depth = np.round(1000 * depth_map(scene)).astype(np.uint16)
            save_picture(folder / 'depth' / f'{name}.png', depth)
            names.append(name)
        save_lines(folder / 'splits' / f'{split}.txt', names)


def nyu_labels(scene: Scene) -> np.ndarray:
    """Label per pixel, (H, W) uint8; the rim of 1 px is left unlabelled."""
    table = np.array([NYU_GROUNDS[index] for index in range(len(GROUNDS))], np.uint8)
    labels = table[scene.ground]
    for thing in scene.things:
        labels[thing.mask] = NYU_THINGS[thing.kind]
    return _without_rim(labels, UNLABELLED)


def depth_map(scene: Scene) -> np.ndarray:
    """Distance per pixel, m, (H, W) float64; 0 in the rim, where there is no reading.

    The picture tells it: the floor comes nearer towards the lower edge, and a thing is
    as far away as the ground where it stands.
    """
    height, _ = scene.ground.shape
    floor = scene.ground >= 2
    rows = np.arange(height)[:, None]
    # The first row of floor per column; below the picture where there is none.
    edge = np.where(floor.any(0), floor.argmax(0), height)
    below = np.clip((rows - edge) / height, 0, None)
    behind = np.vectorize(BEHIND_M.get)(np.where(floor, 0, scene.ground))
    ground = np.where(floor, CAMERA / (below + TILT), behind)
    depth = ground.copy()
    for thing in scene.things:
        left, _, right, bottom = thing.box
        depth[thing.mask] = ground[bottom - 1, (left + right) // 2]
    return _without_rim(depth, 0)


def _without_rim(values: np.ndarray, nothing: int) -> np.ndarray:
    values[[0, -1]] = nothing
    values[:, [0, -1]] = nothing
    return values
