"""Scenes: glyphs standing on grounds, with masks, boxes and a map of the ground."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .glyphs import (
    Pose,
    fonts_for,
    glyph_mask,
    luminance,
    paint,
    place,
    to_picture,
)

GROUNDS = ('wall', 'sky', 'floor', 'grass')
"""What stands behind and below the glyphs: two of them share a scene."""

SIZES = ((96, 128), (128, 128), (128, 160), (144, 112))
"""Heights and widths that scenes come in, px."""


@dataclass(frozen=True)
class Thing:
    """A glyph in a scene.

    Args:
        kind: Index into the vocabulary the scene was drawn from.
        mask: Visible pixels, (H, W) bool.
        box: (left, top, right, bottom), px, right and bottom exclusive.
    """

    kind: int
    mask: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture, what stands in it, and the ground under each pixel.

    Args:
        picture: (H, W, 3) uint8 RGB.
        ground: Index into :data:`GROUNDS`, (H, W) uint8.
        things: From back to front; no two overlap by much.
    """

    picture: np.ndarray
    ground: np.ndarray
    things: tuple[Thing, ...]


def draw_scene(rng: np.random.Generator, vocabulary: tuple[str, ...]) -> Scene:
    """A scene of one to four glyphs of ``vocabulary``."""
    height, width = SIZES[rng.integers(len(SIZES))]
    canvas, ground = _draw_ground(rng, height, width)
    things: list[Thing] = []
    wanted = int(rng.integers(1, 5))
    for _ in range(4 * wanted):
        if len(things) == wanted:
            break
        kind = int(rng.integers(len(vocabulary)))
        cover = _cover(rng, vocabulary[kind], height, width)
        mask = cover > 0.5
        if mask.sum() < 40 or any(_overlap(mask, other.mask) for other in things):
            continue
        paint(canvas, cover, _ink(rng, canvas[mask].mean(0)))
        things.append(Thing(kind, mask, _box(mask)))
    canvas += rng.normal(0, rng.uniform(1, 5), canvas.shape)
    return Scene(to_picture(canvas), ground, tuple(things))


def _cover(rng: np.random.Generator, glyph: str, height: int, width: int) -> np.ndarray:
    fonts = fonts_for(glyph)
    mask = glyph_mask(glyph, fonts[rng.integers(len(fonts))])
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    size = min(height, width) * rng.uniform(0.25, 0.55)
    margin = 0.45 * size
    pose = Pose(
        x=rng.uniform(margin, width - margin),
        y=rng.uniform(margin, height - margin),
        size=size,
        angle=rng.uniform(-20, 20),
        shear=rng.uniform(-0.2, 0.2),
        aspect=np.exp(rng.uniform(-0.2, 0.2)),
    )
    return place(mask, pose, height, width)


def _ink(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A colour that stands out from the mean colour behind the glyph."""
    while True:
        ink = rng.uniform(0, 255, 3)
        if abs(luminance(ink) - luminance(behind)) > 75:
            return ink


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, cols = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def _overlap(mask: np.ndarray, other: np.ndarray) -> bool:
    left, top, right, bottom = _box(mask)
    left2, top2, right2, bottom2 = _box(other)
    return (
        min(right, right2) - max(left, left2) > 2
        and min(bottom, bottom2) - max(top, top2) > 2
    )


def _draw_ground(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lower ground begins at a slanted edge across the picture."""
    behind, below = int(rng.integers(2)), int(rng.integers(2, 4))
    edge = height * rng.uniform(0.35, 0.75)
    slant = rng.uniform(-0.15, 0.15) * np.linspace(-width / 2, width / 2, width)
    lower = np.arange(height)[:, None] > edge + slant
    ground = np.where(lower, below, behind).astype(np.uint8)
    canvas = np.empty((height, width, 3), np.float32)
    for index in (behind, below):
        texture = _texture(rng, GROUNDS[index], height, width)
        canvas[ground == index] = texture[ground == index]
    return canvas, ground


def _texture(
    rng: np.random.Generator, name: str, height: int, width: int
) -> np.ndarray:
    """Each ground has a hue of its own and a pattern of its own."""
    base = {
        'wall': (170, 100, 80),
        'sky': (120, 165, 220),
        'floor': (140, 130, 115),
        'grass': (75, 135, 60),
    }[name]
    colour = np.array(base) + rng.uniform(-30, 30, 3)
    sheet = np.empty((height, width, 3), np.float32)
    sheet[:] = colour
    if name == 'sky':
        sheet += np.linspace(-25, 25, height, dtype=np.float32)[:, None, None]
    elif name == 'grass':
        noise = rng.normal(0, 28, (height // 2 + 1, width // 2 + 1)).astype(np.float32)
        sheet += cv2.resize(noise, (width, height))[..., None]
    else:
        step = int(rng.integers(10, 17))
        dark = (colour - 30).tolist()
        for row, y in enumerate(range(0, height, step)):
            cv2.line(sheet, (0, y), (width, y), dark, 1)
            if name == 'wall':
                for x in range(row % 2 * step, width, 2 * step):
                    cv2.line(sheet, (x, y), (x, y + step), dark, 1)
    return sheet


def draw_emblem(
    rng: np.random.Generator, glyph: str, shape: str, hue: int, hues: int, side: int
) -> np.ndarray:
    """A character on a figure of a given hue: fine-grained classes differ in one part.

    Args:
        rng: Source of all randomness.
        glyph: Character in the middle.
        shape: Figure around it, one of ``SHAPES``.
        hue: Index of the figure's hue, below ``hues``.
        hues: How many hues the circle of colours is divided into.
        side: The shorter side of the picture, px; the longer is up to a third longer.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    longer = side * 4 // 3
    height, width = ((side, side), (side, longer), (longer, side))[rng.integers(3)]
    ground = rng.uniform(0, 255, 3)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = 0.5 * ground + 0.25 * 255
    x, y = np.array([width, height]) / 2 + side * rng.uniform(-0.08, 0.08, 2)
    angle = rng.uniform(-12, 12)
    frame = Pose(x, y, side * rng.uniform(0.8, 0.95), angle)
    degrees = 180 * (hue + rng.uniform(-0.2, 0.2)) / hues  # OpenCV's hue ends at 180
    tint = np.array([[[degrees % 180, 200, 190]]], np.uint8)
    colour = cv2.cvtColor(tint, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
    paint(canvas, place(glyph_mask(shape), frame, height, width), colour)
    fonts = fonts_for(glyph)
    mask = glyph_mask(glyph, fonts[rng.integers(len(fonts))])
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    badge = Pose(x, y, side * rng.uniform(0.4, 0.5), angle)
    shade = 250 if luminance(colour) < 128 else 5
    paint(canvas, place(mask, badge, height, width), np.full(3, shade))
    canvas += rng.normal(0, 4, canvas.shape)
    return to_picture(canvas)
