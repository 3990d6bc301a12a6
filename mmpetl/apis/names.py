"""What the name of a run or a delta stands for: a file, the zoo, or the hub.

=========================  ==========================================================
written                    read
=========================  ==========================================================
a path, ``file://PATH``    that folder or file
``zoo/NAME``               that delta of the zoo; ``zoo://NAME`` where there is a path
                           ``zoo/NAME`` too
``hub://USER/NAME``        the delta of that repository
=========================  ==========================================================

All that reads a run or a delta by its name asks here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mmpetl.apis.repositories import published_file
from mmpetl.apis.zoo import PREFIX, Entry, Zoo, bring_delta, read_zoo
from mmpetl.core import PETLError
from mmpetl.models.weights.address import SCHEME


def locate(name: str | os.PathLike) -> Path:
    """The folder or file that a name stands for, fetched if need be.

    Raises:
        FileNotFoundError: The folder that stands for the hub has no such repository.
        PETLError: The zoo or the hub has no such delta, or it cannot be fetched.
    """
    found = find_in_zoo(name)
    if found is not None:
        return bring_delta(*found)
    text = os.fspath(name)
    scheme, rest = _scheme_of(text)
    if scheme == 'hub':
        return published_file(rest)
    if scheme == 'file':
        return Path(unquote(urlsplit(text).path))
    if scheme:
        raise PETLError(
            f'{text}: runs and deltas are read by a path, file://, zoo:// and hub://; '
            'fetch the files and name their path'
        )
    return Path(text)


def find_in_zoo(name: str | os.PathLike) -> tuple[Zoo, Entry] | None:
    """The zoo and the entry of a name; None of a name of something else.

    Raises:
        PETLError: It is of the zoo and there is no such entry, or a path has this name
            as well.
    """
    text = os.fspath(name)
    scheme, rest = _scheme_of(text)
    if scheme == 'zoo':
        zoo = read_zoo()
        return zoo, zoo.find(rest)
    if not text.startswith(PREFIX):
        return None
    zoo, there = read_zoo(), os.path.lexists(text)
    if there and text.removeprefix(PREFIX) not in zoo.entries:
        return None
    if there:
        raise PETLError(
            f'{text} is a path here and a delta of the zoo; write ./{text} or '
            f'zoo://{text.removeprefix(PREFIX)}'
        )
    return zoo, zoo.find(text)


def is_named(name: Any) -> bool:
    """Whether this is a name of the zoo or of the hub."""
    if not isinstance(name, str | os.PathLike):
        return False
    text = os.fspath(name)
    is_short = text.startswith(PREFIX) and not os.path.lexists(text)
    return is_short or _scheme_of(text)[0] in ('zoo', 'hub')


def _scheme_of(text: str) -> tuple[str, str]:
    match = SCHEME.match(text)
    return (match[1].lower(), text[match.end() :]) if match else ('', text)
