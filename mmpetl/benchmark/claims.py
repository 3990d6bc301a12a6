"""Who works on a run: one process at a time, on any file system.

Where the system locks files (``flock``), a lock says it; it ends with its process.
Elsewhere a lease does: a file that names its holder and that the holder renews every
:data:`RENEW_S` seconds. A lease that was not renewed for :data:`STALE_S` seconds, or
whose process is gone from this machine, is void. Leases are numbered, and the highest
counts: who finds it void or given back makes the next, which one alone can do.

Ages are measured by the clock of the file system, which all machines see alike.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = 'lock'
LEASE = 'lease'
RENEW_S = 20.0
STALE_S = 120.0

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What ``flock`` answers where there are no locks."""

_told: set[str] = set()


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether this process, and no other, may work in a run's folder.

    Args:
        folder: It is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, 'a', encoding='ascii') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            tell(folder, error)
            with _lease(folder) as mine:
                yield mine
            return
        yield True


def held(folder: Path) -> bool:
    """Whether some process works in a run's folder; it is left as it is."""
    path = folder / LOCK
    if not path.is_file():
        return False
    with open(path, encoding='ascii') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            return not _is_void(_newest(folder)[1])
    return False


def tell(folder: Path, error: OSError) -> None:
    """Say once in a process that leases take the place of locks."""
    place = str(folder.parent)
    if place not in _told:
        _told.add(place)
        print(
            f'{place}: its file system has no locks ({error.strerror}), so leases hold '
            f'the jobs, renewed every {RENEW_S:.0f} s; a job whose machine died is '
            f'free after {STALE_S:.0f} s',
            file=sys.stderr,
        )


@contextlib.contextmanager
def _lease(folder: Path) -> Iterator[bool]:
    number, newest = _newest(folder)
    path, token = folder / f'{LEASE}-{number + 1}', secrets.token_hex(8)
    if not (_is_void(newest) and _take(path, token)):
        yield False
        return
    if _newest(folder)[0] > number + 1:
        # It was judged long ago: others have held the run since.
        path.unlink(missing_ok=True)
        yield False
        return
    for older in _leases(folder)[:-1]:
        older[1].unlink(missing_ok=True)
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, token, over), daemon=True)
    renewal.start()
    try:
        yield True
    finally:
        over.set()
        renewal.join()
        if _read(path).get('token') == token:
            _give_back(path, token)


def _leases(folder: Path) -> list[tuple[int, Path]]:
    """Number and file of every lease of a folder, the highest last."""
    numbers = {path: path.name.rpartition('-')[2] for path in folder.glob(f'{LEASE}-*')}
    return sorted((int(n), path) for path, n in numbers.items() if n.isdecimal())


def _newest(folder: Path) -> tuple[int, Path | None]:
    """Number and file of the lease that counts; 0 and None where there is none."""
    found = _leases(folder)
    return found[-1] if found else (0, None)


def _give_back(path: Path, token: str) -> None:
    """Say that a lease is over; its file stays, so that its number is not used anew."""
    part = path.with_name(f'{LEASE}.{token}')
    part.write_text(json.dumps({'over': True}), encoding='utf-8')
    part.replace(path)


def _take(path: Path, token: str) -> bool:
    """Make a lease, if there is none of its number; one link wins, also on NFS."""
    part = path.with_name(f'{LEASE}.{token}')
    said = {'host': socket.gethostname(), 'pid': os.getpid(), 'token': token}
    part.write_text(json.dumps(said), encoding='utf-8')
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, *WITHOUT_LOCKS):
            raise
        # No links here; an exclusive creation is the best that there is.
        try:
            with open(path, 'x', encoding='utf-8') as file:
                file.write(json.dumps(said))
        except FileExistsError:
            return False
    finally:
        part.unlink(missing_ok=True)
    return _read(path).get('token') == token


def _renew(path: Path, token: str, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        if _read(path).get('token') != token:
            return
        with contextlib.suppress(OSError):
            os.utime(path)


def _is_void(path: Path | None) -> bool:
    """Whether nobody holds a lease: it is not there or over, or its holder is gone."""
    if path is None:
        return True
    try:
        age = _clock(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return False  # removed by who took the next
    said = _read(path)
    if said.get('over') is True:
        return True
    here, pid = said.get('host') == socket.gethostname(), said.get('pid')
    if here and isinstance(pid, int) and not _lives(pid):
        return True
    return age > STALE_S


def _clock(folder: Path) -> float:
    """The time that the file system gives to what is written now."""
    probe = folder / f'{LEASE}.{secrets.token_hex(8)}'
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def _read(path: Path) -> dict[str, Any]:
    """What a lease says; nothing where it cannot be read."""
    try:
        with open(path, encoding='utf-8') as file:
            said = json.loads(file.read(1000))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
