"""The upstream picture task: one letter, 32 px, 73 classes, no digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .glyphs import (
    LETTERS,
    Pose,
    colour_pair,
    fonts_for,
    glyph_mask,
    paint,
    place,
    to_picture,
)
from .storage import save_lines, save_picture


def draw_letter(
    rng: np.random.Generator, label: int, side: int = 32, *, clutter: bool = False
) -> np.ndarray:
    """One letter of class ``label`` in a random font, pose and colour pair.

    Strokes are thickened, thinned or blurred at times: what is to be learned is a
    letter's form, and handwriting downstream comes in all of these.

    Args:
        rng: Source of all randomness.
        label: Index into ``LETTERS``.
        side: Of the picture, px.
        clutter: Smaller, farther from the middle, before faint lines and discs: for
            a backbone that is to find things in scenes.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    char = LETTERS[label]
    fonts = fonts_for(char)
    mask = glyph_mask(char, fonts[rng.integers(len(fonts))])
    stroke = rng.uniform()
    if stroke < 0.2:
        mask = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    elif stroke < 0.3:
        mask = cv2.erode(mask, np.ones((3, 3), np.uint8))
    wander, smallest = (0.14, 0.4) if clutter else (0.08, 0.55)
    pose = Pose(
        x=side * rng.uniform(0.5 - wander, 0.5 + wander),
        y=side * rng.uniform(0.5 - wander, 0.5 + wander),
        size=side * rng.uniform(smallest, 0.95),
        angle=rng.uniform(-25, 25),
        shear=rng.uniform(-0.3, 0.3),
        aspect=np.exp(rng.uniform(-0.3, 0.3)),
    )
    cover = place(mask, pose, side, side)
    if rng.uniform() < 0.4:
        cover = cv2.GaussianBlur(cover, (0, 0), side / 32 * rng.uniform(0.4, 1.3))
    ink, ground = colour_pair(rng)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = ground
    if clutter:
        _scribble(rng, canvas)
    paint(canvas, cover, ink)
    canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape)
    return to_picture(canvas)


def _scribble(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A slope of brightness, and a few lines and discs close to the ground's colour."""
    side = len(canvas)
    slope = np.linspace(-1, 1, side, dtype=np.float32) * rng.uniform(-25, 25)
    canvas += (slope if rng.uniform() < 0.5 else slope[:, None])[..., None]
    for _ in range(rng.integers(0, 6)):
        colour = canvas[0, 0] + rng.uniform(-35, 35, 3)
        start, end = rng.integers(0, side, (2, 2)).tolist()
        if rng.uniform() < 0.6:
            cv2.line(canvas, start, end, colour.tolist(), int(rng.integers(1, 4)))
        else:
            cv2.circle(
                canvas, start, int(rng.integers(2, side // 5)), colour.tolist(), -1
            )


def letters(
    seed: int, count: int, side: int = 32, *, clutter: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
    """``count`` pictures with labels that walk through the classes in turn."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        label = index % len(LETTERS)
        yield draw_letter(rng, label, side, clutter=clutter), label


def write_letters(
    folder: Path, train: int, val: int, side: int, clutter: bool, suffix: str, seed: int
) -> None:
    """``train.txt`` and ``val.txt`` with lines ``path label``, and their pictures."""
    for offset, (split, count) in enumerate((('train', train), ('val', val))):
        lines = []
        drawn = letters(seed + offset, count, side, clutter=clutter)
        for index, (picture, label) in enumerate(drawn):
            name = f'images/{split}/{index:06d}{suffix}'
            save_picture(folder / name, picture)
            lines.append(f'{name} {label}')
        save_lines(folder / f'{split}.txt', lines)
