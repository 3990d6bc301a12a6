"""Whether a picture's file is whole, from its bytes, before anybody trusts its pixels.

Decoders make a picture of half a file, or of one with bytes changed in the middle, and
say nothing that Python hears. A PNG bears checksums. A JPEG bears none: what there is
are the complaints that its decoder writes to the error stream, and they are listened to
here. A change after which the codes happen to fit again leaves none, and no tool sees
it. What a JPEG lacks at its end may be no more than the mark that says so.
"""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np

JPEG, PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
END = b'\xff\xd9'
"""The mark at the end of a JPEG."""

MAX_BYTES = 256 << 20
"""Bytes of a file of one picture, at most."""
MAX_PIXELS = 178_956_970
"""Pixels of a picture, at most: half a gigabyte as colours; Pillow's own limit."""

_TAKEN = 4
"""So many bytes between the data and the mark behind them: some cameras write them."""
_EXTRA = re.compile(r'Corrupt JPEG data: (\d+) extraneous bytes before marker')
_LISTENING = threading.Lock()


def fault_of_picture(data: bytes) -> str | None:
    """Why a JPEG, PNG or WebP is not what it was, or None; other formats pass.

    Args:
        data: The file's.
    """
    if data.startswith(JPEG):
        return fault_of_size(data) or _fault_of_jpeg(data)
    if data.startswith(PNG):
        return fault_of_size(data) or _fault_of_png(data)
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        stated = int.from_bytes(data[4:8], 'little') + 8
        if len(data) < stated:
            return f'is cut: {len(data):,} of {stated:,} bytes'
    return fault_of_size(data)


def fault_of_size(data: bytes) -> str | None:
    """Why a picture is too large to be decoded, by what its head says, or None."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        return f'has more than {MAX_PIXELS:,} pixels'
    except Exception:
        return None  # no format of Pillow's; its reader says what is wrong
    if width * height > MAX_PIXELS:
        return f'has {width} x {height} pixels, more than {MAX_PIXELS:,}'
    return None


def lacks_its_end(data: bytes) -> bool:
    """Whether a JPEG ends without its mark."""
    return data.startswith(JPEG) and END not in data[-64:]


def _fault_of_jpeg(data: bytes) -> str | None:
    lacking = lacks_its_end(data)
    for line in _complaints(data + END if lacking else data):
        extra = _EXTRA.match(line)
        if extra and int(extra[1]) <= _TAKEN:
            continue
        if line.startswith('Corrupt JPEG data'):
            what = 'is cut' if lacking else 'is damaged'
            return f'{what} (its decoder says: {line})'
    return None


def _complaints(data: bytes) -> list[str]:
    """What libjpeg writes to the error stream while a picture is decoded, coarsely."""
    import cv2

    with _LISTENING:
        try:
            kept = os.dup(2)
        except OSError:
            return []  # there is no error stream
        ear = os.memfd_create('complaints') if hasattr(os, 'memfd_create') else None
        if ear is None:
            os.close(kept)
            return []
        try:
            os.dup2(ear, 2)
            try:
                flag = cv2.IMREAD_REDUCED_GRAYSCALE_8
                cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            except cv2.error:
                pass  # the reader says what is wrong
            finally:
                os.dup2(kept, 2)
            said = os.pread(ear, 1 << 16, 0)
        finally:
            os.close(ear)
            os.close(kept)
    others = re.sub(rb'[^\n]*JPEG[^\n]*\n', b'', said)
    if others:  # of another thread, meanwhile
        os.write(2, others)
    return said.decode(errors='replace').splitlines()


def _fault_of_png(data: bytes) -> str | None:
    """Chunks that are cut, or whose checksum differs."""
    place = len(PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack('>I4s', data[place : place + 8])
        body = data[place + 4 : place + 8 + length]
        checksum = data[place + 8 + length : place + 12 + length]
        critical = not kind[0] & 0x20
        if kind == b'IEND':
            return None
        if critical and len(checksum) < 4:
            return f'is cut: its part {kind.decode("latin-1")!r} lacks bytes'
        if critical and zlib.crc32(body) != int.from_bytes(checksum, 'big'):
            return (
                f'is damaged: the checksum of a part {kind.decode("latin-1")!r} differs'
            )
        place += 12 + length
    return None


def fault_of_file(path: str | os.PathLike[str]) -> str | None:
    """As :func:`fault_of_picture`, of a file; None where it cannot be read."""
    try:
        if os.path.getsize(path) > MAX_BYTES:
            return f'is longer than {MAX_BYTES >> 20} MiB'
        return fault_of_picture(Path(path).read_bytes())
    except OSError:
        return None
