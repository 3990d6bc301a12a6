"""Drawn scenes as people keep their own: files of COCO, or masks beside pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmpetl.datasets.mini.scenes import draw_scene

GLYPHS = ('0', '1', '7')
NAMES = ('zero', 'one', 'seven')


def draw(count: int, seed: int = 0) -> list:
    """So many scenes."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, GLYPHS) for _ in range(count)]


def save(scenes: list, folder: Path) -> list[str]:
    """Write their pictures; names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f'{i:03d}.png' for i in range(len(scenes))]
    for scene, name in zip(scenes, names, strict=True):
        Image.fromarray(scene.picture).save(folder / name)
    return names


def coco(scenes: list, names: list[str]) -> dict:
    """The COCO file of scenes; a category that nothing shows stands first."""
    images, boxes = [], []
    for number, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        height, width = scene.ground.shape
        images.append(
            {'id': number, 'file_name': name, 'height': height, 'width': width}
        )
        for thing in scene.things:
            left, top, right, bottom = thing.box
            boxes.append(
                {
                    'id': len(boxes) + 1,
                    'image_id': number,
                    'category_id': thing.kind + 1,
                    'bbox': [left, top, right - left, bottom - top],
                    'area': (right - left) * (bottom - top),
                    'iscrowd': 0,
                }
            )
    categories = [{'id': i, 'name': n} for i, n in enumerate(('glyphs', *NAMES))]
    return {'images': images, 'annotations': boxes, 'categories': categories}


def write_boxes(folder: Path, count: int, seed: int = 0) -> Path:
    """One COCO file beside a folder of pictures."""
    scenes = draw(count, seed)
    data = coco(scenes, save(scenes, folder / 'images'))
    (folder / 'annotations.json').write_text(json.dumps(data))
    return folder


def labels(scene) -> np.ndarray:
    """0 the ground, then the things; a rim of the picture does not count."""
    found = np.zeros(scene.ground.shape, np.uint8)
    for thing in scene.things:
        found[thing.mask] = thing.kind + 1
    found[0] = 255
    return found


def write_masks(folder: Path, count: int, seed: int = 0) -> Path:
    """Masks of numbers, and their names in a file."""
    scenes = draw(count, seed)
    (folder / 'masks').mkdir(parents=True)
    for scene, name in zip(scenes, save(scenes, folder / 'images'), strict=True):
        Image.fromarray(labels(scene)).save(folder / 'masks' / name)
    (folder / 'classes.txt').write_text('\n'.join(('ground', *NAMES)))
    return folder
