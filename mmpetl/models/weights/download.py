"""Weight files, from their address or a local mirror, whole or not at all.

A file grows beside its place as ``<name>.part`` and is renamed when its size, its
checksum (as far as one is known) and its content are right. A part that is left behind
is continued, if the server still has the same file.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.models.weights.containers import open_file
from mmpetl.models.weights.errors import (
    WeightsBusyError,
    WeightsError,
    WeightsNotFoundError,
)
from mmpetl.models.weights.identity import describe_file, differences
from mmpetl.models.weights.registry import KnownFile

PIECE = 1 << 20
ATTEMPTS = 3
"""How often a transfer that breaks off is taken up again before a person is asked."""

TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be, if known."""

Check = Callable[[Path, KnownFile], list[str]]
"""What is wrong with a file that should be the known one, as of :func:`check_file`."""


class _BrokenOffError(Exception):
    """The connection ended early; what has arrived is kept."""


def fetch(
    known: KnownFile,
    folder: str | os.PathLike,
    mirror: str | os.PathLike | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
) -> tuple[Path, bool]:
    """Bring a file into a folder.

    Args:
        known: The file.
        folder: Where it belongs; made if need be.
        mirror: A file, a folder that holds one of this name, or the ``http(s)``
            address of such a folder. By default the published address.
        progress: See ``Progress``.
        check: What a whole file is held to; by default :func:`check_file`, for files
            of weights.

    Returns:
        Its path, and whether it was fetched; False if it was there and is right.

    Raises:
        WeightsNotFoundError: The address or the mirror has no such file.
        WeightsBusyError: Another process is fetching it.
        WeightsError: No network, a wrong size or checksum, a file that is another
            one than asked for, or one of that name that is in the way.
    """
    target, check = Path(folder) / known.name, check or check_file
    if target.exists():
        problems = check(target, known)
        if problems:
            raise WeightsError(
                f'{target} is there but is not {known.title}: {"; ".join(problems)}; '
                'move it away and try again'
            )
        return target, False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'{known.name}.part')
    with _alone(part):
        if mirror is not None and urlsplit(str(mirror)).scheme not in ('http', 'https'):
            _copy(_in_mirror(known, Path(mirror)), part, progress)
        else:
            _download(_address(known, mirror), known, part, progress)
        problems = check(part, known)
        if problems:
            _remove(part)
            raise WeightsError(
                f'what came for {known.name} is not {known.title}: '
                f'{"; ".join(problems)}; nothing was kept'
            )
        os.replace(part, target)
        _note_of(part).unlink(missing_ok=True)
    return target, True


def check_file(path: str | os.PathLike, known: KnownFile) -> list[str]:
    """What is wrong with a file that should be ``known``; empty if nothing is.

    Size and checksums are compared as far as they are known, then the file is opened
    and its keys and shapes are held against the entry, as far as it says any.
    """
    path = Path(path)
    problems = check_sums(path, known)
    reason = '' if _has_other_size(path, known) else _reason(path, known)
    if problems:
        # A page or a cut file has a wrong checksum too, but a better reason.
        return [reason] if reason else problems
    if reason or not known.is_listed:
        return [reason] if reason else []
    return differences(known, describe_file(path))


def check_sums(path: str | os.PathLike, known: KnownFile) -> list[str]:
    """What is wrong with the size and the checksums of a file, of whatever kind."""
    path = Path(path)
    if _has_other_size(path, known):
        return [f'{path.stat().st_size:,} bytes, not {known.size_bytes:,}']
    expected = {
        'sha256': known.sha256 or known.sha256_start,
        'md5': known.md5_start,
    }
    for name, start in expected.items():
        if start is not None:
            digest = _digest(path, name)
            if not digest.startswith(start):
                return [f'{name} begins {digest[:8]}, not {start[:8]}']
    return []


def _has_other_size(path: Path, known: KnownFile) -> bool:
    return known.size_bytes is not None and path.stat().st_size != known.size_bytes


def _reason(path: Path, known: KnownFile) -> str:
    """Why a file cannot be read, ``''`` if it can."""
    try:
        if known.is_listed:
            describe_file(path)
        else:
            open_file(path, piece=True)
    except WeightsError as error:
        return str(error).removeprefix(f'{path} ')
    return ''


def _digest(path: Path, name: str) -> str:
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open('rb') as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold a lock, so that two processes do not write into one part."""
    import fcntl

    lock = part.with_name(f'{part.name}.lock')
    with lock.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WeightsBusyError(
                f'another process is fetching {part.stem} into {part.parent}; '
                'wait for it'
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


# --- a local mirror ------------------------------------------------------------


def _in_mirror(known: KnownFile, mirror: Path) -> Path:
    source = mirror / known.name if mirror.is_dir() else mirror
    if not source.is_file():
        raise WeightsNotFoundError(
            f'the mirror {mirror} has no {known.name}; name the file itself or its '
            'folder'
        )
    return source


def _copy(source: Path, part: Path, progress: Progress | None) -> None:
    total, done = source.stat().st_size, 0
    with _writing(part), source.open('rb') as read, part.open('wb') as write:
        while piece := read.read(PIECE):
            write.write(piece)
            done += len(piece)
            if progress:
                progress(done, total)
        _sync(write)


# --- the network ---------------------------------------------------------------


def _address(known: KnownFile, mirror: str | os.PathLike | None) -> str:
    if mirror is not None:
        return f'{str(mirror).rstrip("/")}/{quote(known.name)}'
    if known.url is None:
        raise WeightsError(
            f'{known.name} has no address to download from; '
            f'{known.note or "fetch it by hand"}, or give --mirror'
        )
    return known.url


def _download(
    url: str, known: KnownFile, part: Path, progress: Progress | None
) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, known, part, progress)
            return
        except _BrokenOffError as error:
            if attempt == ATTEMPTS:
                have = part.stat().st_size if part.exists() else 0
                raise WeightsError(
                    f'the transfer of {known.name} broke off {ATTEMPTS} times '
                    f'({error}); {have:,} bytes are kept, run the command again to '
                    'go on'
                ) from None
            time.sleep(0.2 * attempt)


def _transfer(
    url: str, known: KnownFile, part: Path, progress: Progress | None
) -> None:
    """One request: the rest of a part if the server still has the same file."""
    have = part.stat().st_size if part.exists() else 0
    note = _read_note(part)
    headers = {'User-Agent': 'mmpetl', 'Accept-Encoding': 'identity'}
    if have and note.get('url') == url and note.get('validator'):
        headers |= {'Range': f'bytes={have}-', 'If-Range': note['validator']}
    else:
        have = 0
    response = _open(urllib.request.Request(url, headers=headers), known, have)
    if response is None:  # nothing is left to send: the part is as long as the file
        return
    with response:
        resumed = response.status == 206
        have = have if resumed and _starts_at(response, have) else 0
        if resumed and not have:
            raise WeightsError(
                f'{_host(url)} sent another range of {known.name} than asked for; '
                f'delete {part} and try again'
            )
        length = response.headers.get('Content-Length')
        whole = re.fullmatch('[0-9]{1,18}', length or '')
        total = have + int(length) if whole else None
        if known.size_bytes is not None and total not in (None, known.size_bytes):
            raise WeightsError(
                f'{url} has {total:,} bytes, {known.name} has {known.size_bytes:,}; it '
                'is another file'
            )
        _need_space(part, total, have)
        _write_note(part, url, response)
        with _writing(part), part.open('ab' if have else 'wb') as file:
            done = _pour(response, file, have, total, progress)
    if total is not None and done != total:
        raise _BrokenOffError(f'{done:,} of {total:,} bytes arrived')


def _pour(
    response: Any,
    file: BinaryIO,
    done: int,
    total: int | None,
    progress: Progress | None,
) -> int:
    try:
        while piece := response.read(PIECE):
            file.write(piece)
            done += len(piece)
            if progress:
                progress(done, total)
    except http.client.IncompleteRead as error:
        file.write(error.partial)
        done += len(error.partial)
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None
    finally:
        _sync(file)
    return done


def _open(request: urllib.request.Request, known: KnownFile, have: int) -> Any:
    host = _host(request.full_url)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            size = (error.headers.get('Content-Range') or '').rpartition('/')[2]
            if size == str(have):
                return None
        if error.code >= 500:
            raise _BrokenOffError(f'{host} answers {error.code}') from None
        kind = WeightsNotFoundError if error.code in (404, 410) else WeightsError
        raise kind(
            f'{host} answers {error.code} ({error.reason}) for {request.full_url}; '
            f'give --mirror, or put {known.name} in place by hand'
        ) from None
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, (ConnectionResetError, TimeoutError)):
            raise _BrokenOffError(str(reason)) from None
        why = reason.strerror if isinstance(reason, OSError) else reason
        raise WeightsError(
            f'no network, or {host} cannot be reached ({why or reason}); {known.name} '
            'was not fetched: give --mirror with a folder that has it, or put it in '
            'place by hand'
        ) from None
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _starts_at(response: Any, have: int) -> bool:
    given = response.headers.get('Content-Range') or ''
    return given.startswith(f'bytes {have}-')


# --- the part beside the file ----------------------------------------------------


def _note_of(part: Path) -> Path:
    """Which file at which address a part is the beginning of."""
    return part.with_name(f'{part.name}.json')


def _read_note(part: Path) -> dict[str, str]:
    try:
        return read_json(_note_of(part), dict[str, str], 'note')
    except (OSError, PETLError):
        return {}


def _write_note(part: Path, url: str, response: Any) -> None:
    tag = response.headers.get('ETag') or ''
    # A weak tag does not promise equal bytes, so a range must not rest on it.
    validator = tag if tag and not tag.startswith('W/') else ''
    validator = validator or response.headers.get('Last-Modified') or ''
    text = json.dumps({'url': url, 'validator': validator})
    _note_of(part).write_text(text, encoding='utf-8')


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


def _need_space(part: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise WeightsError(
            f'{part.parent} has {free:,} bytes free, {total - have:,} are needed'
        )


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise WeightsError(f'cannot write {part}: {error.strerror}') from None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
