"""Arrays of an npz file, whose headers are held against their members first."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .archives import check_expansion, check_regular
from .loading import BROKEN

HEADER = 10_000
"""Bytes of a header, at most: numpy's own limit."""


class Header(NamedTuple):
    """What an array says of itself.

    Attributes:
        shape: Its sizes.
        dtype: Its numbers.
        packed: Bytes that its member has in the archive.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    packed: int

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_header(archive: zipfile.ZipFile, name: str) -> Header:
    """Shape and type of an array, of which the archive holds every byte.

    Args:
        archive: An npz file.
        name: Name of the array, without ``.npy``.

    Raises:
        KeyError: There is none of this name.
        ValueError: Its header says something else than its member holds.
    """
    entry = archive.getinfo(f'{name}.npy')
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f'{name} has version {version} of the format')
        shape, _, dtype = read(file, max_header_size=HEADER)
        begin = file.tell()
    found = Header(shape, dtype, entry.compress_size)
    if dtype.hasobject:
        raise ValueError(f'{name} holds {dtype} {shape}, pickled Python objects')
    if min(shape, default=0) < 0 or found.bytes != entry.file_size - begin:
        raise ValueError(
            f'{name} says {dtype} {shape}, {found.bytes:,} bytes, and has '
            f'{entry.file_size - begin:,}'
        )
    return found


def read_arrays(
    path: str | os.PathLike, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name.

    Args:
        path: The file.
        names: Those that are wanted; by default all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, damaged, lacks a name, holds Python objects, or
            says more than it has; no memory has been asked for then.
    """
    path = Path(path)
    check_regular(path)
    check_expansion(path)
    try:
        with zipfile.ZipFile(path) as archive:
            there = [n[:-4] for n in archive.namelist() if n.endswith('.npy')]
            wanted = list(dict.fromkeys(there if names is None else names))
            for name in wanted:
                array_header(archive, name)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in wanted}
    except BROKEN as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(f'{path} is damaged or no npz file: {reason}') from None
