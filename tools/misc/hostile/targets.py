"""What the fuzzers call: readers of files and data, each with healthy examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: Its name.
        kind: ``parser`` for texts and data, ``container`` for files of bytes.
        seeds: Healthy inputs as bytes.
        read: Reads a file. May raise PETLError and FileNotFoundError; a result of it
            is a healthy one, whatever it is.
        file: Name of the file in its folder, which may lead through folders below.
        data: Healthy inputs as data, for edits that know their structure.
        call: Takes data; by default they are written to the file as JSON.
        beside: Files that lie in the folder, too, by name.
        seal: Kind of file with lengths and checksums, of ``edits.SEALS``.
        sealed: The healthy inputs of that kind; ``seeds`` where none are given.
        seconds: How long a try may take, where that is more than of others.
    """

    name: str
    kind: str
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    file: str = 'input'
    data: Sequence[Any] = ()
    call: Callable[[Any], Any] | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    seal: str = ''
    sealed: Sequence[bytes] = ()
    seconds: float = 0.0


def all_targets() -> list[Target]:
    """Every reader."""
    from .readers_of_data import parsers
    from .readers_of_files import containers

    return [*parsers(), *containers()]
