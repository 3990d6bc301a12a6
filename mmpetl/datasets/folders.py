"""Where a data set lies: releases spell its folders differently."""

from __future__ import annotations

import re
from pathlib import Path

from mmengine.logging import print_log

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.checks import missing_folder
from mmpetl.datasets.lines import is_file

_PICTURES = ('images', 'Images', 'jpg', '')
"""Folders of pictures that releases have, besides the official one."""


def spelling(name: str) -> str:
    """What a folder's name is compared by: small letters and digits."""
    return re.sub('[^a-z0-9]', '', name.lower())


def known_names(facts: DatasetFacts) -> tuple[str, ...]:
    """Names that a set's folder may bear, the official one first."""
    return tuple(
        dict.fromkeys((facts.folder, facts.id, *facts.aliases, *facts.folders))
    )


def is_called(facts: DatasetFacts, name: str) -> bool:
    """Whether ``name`` is one of the set's, in whatever spelling."""
    return spelling(name) in set(map(spelling, known_names(facts)))


def find_folder(base: Path, facts: DatasetFacts) -> Path | None:
    """The set's folder below ``base``: the official one, else one of a known name.

    Capitals, blanks, hyphens and underscores make no difference.

    Raises:
        PETLError: Several folders bear such names, none of them the official one.
    """
    if (base / facts.folder).is_dir():
        return base / facts.folder
    below = sorted(base.iterdir()) if base.is_dir() else []
    found = [p for p in below if is_called(facts, p.name) and p.is_dir()]
    if len(found) > 1:
        names = ', '.join(path.name for path in found)
        raise PETLError(
            f"'{base}' holds several folders of {facts.id} ({names}): rename the one "
            f'that is meant to {facts.folder}.'
        )
    return found[0] if found else None


def folder_or_error(base: Path, facts: DatasetFacts, what: str) -> Path:
    """As :func:`find_folder`, and says so where it is not the official one.

    Raises:
        PETLError: There is none; the names that were looked for are listed.
    """
    found = find_folder(base, facts)
    if found is None:
        official, *others = known_names(facts)
        raise missing_folder(base / official, what, others)
    if found.name != facts.folder:
        print_log(f"{what} is read from '{found}'", logger='current')
    return found


def pictures_below(folder: Path, own: str, key: str) -> Path:
    """Where a set's pictures lie: there where the first that is listed is.

    Args:
        folder: The set's.
        own: The official folder of pictures below it.
        key: A listed picture.
    """
    for name in dict.fromkeys((own, *_PICTURES)):
        if is_file(folder / name / key):
            return folder / name
    return folder / own
