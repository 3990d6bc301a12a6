"""COCO, PASCAL VOC and ADE20K in their official layouts, drawn small."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from mmpetl.datasets.classes import COCO_CLASSES, COCO_IDS, VOC_CLASSES

from .glyphs import DIGITS, SHAPES
from .scenes import Scene, Thing, draw_scene
from .storage import save_json, save_lines, save_picture

COCO_GLYPHS = tuple(DIGITS)
"""Glyph ``k`` plays the ``k``-th official class; the other 70 stay empty."""

VOC_GLYPHS = tuple(DIGITS) + SHAPES
"""Glyph ``k`` plays the ``k``-th official class: all twenty are used."""

ADE_GROUNDS = {0: 1, 1: 3, 2: 4, 3: 10}
"""Index of a ground to its official label: wall, sky, floor, grass."""

ADE_THINGS = (8, 11, 13, 15, 16, 19, 20, 21, 23, 24)
"""Official labels that the ten digits play."""


def write_coco(folder: Path, train: int, val: int, seed: int) -> None:
    """``train2017``, ``val2017`` and their instance files, 80 categories listed."""
    rng = np.random.default_rng(seed)
    categories = [
        {'id': number, 'name': name, 'supercategory': 'mini'}
        for number, name in zip(COCO_IDS, COCO_CLASSES, strict=True)
    ]
    image_id = 0
    for split, count in (('train2017', train), ('val2017', val)):
        images, annotations = [], []
        for _ in range(count):
            image_id += 1
            scene = draw_scene(rng, COCO_GLYPHS)
            name = f'{image_id:012d}.jpg'
            save_picture(folder / split / name, scene.picture)
            height, width = scene.ground.shape
            images.append(
                {'id': image_id, 'file_name': name, 'height': height, 'width': width}
            )
            for thing in scene.things:
                number = len(annotations) + 1  # pycocotools takes 0 for "no match"
                annotations.append(_coco_annotation(thing, image_id, number))
        save_json(
            folder / 'annotations' / f'instances_{split}.json',
            {
                'info': {'description': 'drawn scenes in the layout of COCO 2017'},
                'licenses': [],
                'images': images,
                'annotations': annotations,
                'categories': categories,
            },
        )


def _coco_annotation(thing: Thing, image_id: int, number: int) -> dict:
    """Outer outlines as polygons; holes are filled, since polygons cannot tell them."""
    outlines, _ = cv2.findContours(
        thing.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outlines = [line for line in outlines if len(line) >= 3]
    filled = cv2.fillPoly(np.zeros(thing.mask.shape, np.uint8), outlines, 1)
    left, top, right, bottom = thing.box
    return {
        'id': number,
        'image_id': image_id,
        'category_id': COCO_IDS[thing.kind],
        'bbox': [left, top, right - left, bottom - top],
        'area': int(filled.sum()),
        'iscrowd': 0,
        'segmentation': [line.ravel().tolist() for line in outlines],
    }


def write_voc(folder: Path, year: int, splits: dict[str, int], seed: int) -> None:
    """One year of VOC: ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.

    2012 has label maps too, three quarters of its pictures for training.
    """
    rng = np.random.default_rng(seed)
    number = 0
    mapped = []
    for split, count in splits.items():
        names = []
        for _ in range(count):
            number += 1
            name = f'{number:06d}' if year == 2007 else f'2008_{number:06d}'
            scene = draw_scene(rng, VOC_GLYPHS)
            save_picture(folder / 'JPEGImages' / f'{name}.jpg', scene.picture)
            path = folder / 'Annotations' / f'{name}.xml'
            path.parent.mkdir(parents=True, exist_ok=True)
            _voc_tree(scene, name, year).write(path)
            names.append(name)
            if year == 2012:
                _save_voc_map(folder / 'SegmentationClass' / f'{name}.png', scene)
                mapped.append(name)
        save_lines(folder / 'ImageSets' / 'Main' / f'{split}.txt', names)
    if mapped:
        cut = 3 * len(mapped) // 4
        for split, names in (('train', mapped[:cut]), ('val', mapped[cut:])):
            save_lines(folder / 'ImageSets' / 'Segmentation' / f'{split}.txt', names)


VOC_RIM = 255
"""Label of the rim around each thing, which does not count."""


def voc_labels(scene: Scene) -> np.ndarray:
    """Label per pixel, (H, W) uint8: 0 is ground, 1 to 20 the classes, 255 a rim."""
    labels = np.zeros(scene.ground.shape, np.uint8)
    for thing in scene.things:
        mask = thing.mask.astype(np.uint8)
        wide = cv2.dilate(mask, np.ones((3, 3), np.uint8)).astype(bool)
        labels[wide & ~thing.mask] = VOC_RIM
        labels[thing.mask] = thing.kind + 1
    return labels


def _voc_palette() -> list[int]:
    """The official colours: bits of the label, dealt out to red, green and blue."""
    colours = []
    for label in range(256):
        for channel in range(3):
            bits = [label >> (3 * k + channel) & 1 for k in range(3)]
            colours.append(sum(bit << (7 - k) for k, bit in enumerate(bits)))
    return colours


def _save_voc_map(path: Path, scene: Scene) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(voc_labels(scene))  # grey; a palette makes it indexed
    picture.putpalette(_voc_palette())
    picture.save(path)


def _voc_tree(scene: Scene, name: str, year: int) -> ElementTree.ElementTree:
    def add(parent: ElementTree.Element, tag: str, text: object) -> None:
        ElementTree.SubElement(parent, tag).text = str(text)

    root = ElementTree.Element('annotation')
    add(root, 'folder', f'VOC{year}')
    add(root, 'filename', f'{name}.jpg')
    size = ElementTree.SubElement(root, 'size')
    height, width = scene.ground.shape
    for tag, value in (('width', width), ('height', height), ('depth', 3)):
        add(size, tag, value)
    add(root, 'segmented', 0)
    for thing in scene.things:
        entry = ElementTree.SubElement(root, 'object')
        add(entry, 'name', VOC_CLASSES[thing.kind])
        add(entry, 'pose', 'Unspecified')
        add(entry, 'truncated', 0)
        add(entry, 'difficult', 0)
        box = ElementTree.SubElement(entry, 'bndbox')
        left, top, right, bottom = thing.box
        # VOC counts pixels from one and includes the last
        for tag, value in (
            ('xmin', left + 1),
            ('ymin', top + 1),
            ('xmax', right),
            ('ymax', bottom),
        ):
            add(box, tag, value)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def write_ade20k(folder: Path, train: int, val: int, seed: int) -> None:
    """``images`` and ``annotations`` with labels 1-150, 0 where nothing is labelled."""
    rng = np.random.default_rng(seed)
    for split, stem, count in (
        ('training', 'ADE_train', train),
        ('validation', 'ADE_val', val),
    ):
        for number in range(1, count + 1):
            scene = draw_scene(rng, tuple(DIGITS))
            name = f'{stem}_{number:08d}'
            save_picture(folder / 'images' / split / f'{name}.jpg', scene.picture)
            labels = ade_labels(scene)
            save_picture(folder / 'annotations' / split / f'{name}.png', labels)


def ade_labels(scene: Scene) -> np.ndarray:
    """Official label per pixel, (H, W) uint8; the rim of 1 px is left unlabelled."""
    table = np.array([ADE_GROUNDS[index] for index in range(4)], np.uint8)
    labels = table[scene.ground]
    for thing in scene.things:
        labels[thing.mask] = ADE_THINGS[thing.kind]
    labels[[0, -1]] = 0
    labels[:, [0, -1]] = 0
    return labels
