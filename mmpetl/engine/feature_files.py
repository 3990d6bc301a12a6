"""Sets of features on disk: pieces that prove themselves, bounded in size.

A set is a folder, ``<root>/<key>/``. A piece holds the rows of some pictures, one
behind the other, as safetensors, and bears the SHA-256 of its bytes in its name:
``000000000-000000064.<digest>.safetensors``. It is whole or absent. So a set that a
kill has left half made is gone on with, and a piece that is damaged is found and made
anew. ``facts.json`` says what the key is over; it is written each time that the set is
used, and so tells when that was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mmpetl.engine.files import AtomicLocalBackend

FACTS = 'facts.json'
_PIECE = re.compile(r'(\d{9})-(\d{9})\.([0-9a-f]{64})\.safetensors')
_KEY = re.compile(r'[0-9a-f]{32}')

Rows = tuple[Tensor, ...]
"""One tensor for each that the trunk gives, (rows, ...) each."""


def key_of(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of what decides the features."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class FeatureSet:
    """The rows of one set that are on disk.

    Attributes:
        folder: Of the set.
        count: Rows of the whole set.
        facts: What its key is over.
        damaged: Names of pieces that were found damaged, and removed.
    """

    folder: Path
    count: int
    facts: Mapping[str, Any]
    damaged: list[str] = field(default_factory=list)
    _pieces: list[tuple[int, Rows]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._pieces = []
        # By row, the piece that has it; two writers may have cut the rows differently.
        self._where = torch.full((self.count,), -1, dtype=torch.int32)

    def _know(self, start: int, rows: Rows) -> None:
        self._where[start : start + len(rows[0])] = len(self._pieces)
        self._pieces.append((start, rows))

    def open(self) -> None:
        """Look at every piece; those that are not what they say are removed."""
        self._forget()
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        for name in names:
            found = _PIECE.fullmatch(name)
            if found is None:
                continue
            start, stop = int(found[1]), int(found[2])
            rows = _read(self.folder / name, stop - start, found[3])
            if rows is None or stop > self.count:
                self.damaged.append(name)
                (self.folder / name).unlink(missing_ok=True)
                continue
            self._know(start, rows)
        if self.folder.is_dir():
            self._touch()

    def missing(self) -> list[int]:
        """Numbers of the rows that are not there."""
        return (self._where < 0).nonzero().flatten().tolist()

    def add(self, start: int, rows: Rows) -> None:
        """Write the rows from ``start`` on, whole or not at all."""
        parts = {str(i): part.contiguous() for i, part in enumerate(rows)}
        data = safetensors.torch.save(parts)
        stop = start + len(rows[0])
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / f'{start:09d}-{stop:09d}.{digest}.safetensors'
        if not (self.folder / FACTS).is_file():
            self._touch()
        AtomicLocalBackend().put(data, path)
        self._know(start, _tensors(path))

    def rows(self, numbers: Sequence[int]) -> Rows:
        """These rows, in this order, as new tensors on the CPU."""
        return tuple(self.part(i, numbers) for i in range(len(self._pieces[0][1])))

    def part(self, index: int, numbers: Sequence[int]) -> Tensor:
        """One tensor of :meth:`rows`."""
        found = []
        for number in numbers:
            start, rows = self._pieces[int(self._where[number])]
            found.append(rows[index][number - start])
        return torch.stack(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are there."""
        every = [part for _, rows in self._pieces for part in rows]
        return sum(part.numel() * part.element_size() for part in every)

    def clear(self) -> None:
        """Remove all rows."""
        self._forget()
        for path in self.folder.glob('*.safetensors'):
            path.unlink(missing_ok=True)

    def _touch(self) -> None:
        text = json.dumps(self.facts, indent=1, sort_keys=True) + '\n'
        AtomicLocalBackend().put_text(text, self.folder / FACTS)


def _read(path: Path, count: int, digest: str) -> Rows | None:
    """Tensors of a piece; None where it is not what its name says."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return None
        rows = _tensors(path)
    except (OSError, SafetensorError):
        return None
    return rows if rows and all(len(part) == count for part in rows) else None


def _tensors(path: Path) -> Rows:
    found = safetensors.torch.load_file(path)  # mapped, and read as rows are asked for
    return tuple(found[str(i)] for i in range(len(found)))


def make_room(root: Path, key: str, wanted: int, limit: int) -> bool:
    """Remove sets, the least recently used first, until one more fits.

    Args:
        root: Folder of the sets; what else lies in it stays.
        key: The set that is to be made, which is not removed.
        wanted: Its bytes.
        limit: Bytes that all sets may take.

    Returns:
        Whether it fits; where it does not fit alone, nothing is removed.
    """
    if wanted > limit:
        return False
    others = [
        (used, size, path) for used, size, path in _sets(root) if path.name != key
    ]
    room = limit - sum(size for _, size, _ in others)
    for _, size, path in sorted(others):
        if room >= wanted:
            break
        shutil.rmtree(path, ignore_errors=True)
        room += size
    return True


def _sets(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When each set was last used, its bytes, its folder."""
    for path in root.iterdir() if root.is_dir() else ():
        facts = path / FACTS
        if not (_KEY.fullmatch(path.name) and facts.is_file()):
            continue
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in path.iterdir())
            yield facts.stat().st_mtime, size, path
