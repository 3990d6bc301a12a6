"""Glyphs as pictures: characters of matplotlib's own fonts, warped onto a canvas.

Everything the mini sets show is built from three steps: :func:`glyph_mask` renders
a character once at 64 px, :func:`place` warps it to where it belongs, and
:func:`paint` blends a colour through the mask. All randomness comes from the
generator a caller passes in, so one seed is one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

LATIN = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ' + 'abdefghijklmnpqrty'
"""Capitals, and the small letters that are more than a smaller capital."""

GREEK = 'αβγδεζηθλμξπρστφχψω' + 'ΓΔΘΛΞΠΣΦΨΩ'
"""Greek letters that no Latin letter already looks like."""

LETTERS = LATIN + GREEK
"""The 73 upstream classes. No digit is among them: digits are kept for downstream."""

DIGITS = '0123456789'

SHAPES = (
    *('disc', 'square', 'triangle', 'diamond', 'cross'),
    *('ring', 'star', 'bar', 'arrow', 'moon'),
)
"""Plain figures, used downstream only, so that they are new to a letters model."""

_GREEK_FONTS = (
    *('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique'),
    *('DejaVuSans-BoldOblique', 'DejaVuSansMono', 'DejaVuSansMono-Bold'),
    *('DejaVuSansMono-Oblique', 'DejaVuSansMono-BoldOblique', 'DejaVuSerif'),
    *('DejaVuSerif-Bold', 'DejaVuSerif-Italic', 'DejaVuSerif-BoldItalic'),
    *('STIXGeneral', 'STIXGeneralBol', 'STIXGeneralItalic', 'STIXGeneralBolIta'),
)
_LATIN_FONTS = ('cmr10', 'cmb10', 'cmss10', 'cmti10', 'cmtt10')

_MASK_PX = 64
"""Side of a glyph's mask; the glyph's longer side fills it but for a 2 px rim."""


def fonts_for(char: str) -> tuple[str, ...]:
    """Names of the bundled fonts that hold ``char``."""
    return _GREEK_FONTS if char in GREEK else _GREEK_FONTS + _LATIN_FONTS


@lru_cache(maxsize=4096)
def glyph_mask(name: str, font: str = 'DejaVuSans-Bold') -> np.ndarray:
    """A character, or one of :data:`SHAPES`, as coverage: (64, 64) uint8, 0-255."""
    mask = _shape_mask(name) if name in SHAPES else _char_mask(name, font)
    mask.setflags(write=False)
    return mask


def _char_mask(char: str, font: str) -> np.ndarray:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / f'{font}.ttf'
    face = ImageFont.truetype(str(path), 200)
    left, top, right, bottom = face.getbbox(char)
    picture = Image.new('L', (right - left, bottom - top))
    ImageDraw.Draw(picture).text((-left, -top), char, fill=255, font=face)
    ink = np.asarray(picture)
    rows, cols = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    inner = _MASK_PX - 4
    scale = inner / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    ink = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
    mask = np.zeros((_MASK_PX, _MASK_PX), np.uint8)
    y, x = (_MASK_PX - height) // 2, (_MASK_PX - width) // 2
    mask[y : y + height, x : x + width] = ink
    return mask


def _shape_mask(name: str) -> np.ndarray:
    big = np.zeros((256, 256), np.uint8)
    centre, reach = (128, 128), 118
    if name == 'disc':
        cv2.circle(big, centre, reach, 255, -1)
    elif name == 'ring':
        cv2.circle(big, centre, reach, 255, -1)
        cv2.circle(big, centre, reach - 50, 0, -1)
    elif name == 'moon':
        cv2.circle(big, centre, reach, 255, -1)
        cv2.circle(big, (178, 108), reach - 22, 0, -1)
    elif name == 'arrow':
        cv2.rectangle(big, (96, 110), (160, 246), 255, -1)
        cv2.fillPoly(big, [np.array([[128, 10], [228, 126], [28, 126]])], 255)
    elif name == 'square':
        cv2.rectangle(big, (28, 28), (228, 228), 255, -1)
    elif name == 'bar':
        cv2.rectangle(big, (10, 92), (246, 164), 255, -1)
    elif name == 'cross':
        cv2.rectangle(big, (92, 10), (164, 246), 255, -1)
        cv2.rectangle(big, (10, 92), (246, 164), 255, -1)
    else:
        corners, inner = {'triangle': (3, 1.0), 'diamond': (4, 1.0), 'star': (5, 0.42)}[
            name
        ]
        radii = np.where(np.arange(2 * corners) % 2, inner, 1.0) * reach
        if name != 'star':  # the odd corners lie on the straight edges
            radii[1::2] = reach * np.cos(np.pi / corners)
        angles = np.arange(2 * corners) * np.pi / corners - np.pi / 2
        points = 128 + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        cv2.fillPoly(big, [points.round().astype(np.int32)], 255)
    return cv2.resize(big, (_MASK_PX, _MASK_PX), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Pose:
    """Where a glyph stands on its canvas.

    Args:
        x: Centre, px from the left.
        y: Centre, px from the top.
        size: Length of the glyph's longer side, px.
        angle: Turn, degrees, counter-clockwise.
        shear: Sideways slant, as a share of the height.
        aspect: Width over height after warping, 1 keeps the glyph's own.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0
    shear: float = 0.0
    aspect: float = 1.0


def place(mask: np.ndarray, pose: Pose, height: int, width: int) -> np.ndarray:
    """Coverage of a glyph on a canvas: (height, width) float32 in [0, 1]."""
    over = 2  # drawn at twice the size and averaged down, so that edges stay smooth
    scale = over * pose.size / (_MASK_PX - 4)
    turn = np.deg2rad(-pose.angle)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    root = np.sqrt(pose.aspect)
    warp = rotate @ np.array([[root, -pose.shear], [0.0, 1 / root]]) * scale
    centre = (_MASK_PX - 1) / 2
    target = np.array([pose.x, pose.y]) * over - 0.5
    matrix = np.hstack([warp, (target - warp @ [centre, centre])[:, None]])
    big = cv2.warpAffine(mask, matrix, (over * width, over * height))
    small = cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Blend ``colour`` (3,) into ``canvas`` (H, W, 3) float32 in place."""
    canvas += cover[..., None] * (np.asarray(colour, np.float32) - canvas)


def luminance(colour: np.ndarray) -> float:
    """Perceived brightness of an RGB colour, 0-255."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def colour_pair(
    rng: np.random.Generator, contrast: float = 110.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ink and ground whose luminance differs by at least ``contrast`` (0-200).

    Random pairs without that floor are often nearly invisible, and a small model
    trained on them does not leave the loss of guessing.
    """
    while True:
        ink, ground = rng.uniform(0, 255, (2, 3))
        if abs(luminance(ink) - luminance(ground)) >= contrast:
            return ink, ground


def to_picture(canvas: np.ndarray) -> np.ndarray:
    """A float canvas as uint8 RGB."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
