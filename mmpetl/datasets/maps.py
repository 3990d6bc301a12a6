"""What makes the file of a label map unusable, whoever reads it.

A map holds the index of a class in each pixel. Readers cast what they find to 8 bits
and pair it with its picture unasked: colours, larger numbers or another size go
through, and the labels are wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_INDEX_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
"""Pillow's modes of one whole number a pixel; of a palette, the number is the index."""

_MOST = 255
"""The largest number that readers keep."""


def fault_of_form(picture: Image.Image) -> str | None:
    """Why an opened picture is no label map, whatever its labels, or None."""
    if picture.mode not in _INDEX_MODES:
        return f'holds colours (mode {picture.mode}), not labels'
    if picture.format == 'JPEG':
        return 'is a JPEG, whose loss changes labels'
    return None


def fault_of_stored(path: Path) -> str | None:
    """What a reader that casts to 8 bits does not see, or None.

    Only the head of the file is read, but for maps of more than 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            form = fault_of_form(picture)
            if form or not picture.mode.startswith('I'):
                return form
            labels = np.asarray(picture)
    except UnidentifiedImageError:
        return None  # a format of the reader's own
    except Exception as error:  # decoders raise whatever they like
        lines = str(error).splitlines() or ['']
        return f'cannot be decoded ({type(error).__name__}: {lines[0]})'
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most > _MOST:
        odd = most if most > _MOST else least
        return f'holds label {odd}, of which readers keep 8 bits: {odd % (_MOST + 1)}'
    return None


def sizes(map_size: tuple[int, int], picture_size: tuple[int, int]) -> str | None:
    """A line where a map is not of its picture's size; both (width, height), px."""
    if map_size == picture_size:
        return None
    (width, height), (wanted_width, wanted_height) = map_size, picture_size
    return f'is {width} x {height}, its picture {wanted_width} x {wanted_height}'
