"""Members of zip and tar archives, and of folders, as one stream."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mmpetl.compat.archives import DAMAGED_ZIP
from mmpetl.core import PETLError
from mmpetl.core.boundary import text_limit
from mmpetl.datasets.soundness import MAX_BYTES
from mmpetl.datasets.walk import files_below

DAMAGED = (tarfile.TarError, *DAMAGED_ZIP)
"""What a cut or garbled archive is answered with."""

PICTURES = frozenset({'.jpg', '.jpeg', '.png', '.bmp'})

RATIO = 100
"""An archive in one stream that becomes so many times its size is a bomb."""
_SLACK = 64 << 20
_HEADER = 1 << 20
"""Bytes of a name, or of other facts of a member, that a tar may hold at most."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive.

    Attributes:
        path: Its name, relative, without ``..``.
        size: Bytes, unpacked.
        read: Its content. Of a tar, only until the next member is asked for. Raises
            PETLError where that is damaged, or longer than a member of its kind may be.
        source: The archive.
    """

    path: PurePosixPath
    size: int
    read: Callable[[], bytes]
    source: Path


def members(source: Path) -> Iterator[Member]:
    """All regular files of a zip, a tar (any compression) or a folder, in its order.

    Folders and what macOS leaves behind are passed over, and what else is hidden in a
    folder, whose links are followed.

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
        # First, for a tar whose last member is a zip ends as a zip does.
        if _is_tar(source):
            yield from map(_bounded, _tar_members(source))
        elif zipfile.is_zipfile(source):
            yield from map(_bounded, _zip_members(source))
        else:
            raise PETLError(_what_else(source))
    except PETLError:
        raise
    except DAMAGED as error:
        raise damaged(source, error) from None


def limit_of(path: PurePosixPath) -> int:
    """Bytes that a member of this kind may have: 256 MiB a picture, else 1 GiB.

    ``MMPETL_MAX_TEXT_MIB`` raises the second.
    """
    return MAX_BYTES if path.suffix.lower() in PICTURES else text_limit()


def _bounded(member: Member) -> Member:
    """A member whose reading asks for no more memory than its kind may take."""

    def read() -> bytes:
        limit = limit_of(member.path)
        if member.size > limit:
            more = '' if limit == MAX_BYTES else '; MMPETL_MAX_TEXT_MIB=N raises it'
            raise PETLError(
                f'{member.path} of {member.source} has {member.size:,} bytes; '
                f'{limit >> 20} MiB are the limit of such a file{more}'
            )
        try:
            return member.read()
        except PETLError:
            raise
        except DAMAGED as error:
            raise damaged(member.source, error) from None

    return replace(member, read=read)


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
    if '\0' in name:
        raise PETLError(f'{source} holds {name[:80]!r}, which no file can be called')
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
                # The others give out what they unpack in pieces of any size.
                if entry.compress_type not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise PETLError(
                        f'{entry.filename} of {source} is packed in an unusual way; '
                        'unpack the archive and give the folder'
                    )
                return archive.read(entry)

            yield Member(path, entry.file_size, read, source)


class _Entry(tarfile.TarInfo):
    """A member of a tar whose long name does not take any memory that it says."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LONG and not 0 <= self.size <= _HEADER:
            raise tarfile.ReadError(f'a name or header of {self.size:,} bytes')
        return super()._proc_member(tarfile_)


_LONG = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def _is_tar(source: Path) -> bool:
    try:
        with tarfile.open(source, 'r|*', tarinfo=_Entry):
            return True
    except tarfile.ReadError as error:
        if 'header of' in str(error):
            raise
        return False


def _tar_members(source: Path) -> Iterator[Member]:
    most = source.stat().st_size * RATIO + _SLACK
    with tarfile.open(source, 'r|*', tarinfo=_Entry) as archive:
        for entry in archive:
            if entry.offset_data + entry.size > most:
                raise PETLError(
                    f'{source} unpacks to more than {RATIO} times its size, '
                    f'{entry.name!r} has {entry.size:,} bytes; it is not official'
                )
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
    for path in files_below(source):
        if path.is_file():
            relative = PurePosixPath(path.relative_to(source).as_posix())
            member = Member(relative, path.stat().st_size, path.read_bytes, source)
            yield _bounded(member)
