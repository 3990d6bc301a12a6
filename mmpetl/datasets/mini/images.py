"""VTAB-1k and FGVC tasks in their official layouts, small, drawn or real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .glyphs import (
    DIGITS,
    SHAPES,
    Pose,
    colour_pair,
    fonts_for,
    glyph_mask,
    paint,
    place,
    to_picture,
)
from .scenes import draw_emblem
from .storage import save_json, save_lines, save_picture

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Generator and label to an RGB picture."""


@dataclass(frozen=True)
class ImageCounts:
    """Pictures per split."""

    train: int
    val: int
    test: int


# --- VTAB-1k -----------------------------------------------------------------

VTAB_CLASSES = {
    'cifar': 100,
    'caltech101': 102,
    'dtd': 47,
    'oxford_flowers102': 102,
    'oxford_iiit_pet': 37,
    'svhn': 10,
    'sun397': 397,
    'patch_camelyon': 2,
    'eurosat': 10,
    'resisc45': 45,
    'diabetic_retinopathy': 5,
    'clevr_count': 8,
    'clevr_dist': 6,
    'dmlab': 6,
    'kitti': 4,
    'dsprites_loc': 16,
    'dsprites_ori': 16,
    'smallnorb_azi': 18,
    'smallnorb_ele': 9,
}


def _blank(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    ink, ground = colour_pair(rng)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = ground
    return canvas, ink


def _draw_number(rng: np.random.Generator, label: int, width: int) -> np.ndarray:
    """The label itself, written with ``width`` figures, 64 px."""
    side = 64
    canvas, ink = _blank(rng, side)
    fonts = fonts_for('0')
    font = fonts[rng.integers(len(fonts))]
    step = side / (width + 0.4)
    size = min(0.75 * side, 1.2 * step) * rng.uniform(0.85, 1.0)
    x, y = side / 2 - step * (width - 1) / 2, side * rng.uniform(0.42, 0.58)
    shear = rng.uniform(-0.2, 0.2)
    for index, char in enumerate(f'{label:0{width}d}'):
        pose = Pose(x + step * index, y, size, rng.uniform(-10, 10), shear)
        paint(canvas, place(glyph_mask(char, font), pose, side, side), ink)
    canvas += rng.normal(0, 4, canvas.shape)
    return to_picture(canvas)


def _number(classes: int) -> Draw:
    width = len(str(classes - 1))
    return lambda rng, label: _draw_number(rng, label, width)


def _single(
    classes: int, pose: Callable[[np.random.Generator, float], Pose], figures: tuple
) -> Draw:
    """One figure whose pose alone tells the class; ``pose`` gets it in [0, 1)."""

    def draw(rng: np.random.Generator, label: int) -> np.ndarray:
        canvas, ink = _blank(rng, 64)
        where = pose(rng, (label + rng.uniform(0.1, 0.9)) / classes)
        mask = glyph_mask(figures[rng.integers(len(figures))])
        paint(canvas, place(mask, where, 64, 64), ink)
        canvas += rng.normal(0, 4, canvas.shape)
        return to_picture(canvas)

    return draw


def _draw_count(rng: np.random.Generator, label: int) -> np.ndarray:
    """``label + 3`` figures, as CLEVR's count begins at three."""
    canvas, ink = _blank(rng, 64)
    cells = rng.permutation(16)[: label + 3]
    for cell in cells:
        x, y = (np.array([cell % 4, cell // 4]) + 0.5) * 16 + rng.uniform(-2, 2, 2)
        pose = Pose(x, y, rng.uniform(9, 13), rng.uniform(0, 360))
        mask = glyph_mask(SHAPES[rng.integers(len(SHAPES))])
        paint(canvas, place(mask, pose, 64, 64), ink)
    canvas += rng.normal(0, 4, canvas.shape)
    return to_picture(canvas)


def _far(rng: np.random.Generator, share: float) -> Pose:
    x, y = rng.uniform(24, 40, 2)
    return Pose(x, y, 56 - 44 * share, rng.uniform(0, 360))


def _vtab_draw(task: str) -> Draw:
    """What a task shows: its own kind of question, asked about glyphs."""
    classes = VTAB_CLASSES[task]
    if task == 'clevr_count':
        return _draw_count
    if task in ('clevr_dist', 'kitti', 'dmlab'):
        return _single(classes, _far, SHAPES)
    if task == 'dsprites_loc':
        return _single(
            classes,
            lambda rng, share: Pose(8 + 48 * share, rng.uniform(12, 52), 14),
            SHAPES,
        )
    if task in ('dsprites_ori', 'smallnorb_azi'):
        return _single(
            classes,
            lambda rng, share: Pose(
                *rng.uniform(26, 38, 2), rng.uniform(26, 40), 360 * share
            ),
            ('arrow', 'moon'),
        )
    if task == 'smallnorb_ele':
        return _single(
            classes,
            lambda rng, share: Pose(32, 32, 30, aspect=float(np.exp(2 * share - 1))),
            ('disc', 'square', 'ring'),
        )
    return _number(classes)


def write_vtab(folder: Path, task: str, counts: ImageCounts, seed: int) -> None:
    """A drawn task with the official task's name, class count and kind of question."""
    draw = _vtab_draw(task)
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in (
        ('train800', counts.train),
        ('val200', counts.val),
        ('test', counts.test),
    ):
        labels = _labels(rng, count, VTAB_CLASSES[task])
        splits[split] = [(draw(rng, label), label) for label in labels]
    _write_vtab_splits(folder, splits)


def _labels(rng: np.random.Generator, count: int, classes: int) -> list[int]:
    """Classes as even as the count allows, in random order."""
    return rng.permutation(np.arange(count) % classes).tolist()


def write_digits(folder: Path, counts: ImageCounts | None, seed: int) -> None:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey values, at 32 px.

    Real data: 800 for training, 200 for validation and the other 797 for the test,
    unless ``counts`` asks for fewer.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    counts = counts or ImageCounts(800, 200, len(order) - 1000)
    splits, start = {}, 0
    for split, count in (
        ('train800', counts.train),
        ('val200', counts.val),
        ('test', counts.test),
    ):
        chosen = order[start : start + count]
        splits[split] = [
            (_enlarge(data.images[index]), int(data.target[index])) for index in chosen
        ]
        start += count
    _write_vtab_splits(folder, splits)


def _enlarge(grey: np.ndarray) -> np.ndarray:
    """(8, 8) values 0-16 to (32, 32, 3) uint8."""
    big = cv2.resize(grey.astype(np.float32), (32, 32), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.clip(big * (255 / 16), 0, 255)[..., None], 3, 2).astype(
        np.uint8
    )


def _write_vtab_splits(
    folder: Path, splits: dict[str, list[tuple[np.ndarray, int]]]
) -> None:
    """The lists and pictures; ``train800val200`` has picture files of its own."""
    both = splits['train800'] + splits['val200']
    for split, items in {**splits, 'train800val200': both}.items():
        lines = []
        for index, (picture, label) in enumerate(items):
            name = f'images/{split}/{index:06d}.jpg'
            save_picture(folder / name, picture)
            lines.append(f'{name} {label}')
        save_lines(folder / f'{split}.txt', lines)


# --- FGVC --------------------------------------------------------------------


@dataclass(frozen=True)
class FGVCTask:
    """An official fine-grained task's shape on disk.

    Args:
        classes: How many.
        below: Folder that the JSON keys are relative to.
        class_id: Zero-based index to the id that the JSON holds.
        key: Zero-based class index and running picture number to the JSON key.
    """

    classes: int
    below: str
    class_id: Callable[[int], int]
    key: Callable[[int, int], str]


FGVC_TASKS = {
    'CUB_200_2011': FGVCTask(
        200,
        'images',
        lambda index: index + 1,
        lambda index, number: f'{index + 1:03d}.Mini/Mini_{number:05d}.jpg',
    ),
    'nabirds': FGVCTask(
        555,
        'images',
        lambda index: 295 + index + index // 7 * 3,  # gaps, as the official ids have
        lambda index, number: (
            f'{295 + index + index // 7 * 3:04d}/{number:08x}000000000000.jpg'
        ),
    ),
    'OxfordFlower': FGVCTask(
        102,
        '.',
        lambda index: index + 1,
        lambda index, number: f'jpg/image_{number + 1:05d}.jpg',
    ),
    'StanfordDogs': FGVCTask(
        120,
        'Images',
        lambda index: index + 1,
        lambda index, number: f'n{index + 2085620:08d}-Mini/n_{number}.jpg',
    ),
    'StanfordCars': FGVCTask(
        196,
        '.',
        lambda index: index + 1,
        lambda index, number: f'car_ims/{number + 1:06d}.jpg',
    ),
}


def write_fgvc(
    folder: Path, task: str, counts: ImageCounts, side: int, seed: int
) -> None:
    """A drawn fine-grained task: figure, character and hue together are the class.

    Every class is in the training split at least once, whatever the counts say, since
    readers check the class count.
    """
    facts = FGVC_TASKS[task]
    rng = np.random.default_rng(seed)
    per_figure = len(DIGITS) * len(SHAPES)
    hues = max(2, -(-facts.classes // per_figure))
    number = 0
    sizes = (
        ('train', max(counts.train, facts.classes)),
        ('val', counts.val),
        ('test', counts.test),
    )
    for split, count in sizes:
        entries = {}
        for index in _labels(rng, count, facts.classes):
            hue, rest = divmod(index, per_figure)
            shape, digit = divmod(rest, len(DIGITS))
            picture = draw_emblem(rng, DIGITS[digit], SHAPES[shape], hue, hues, side)
            key = facts.key(index, number)
            save_picture(folder / facts.below / key, picture)
            entries[key] = facts.class_id(index)
            number += 1
        save_json(folder / f'{split}.json', entries)
