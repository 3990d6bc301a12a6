"""Files and folders that are whole or not there, and a look into each file."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import as_utf8
from mmpetl.datasets.convert.members import PICTURES
from mmpetl.datasets.soundness import (
    END,
    fault_of_picture,
    fault_of_size,
    lacks_its_end,
)
from mmpetl.datasets.walk import is_utf8

PART = '.part'
BOM = b'\xef\xbb\xbf'


def write_whole(path: Path, content: bytes, durable: bool = False) -> None:
    """Write beside the name, then rename.

    Args:
        path: The file; its folder is made.
        content: All of it.
        durable: Wait for the disk; for the lists that declare a set complete.
    """
    part = path.with_name(path.name + PART)
    try:
        # Of an archive, a member may be the folder that another one lies in.
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise PETLError(f'cannot write {path}: {error.strerror}') from None


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a list, one entry a line.

    Raises:
        PETLError: A line that no list can hold, for the name of a file is no UTF-8, or
            has a line break.
    """
    lines = list(lines)
    for line in lines:
        if '\n' in line or '\r' in line or not is_utf8(line):
            raise PETLError(
                f'{path} cannot name {line!r}: a name with a line break, or that is no '
                'UTF-8, is read back as another; rename that file'
            )
    write_whole(path, ''.join(f'{line}\n' for line in lines).encode(), durable=True)


def look_into(name: PurePath, content: bytes) -> str:
    """Why a file's content is unusable, ``''`` if it is sound.

    Pictures are decoded to the last row, since a cut JPEG has a sound header.
    """
    suffix = name.suffix.lower()
    try:
        if suffix in PICTURES:
            from PIL import Image

            whole = content
            if lacks_its_end(content):
                whole += END  # with which half a picture decodes as well
                fault = fault_of_picture(content)
            else:
                fault = fault_of_size(content)
            if fault:
                return fault
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of sizes that are looked at above
                with Image.open(io.BytesIO(whole)) as picture:
                    picture.load()
        elif suffix == '.json':
            # Reads on without making objects of it: files of COCO have 450 MB.
            msgspec.json.decode(content.removeprefix(BOM), type=msgspec.Raw)
        elif suffix == '.xml':
            ElementTree.fromstring(content)
        elif suffix in ('.txt', '.csv'):
            as_utf8(content, 'it')
    except Exception as error:  # decoders raise whatever they like
        lines = str(error).splitlines()
        return lines[0] if lines else type(error).__name__
    return ''


@contextmanager
def staged(folder: Path) -> Iterator[Path | None]:
    """A folder that gets its name when it is complete.

    Yields:
        Where to write, with what an earlier call has left there; None if the folder
        is there and nothing is to be done. A link counts as the folder that it leads
        to, whether or not that is there.
    """
    if folder.is_symlink():
        folder = folder.resolve()  # a folder takes the name of no link
    if folder.is_dir() and any(folder.iterdir()):
        yield None
        return
    partial = partial_of(folder)
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    for leftover in partial.rglob(f'*{PART}'):
        leftover.unlink()
    if folder.is_dir():
        folder.rmdir()  # empty
    partial.rename(folder)


def need_in(folder: Path, *names: str) -> None:
    """See that a folder, which may have been there before, holds what it must.

    Raises:
        PETLError: It lacks one of the names.
    """
    for name in names:
        if not (folder / name).exists():
            raise PETLError(
                f'{folder} is there, but has no {name}: no converter has made it, and '
                'nothing was done; move it away and call again'
            )


def partial_of(folder: Path) -> Path:
    """Where ``staged`` collects a folder's files."""
    return folder.with_name(f'.{folder.name}.partial')


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there with this very content.

    That an earlier call has left one of its name or size says nothing: it may have been
    given other data.
    """
    try:
        if not path.is_file() or path.stat().st_size != len(content):
            return False
        return path.read_bytes() == content
    except OSError:
        return False


def write_unless_there(path: Path, content: bytes) -> bool:
    """Write a file unless it is there with this content; whether it was written."""
    if holds(path, content):
        return False
    write_whole(path, content)
    return True
