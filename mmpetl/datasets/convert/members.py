"""Members of zip and tar archives, and of folders, as one stream."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmpetl.core import PETLError

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
)
"""What a cut or garbled archive is answered with."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive.

    Attributes:
        path: Its name, relative, without ``..``.
        size: Bytes, unpacked.
        read: Its content. Of a tar, only until the next member is asked for.
        source: The archive.
    """

    path: PurePosixPath
    size: int
    read: Callable[[], bytes]
    source: Path


def members(source: Path) -> Iterator[Member]:
    """All regular files of a zip, a tar (any compression) or a folder, in its order.

    Folders and what macOS leaves behind are passed over.

    Raises:
        PETLError: Nothing there, no archive, a damaged one, or one with a link or a
            name that leads outside.
    """
    if source.is_dir():
        yield from _folder_members(source)
        return
    if not source.is_file():
        raise PETLError(f'there is no archive or folder {source}')
    try:
        if zipfile.is_zipfile(source):
            yield from _zip_members(source)
        elif tarfile.is_tarfile(source):
            yield from _tar_members(source)
        else:
            raise PETLError(_what_else(source))
    except DAMAGED as error:
        raise damaged(source, error) from None


def damaged(source: Path, error: Exception) -> PETLError:
    """The one line for an archive that cannot be read to its end."""
    if isinstance(error, OSError) and error.errno is not None:
        return PETLError(f'cannot read {source}: {error.strerror}')
    return PETLError(f'{source} is truncated or damaged ({error}); download it again')


def _what_else(source: Path) -> str:
    with source.open('rb') as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b'<!doctype', b'<html')):
        return f'{source} is a web page under the name of an archive; download it again'
    if head.startswith(b'rar!'):
        return (
            f'{source} is a rar archive, which Python cannot open; unpack it (unrar x, '
            '7z x) and give the folder'
        )
    return f'{source} is neither a zip nor a tar archive, or its beginning is damaged'


def _safe(name: str, source: Path) -> PurePosixPath | None:
    """The relative path of a member, None for one that nobody wants.

    Raises:
        PETLError: It leads outside of the target.
    """
    path = PurePosixPath(name.replace('\\', '/'))
    has_drive = ':' in path.parts[0] if path.parts else False
    if path.is_absolute() or '..' in path.parts or has_drive:
        raise PETLError(
            f'{source} holds {name!r}, which leads outside of the target; it is no '
            'official archive and is not unpacked'
        )
    if '__MACOSX' in path.parts or path.name.startswith('._'):
        return None
    return path


def _zip_members(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            path = _safe(entry.filename, source)
            if entry.is_dir() or path is None:
                continue
            if entry.flag_bits & 1:
                raise PETLError(f'{source} is locked with a password; unpack it first')
            if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                raise PETLError(f'{source} holds the link {entry.filename!r}')

            def read(entry: zipfile.ZipInfo = entry) -> bytes:
                return archive.read(entry)

            yield Member(path, entry.file_size, read, source)


def _tar_members(source: Path) -> Iterator[Member]:
    with tarfile.open(source, 'r|*') as archive:
        for entry in archive:
            path = _safe(entry.name, source)
            if entry.isdir() or path is None:
                continue
            if not entry.isreg():
                raise PETLError(
                    f'{source} holds {entry.name!r}, a link or a device; it is no '
                    'official archive and is not unpacked'
                )

            def read(entry: tarfile.TarInfo = entry) -> bytes:
                file = archive.extractfile(entry)
                content = b'' if file is None else file.read()
                if len(content) != entry.size:
                    raise EOFError(f'{entry.name} is cut')
                return content

            yield Member(path, entry.size, read, source)


def _folder_members(source: Path) -> Iterator[Member]:
    for path in sorted(source.rglob('*')):
        if path.is_file():
            relative = PurePosixPath(path.relative_to(source).as_posix())
            yield Member(relative, path.stat().st_size, path.read_bytes, source)
