"""What pictures with boxes and pictures with masks have in common.

A picture shows several classes or none. For the division it counts as one of the rarest
class that it shows, so that what is rare is dealt out evenly.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets.own.find import Found, Picture, opened, some, without_copies

LEAST = 5
"""Pictures that are divided, at least, where a part is drawn."""


def opened_scenes(found: Found) -> Found:
    """Pictures with their digests, copies left aside; see `find_pictures`.

    Raises:
        PETLError: There is none, some cannot be decoded, or one lies in two splits.
    """
    if not found.pictures:
        raise PETLError(f"'{found.root}' holds no picture that is annotated.")
    return without_copies(replace(found, pictures=tuple(opened(found))))


def with_classes(
    found: Found,
    names: Iterable[str],
    shows: Mapping[str, frozenset[str]],
    marks: Mapping[str, bytes],
) -> Found:
    """Pictures under the rarest class that each shows, with digests over their marks.

    Args:
        found: The pictures, opened.
        names: Of the classes.
        shows: Classes that a picture shows, by its path.
        marks: What its boxes or its mask are, by its path.

    Raises:
        PETLError: A class is shown in another part and not in training, or there are
            too few pictures to draw a test from.
    """
    names = tuple(names)
    counts = Counter(name for p in found.pictures for name in shows[p.path])
    order = {name: place for place, name in enumerate(names)}

    def marked(picture: Picture) -> Picture:
        there = shows[picture.path]
        label = min(there, key=lambda n: (counts[n], order[n])) if there else ''
        both = picture.digest.encode() + marks[picture.path]
        return replace(picture, label=label, digest=hashlib.sha256(both).hexdigest())

    trained = [p for p in found.pictures if p.part in ('', 'train')]
    new = sorted(set(counts) - {name for p in trained for name in shows[p.path]})
    if new:
        raise PETLError(
            f"'{found.root}' has classes that no training picture shows: {some(new)}; "
            'a class that was never trained cannot be recognised.'
        )
    if len(found.parts) < 2 and len(found.pictures) < LEAST:
        raise PETLError(
            f"'{found.root}' has {len(found.pictures)} annotated pictures, and a test "
            f'is drawn from {LEAST} or more; add pictures, or give splits.'
        )
    return replace(
        found,
        pictures=tuple(map(marked, found.pictures)),
        names=names,
        shows={picture.path: shows[picture.path] for picture in found.pictures},
    )


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as readers see them: turned as the picture's EXIF says, px."""
    with Image.open(path) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5
        return picture.size[::-1] if turned else picture.size
