"""Lists of files as text: what a line is, what a path, and what a label.

A line ends at a line feed, a carriage return or both, and nowhere else: a path may hold
a form feed, or begin with a blank. A label is of the ten ASCII digits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_utf8

_ENDS = re.compile('\r\n|\n|\r')
_LABEL = re.compile('-?[0-9]{1,18}')


def read_lines(path: Path, missing: str = '') -> list[tuple[int, str]]:
    """Number, from 1, and text of each line of a list that is not blank.

    Args:
        path: UTF-8, with or without a byte order mark.
        missing: What to say where there is no such file.

    Raises:
        PETLError: There is none, it is no file, or no UTF-8.
    """
    try:
        text = read_utf8(path, 'list')
    except FileNotFoundError:
        raise PETLError(missing or f"There is no list '{path}'.") from None
    lines = enumerate(_ENDS.split(text), start=1)
    # Only blanks and tabs behind a line are nobody's; others may end a file's name.
    stripped = ((number, line.rstrip(' \t')) for number, line in lines)
    return [(number, line) for number, line in stripped if line]


def as_label(text: str) -> int | None:
    """A label written in ASCII digits, or None: ``²`` and ``３`` are none."""
    return int(text) if _LABEL.fullmatch(text) else None


def read_labelled(path: Path, missing: str = '') -> list[tuple[int, str, int]]:
    """Line number, path and label of each line ``<path> <label>``.

    Raises:
        PETLError: As of :func:`read_lines`, or a line is not of that form.
    """
    entries = []
    for number, line in read_lines(path, missing):
        name, _, text = line.rpartition(' ')
        label = as_label(text)
        if not name.strip() or label is None:
            raise PETLError(f"{path}:{number}: '{line}' is not '<image path> <label>'.")
        entries.append((number, name, label))
    return entries


def below(folder: Path, name: str) -> Path:
    """The file that a list calls ``name``.

    A blank in front or behind belongs to the name where there is such a file, and is
    an indent where there is none.
    """
    path = folder / name
    trimmed = name.strip(' \t')
    if trimmed != name and not os.path.lexists(path):
        return folder / trimmed
    return path


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, also for names that no file system takes."""
    return os.path.isfile(path)


def repeats(entries: Iterable[tuple[str, object]], where: str) -> list[str]:
    """Lines about files that a list names twice, or under two labels.

    Args:
        entries: File and label, in the order of the list.
        where: The list, for the lines.

    Returns:
        At most two lines, which say how many and name one.
    """
    first: dict[str, object] = {}
    twice: dict[str, None] = {}
    torn: dict[str, tuple[object, object]] = {}
    for path, label in entries:
        if path not in first:
            first[path] = label
        elif first[path] == label:
            twice[path] = None
        else:
            torn.setdefault(path, (first[path], label))
    said = []
    if torn:
        path, (one, other) = next(iter(torn.items()))
        said.append(
            f"{where}: {len(torn)} files bear two labels, '{path}' {one} and {other} "
            'for one; both are trained or scored'
        )
    if twice:
        path = next(iter(twice))
        said.append(
            f"{where}: {len(twice)} files are listed more than once, '{path}' for one; "
            'each mention counts'
        )
    return said
