"""VTAB-1k and FGVC tasks in their official layouts, small, drawn or real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupt

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
    facts.folder: facts.num_classes
    for facts in CATALOG.values()
    if facts.benchmark == 'vtab'
}


def _blank(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    ink, ground = colour_pair(rng)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = ground
    return canvas, ink


def number_picture(
    rng: np.random.Generator,
    label: int,
    width: int,
    side: int = 64,
    colours: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """The label itself, written with ``width`` figures.

    Args:
        rng: Source of all randomness.
        label: What is written.
        width: How many figures, with leading zeros.
        side: Of the picture, px.
        colours: Ink and ground; drawn if not given.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    if colours is None:
        canvas, ink = _blank(rng, side)
    else:
        ink, ground = colours
        canvas = np.empty((side, side, 3), np.float32)
        canvas[:] = ground
    fonts = fonts_for('0')
    font = fonts[rng.integers(len(fonts))]
    step = side / (width + 0.4)
    size = min(0.75 * side, 1.2 * step) * rng.uniform(0.85, 1.0)
    x, y = side / 2 - step * (width - 1) / 2, side * rng.uniform(0.42, 0.58)
    shear = rng.uniform(-0.2, 0.2)
    for index, char in enumerate(f'{label:0{width}d}'):
        pose = Pose(x + step * index, y, size, rng.uniform(-10, 10), shear)
        paint(canvas, place(glyph_mask(char, font), pose, side, side), ink)
    if colours is None:
        canvas += rng.normal(0, 4, canvas.shape)
    return to_picture(canvas)


def _number(classes: int) -> Draw:
    width = len(str(classes - 1))
    return lambda rng, label: number_picture(rng, label, width)


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


def vtab_draw(task: str) -> Draw:
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
    rng = np.random.default_rng(seed)
    write_vtab_splits(folder, _drawn(rng, vtab_draw(task), VTAB_CLASSES[task], counts))


Splits = dict[str, list[tuple[np.ndarray, int]]]
"""Split to pictures with labels."""


def _drawn(
    rng: np.random.Generator, draw: Draw, classes: int, counts: ImageCounts
) -> Splits:
    splits = {}
    for split, count in (
        ('train800', counts.train),
        ('val200', counts.val),
        ('test', counts.test),
    ):
        labels = _labels(rng, count, classes)
        splits[split] = [(draw(rng, label), label) for label in labels]
    return splits


def _labels(rng: np.random.Generator, count: int, classes: int) -> list[int]:
    """Classes as even as the count allows, in random order."""
    return rng.permutation(np.arange(count) % classes).tolist()


def digits(counts: ImageCounts | None, seed: int) -> Splits:
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
    return splits


def _enlarge(grey: np.ndarray) -> np.ndarray:
    """(8, 8) values 0-16 to (32, 32, 3) uint8."""
    big = cv2.resize(grey.astype(np.float32), (32, 32), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.clip(big * (255 / 16), 0, 255)[..., None], 3, 2).astype(
        np.uint8
    )


def counting(counts: ImageCounts | None, seed: int) -> Splits:
    """One to six figures at 32 px; the class is how many: a structured task."""
    counts = counts or ImageCounts(800, 200, 800)
    rng = np.random.default_rng(seed)
    return _drawn(rng, _draw_few, NUM_COUNTS, counts)


def _draw_few(rng: np.random.Generator, label: int) -> np.ndarray:
    canvas, ink = _blank(rng, 32)
    for cell in rng.permutation(9)[: label + 1]:
        x, y = (np.array([cell % 3, cell // 3]) + 0.5) * (32 / 3)
        pose = Pose(
            x + rng.uniform(-1, 1),
            y + rng.uniform(-1, 1),
            rng.uniform(7, 9.5),
            rng.uniform(0, 360),
        )
        mask = glyph_mask(SHAPES[rng.integers(len(SHAPES))])
        paint(canvas, place(mask, pose, 32, 32), ink)
    canvas += rng.normal(0, 4, canvas.shape)
    return to_picture(canvas)


def textures(counts: ImageCounts | None, seed: int) -> Splits:
    """Eight patterns at 32 px in any two colours: a specialised task."""
    counts = counts or ImageCounts(800, 200, 800)
    rng = np.random.default_rng(seed)
    return _drawn(rng, _draw_texture, len(TEXTURES), counts)


NUM_COUNTS = 6

TEXTURES = (
    *('flat stripes', 'upright stripes', 'slanting stripes', 'checks'),
    *('dots', 'rings', 'fine grain', 'blobs'),
)


def _draw_texture(rng: np.random.Generator, label: int) -> np.ndarray:
    """A pattern of random scale, phase and colours, under noise."""
    side = 32
    ink, ground = colour_pair(rng)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    x, y = x + rng.uniform(0, side), y + rng.uniform(0, side)
    rate = 2 * np.pi / rng.uniform(5, 10)
    name = TEXTURES[label]
    if name == 'flat stripes':
        wave = np.sin(rate * y)
    elif name == 'upright stripes':
        wave = np.sin(rate * x)
    elif name == 'slanting stripes':
        wave = np.sin(rate * (x + rng.choice((-1, 1)) * y) / np.sqrt(2))
    elif name == 'checks':
        wave = np.sin(rate * x) * np.sin(rate * y)
    elif name == 'dots':
        wave = np.cos(rate * x) + np.cos(rate * y) - 0.9
    elif name == 'rings':
        middle = rng.uniform(0.3, 0.7, 2) * side
        rows, cols = np.mgrid[:side, :side]
        wave = np.sin(rate * np.hypot(rows - middle[0], cols - middle[1]))
    else:
        noise = rng.normal(0, 1, (side, side)).astype(np.float32)
        spread = 0.5 if name == 'fine grain' else rng.uniform(1.8, 2.6)
        wave = cv2.GaussianBlur(noise, (0, 0), spread)
        wave /= wave.std()
    cover = 1 / (1 + np.exp(-rng.uniform(2, 6) * wave))
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = ground
    paint(canvas, cover, ink)
    canvas += rng.normal(0, 12, canvas.shape)
    return to_picture(canvas)


OWN_TASKS: dict[str, Callable[[ImageCounts | None, int], Splits]] = {
    'digits': digits,
    'counting': counting,
    'textures': textures,
}
"""Tasks of 32 px in the layout of VTAB-1k that are none of its nineteen."""


def write_corrupted(
    folder: Path, task: str, counts: ImageCounts | None, keep: int, seed: int
) -> None:
    """The first ``keep`` test pictures of a task, corrupted in every way and severity.

    ``<kind>/<severity>.txt`` lists ``images/<kind>/<severity>/000000.jpg <label>``;
    ``none/0.txt`` lists the same pictures as they are.

    Args:
        folder: Where.
        task: A key of :data:`OWN_TASKS`.
        counts: Those of the task.
        keep: Pictures in each list.
        seed: That of the task, so that the pictures are those of its test split.
    """
    test = OWN_TASKS[task](counts, seed)['test'][:keep]
    cells = [('none', 0), *((k, s) for k in CORRUPTIONS for s in SEVERITIES)]
    for kind, severity in cells:
        lines = []
        for index, (picture, label) in enumerate(test):
            if severity:
                picture = corrupt(picture, kind, severity, seed=index)
            name = f'images/{kind}/{severity}/{index:06d}.jpg'
            save_picture(folder / name, picture)
            lines.append(f'{name} {label}')
        save_lines(folder / kind / f'{severity}.txt', lines)


def write_vtab_splits(folder: Path, splits: Splits) -> None:
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
