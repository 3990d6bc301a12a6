"""Sets of several sizes, ImageNet and its shifted test sets, drawn small."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.image_list import imagenet_wnids, read_classes, subset_of
from mmpetl.datasets.subsets import sets_of, write_subsets

from .images import number_picture, vtab_draw
from .storage import save_lines, save_picture

SIDE = 32
"""Side of an ImageNet stand-in, px: room for three figures."""

POOLS = {'cifar100': 'cifar', 'resisc45': 'resisc45', 'clevr_dist': 'clevr_dist'}
"""Folder below ``many_shot`` to the VTAB task whose pictures it shows."""


def write_many_shot(
    folder: Path, name: str, per_class: int, step: int, test: int, seed: int
) -> None:
    """``train.txt``, ``test.txt`` and the lists of every size.

    Args:
        folder: Where.
        name: A key of :data:`POOLS`.
        per_class: Training pictures of each class in the smallest subset, a fifth of
            which validates.
        step: How many more each further size has; the last takes all there are.
        test: Test pictures.
        seed: Of the pictures. The subsets are drawn by seed 0, as the real ones are.
    """
    rng = np.random.default_rng(seed)
    sets = sets_of(name)
    classes = sets[0].num_classes
    draw = vtab_draw(POOLS[name])
    largest = per_class + step * (len(sets) - 1)
    for part, count in (('train', largest * classes), ('test', test)):
        lines = []
        for index, label in enumerate(rng.permutation(np.arange(count) % classes)):
            file = f'images/{part}/{index:06d}.png'
            save_picture(folder / file, draw(rng, int(label)))
            lines.append(f'{file} {label}')
        save_lines(folder / f'{part}.txt', lines)
    sizes = {}
    for index, facts in enumerate(sets):
        each = per_class + step * index
        sizes[facts.id] = (classes * (each - each // 5), classes * (each // 5))
    write_subsets(folder, sets, sizes=sizes)


def write_imagenet(
    folder: Path, per_class: int, val_extra: int, test: int, seed: int
) -> None:
    """``train`` and ``val`` with a folder per class, their lists and the draw.

    Args:
        folder: Where.
        per_class: Training pictures per class, beyond those set apart.
        val_extra: Validation pictures, drawn from the training folders.
        test: Pictures in ``val``, ImageNet's own validation set.
        seed: Of the pictures.
    """
    rng = np.random.default_rng(seed)
    names = list(imagenet_wnids())
    total = per_class * len(names) + val_extra
    for part, count in (('train', total), ('val', test)):
        for index in range(count):
            # Coprime to 1000: a few pictures are of classes far apart.
            label = index % 1000 if part == 'train' else index * 37 % 1000
            name = f'{part}/{names[label]}/{names[label]}_{index}.JPEG'
            _save(folder / name, rng, label)
    for part in ('train', 'val'):
        found = read_classes(folder / part)
        save_lines(
            folder / f'{part}.txt', [f'{part}/{n} {label}' for n, label in found]
        )
    sets = sets_of('imagenet')
    sizes = {sets[0].id: (per_class * len(names), val_extra)}
    write_subsets(folder, sets, sizes=sizes)


def write_shifted(folder: Path, id: str, count: int, seed: int) -> None:
    """A shifted test set: a folder per class, named as the official ones are.

    Args:
        folder: Where.
        id: ``imagenet_v2``, ``imagenet_r``, ``imagenet_sketch`` or ``imagenet_a``.
        count: Pictures; sets of 200 classes hold each class at least once.
        seed: Of the pictures.
    """
    rng = np.random.default_rng(seed)
    wnids = list(imagenet_wnids())
    facts = CATALOG[id]
    present = subset_of(id) if facts.subset else tuple(range(facts.num_classes))
    stride = 1 if facts.subset else 37
    for index in range(max(count, facts.subset or 0)):
        label = present[index * stride % len(present)]
        name = str(label) if id == 'imagenet_v2' else wnids[label]
        tail = {'imagenet_v2': 'jpeg', 'imagenet_sketch': 'JPEG'}.get(id, 'jpg')
        # ImageNet-A's names hold blanks.
        stem = f'0.{index:06d}_a thing' if id == 'imagenet_a' else f'{index:06d}'
        _save(folder / name / f'{stem}.{tail}', rng, label, id == 'imagenet_sketch')


@lru_cache(maxsize=1024)
def _cover(label: int) -> np.ndarray:
    """The three figures of a class, coverage (SIDE, SIDE) in [0, 1]; drawn once."""
    black, white = np.zeros(3), np.full(3, 255.0)
    rng = np.random.default_rng(label)
    return number_picture(rng, label, 3, SIDE, (white, black))[..., 0] / 255.0


def _save(
    path: Path, rng: np.random.Generator, label: int, sketch: bool = False
) -> None:
    ink, ground = rng.uniform(0, 90, 3), rng.uniform(165, 255, 3)
    if sketch:
        ink, ground = np.full(3, 20.0), np.full(3, 245.0)
    cover = _cover(label)[..., None]
    canvas = ground + cover * (ink - ground) + rng.normal(0, 6, (SIDE, SIDE, 3))
    save_picture(path, np.clip(canvas, 0, 255).astype(np.uint8), 85)
