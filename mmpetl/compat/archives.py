"""Bounds of a file that holds tensors, checked before any memory is asked for."""

from __future__ import annotations

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

GIB = 1 << 30

DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    LookupError,
)
"""What ``zipfile`` answers a cut, garbled or locked archive with; a name that is no
UTF-8 is a ValueError, a method that it does not know a RuntimeError."""
CALLS = (b'cbuiltins\nbytearray\n', b'c__builtin__\nbytearray\n')
EXPANSION = 1
"""GiB by which an archive may grow when it is unpacked; ``MMPETL_MAX_EXPANSION_GIB``
raises it."""


def expansion_limit() -> int:
    """Bytes by which an archive may grow when it is unpacked."""
    given = os.environ.get('MMPETL_MAX_EXPANSION_GIB', str(EXPANSION))
    if not given.isdecimal():
        raise ValueError(f'MMPETL_MAX_EXPANSION_GIB is a number of GiB, got {given!r}')
    return int(given) * GIB


def check_regular(path: Path) -> None:
    """Raise ValueError for a FIFO or a device, which reading could wait for."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f'{path} is a device, FIFO or socket, and no file')


def check_expansion(path: Path) -> None:
    """Raise ValueError where a zip archive says that it unpacks to far more bytes.

    Torch stores tensors as they are, and numpy packs them: what grows by gigabytes is
    made to. What is no zip archive is left for its reader to say.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED_ZIP:
        return
    grows = sum(member.file_size for member in members) - path.stat().st_size
    if grows > expansion_limit():
        raise ValueError(
            f'{path} unpacks to {grows / GIB:.1f} GiB more than it is long; where it '
            'is meant to, MMPETL_MAX_EXPANSION_GIB raises the limit'
        )


def check_calls(path: Path) -> None:
    """Raise ValueError for a torch file that asks for a bytearray of any length.

    It is the one thing that ``weights_only`` calls and that fills memory by a bare
    number, and no weights need it.
    """
    found = False
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith('.pkl'):
                    found |= _calls(archive, name)
    except DAMAGED_ZIP:
        # Torch's own reader may see an archive where this one sees none.
        found = _holds(path)
    if found:
        raise ValueError(f'{path} holds a bytearray, which no weights need')


def _calls(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        data = archive.read(name)
    except DAMAGED_ZIP:
        return False  # its reader says that it is damaged
    return any(call in data for call in CALLS)


def check_sums(path: Path) -> None:
    """Raise ValueError where a member of a zip archive is not what was written.

    Torch does not look at the checksums that it writes, so that a flipped bit would be
    a weight. A checksum of 0 is none: ``torch.serialization.set_crc32_options``.
    """
    error = fault_of_members(path)
    # Of what else is wrong, or is no archive at all, its reader knows more.
    if isinstance(error, zipfile.BadZipFile | zlib.error) and is_zip(path):
        raise ValueError(f'{path} is damaged: {error}')


def is_zip(path: Path) -> bool:
    """Whether a file ends as zip archives do, read or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True  # it claims parts on other disks


def fault_of_members(path: Path) -> Exception | None:
    """What reading every member of a zip archive is answered with, None if all is well.

    Those whose checksum is 0, as of archives without, are not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC:
                    with archive.open(member) as file:
                        while file.read(1 << 22):
                            pass
    except DAMAGED_ZIP as error:
        return error
    return None


def _holds(path: Path) -> bool:
    rest = b''
    with path.open('rb') as file:
        while piece := file.read(1 << 24):
            window = rest + piece
            if any(call in window for call in CALLS):
                return True
            rest = window[-64:]
    return False


def check_claims(path: Path, content: Any) -> None:
    """Raise ValueError where tensors claim far more values than their file holds.

    A stride of zero lets a tensor of a few bytes stand for terabytes, which the first
    copy would ask memory for.
    """
    bound = 16 * path.stat().st_size + (1 << 24)
    for name, tensor in tensors_in(content):
        claimed = tensor.numel() * tensor.element_size()
        if tensor.device.type != 'meta' and claimed > bound:
            raise ValueError(
                f'{path}: {name} claims {claimed / GIB:.1f} GiB, more than the file '
                'could hold'
            )


def tensors_in(content: Any, depth: int = 64) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in mappings and lists, with its place; each container once.

    Raises:
        ValueError: They lie deeper in one another than ``depth``, or hold themselves.
    """
    level, seen = [('', content)], set()
    for _ in range(depth):
        following = []
        for place, node in level:
            if isinstance(node, Tensor):
                yield place, node
            elif isinstance(node, Mapping | list | tuple) and id(node) not in seen:
                seen.add(id(node))
                pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
                following += [
                    (f'{place}.{key}'.lstrip('.'), child)
                    for key, child in pairs
                    if isinstance(child, Tensor | Mapping | list | tuple)
                ]
        level = following
        if not level:
            return
    raise ValueError(f'the content is nested deeper than {depth} levels')
