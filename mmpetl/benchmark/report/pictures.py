"""Pictures for the report: ``<out>/pictures/<name>.png`` with ``<name>.json``.

Those that the analyses left in ``<out>/analysis`` count too. The JSON says
``title``, ``caption``, ``alt`` and ``section``; pictures of one section stand together.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_bytes, read_json

FOLDERS = ('pictures', 'analysis')
PNG = b'\x89PNG\r\n\x1a\n'
KEYS = ('title', 'caption', 'alt', 'section')


@dataclass(frozen=True)
class Picture:
    """A picture and its words.

    Attributes:
        name: Its file's name without suffix.
        title: A heading.
        caption: What it shows and how to read it.
        alt: What one would say to somebody who cannot see it.
        section: Heading of the pictures that it stands among.
        uri: The picture as a ``data:`` address.
        width: In pixels.
        height: In pixels.
    """

    name: str
    title: str
    caption: str
    alt: str
    section: str
    uri: str
    width: int
    height: int


def read_pictures(out: str | os.PathLike) -> list[Picture]:
    """Pictures of a benchmark folder and of folders in there, by section and name.

    Raises:
        PETLError: A picture has no JSON, or a file is not what its name says.
    """
    paths = [path for name in FOLDERS for path in Path(out, name).rglob('*.png')]
    found = [_read(path) for path in sorted(paths)]
    return sorted(found, key=lambda picture: (picture.section, picture.name))


def _read(path: Path) -> Picture:
    words = path.with_suffix('.json')
    if not words.is_file():
        raise PETLError(
            f'{path} has no {words.name} beside it; the report needs one with '
            f'{", ".join(KEYS)}'
        )
    facts = read_json(words, dict[str, Any], 'words of a picture')
    missing = [key for key in KEYS if not isinstance(facts.get(key), str)]
    if missing:
        raise PETLError(f'{words} says no {", ".join(missing)}')
    data = read_bytes(path, 'picture')
    if not data.startswith(PNG) or len(data) < 24:
        raise PETLError(f'{path} is not a PNG picture')
    # Width and height open the first chunk; with them the page does not jump.
    width, height = (int.from_bytes(data[i : i + 4], 'big') for i in (16, 20))
    uri = f'data:image/png;base64,{base64.b64encode(data).decode()}'
    return Picture(
        path.stem, *(facts[key] for key in KEYS), uri=uri, width=width, height=height
    )
