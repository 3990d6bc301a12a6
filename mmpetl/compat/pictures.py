"""Grey pictures of 16 bits keep their shades in 8.

Pillow cuts what lies above 255 when it makes RGB of a 16-bit grey picture, so that most
of it comes out white. OpenCV takes the upper byte, and so does this.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image

DEEP = ('I;16', 'I;16L', 'I;16B', 'I;16N')
"""Pillow's modes of 16-bit grey pictures."""


def eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits a channel: of 16 bits the upper eight, others as they are.

    Raises:
        ValueError: Values of 32 bits, whose range nothing tells.
    """
    if picture.mode not in (*DEEP, 'I', 'F'):
        return picture
    values = np.asarray(picture)
    # Older Pillow opens a 16-bit PNG in mode I.
    if picture.mode in DEEP or (picture.mode == 'I' and picture.format == 'PNG'):
        values = values.astype(np.int32) >> 8
    elif picture.mode == 'F' or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f'its values have 32 bits (mode {picture.mode}), whose range is unknown; '
            'save it with 8 or 16 bits'
        )
    scaled = Image.fromarray(values.astype(np.uint8))
    if 'exif' in picture.info:
        scaled.info['exif'] = picture.info['exif']  # which way is up
    return scaled


def correct_mmcv(module: ModuleType) -> None:
    """Let ``mmcv.image.io`` scale deep pictures that it reads with Pillow."""
    read = module._pillow2array
    if getattr(read, 'scales', False):
        return

    def scaled(
        img: Image.Image, flag: str = 'color', channel_order: str = 'bgr'
    ) -> np.ndarray:
        return read(
            img if flag == 'unchanged' else eight_bits(img), flag, channel_order
        )

    scaled.scales = True
    module._pillow2array = scaled
