"""One run in a work folder at a time.

A record lock of the operating system on a file in the folder: it ends with the process
that holds it, however that ends, so that no lock is ever stale. Unlike ``flock`` it is
not inherited by data workers, which outlive a killed run by some seconds. That is also
why the package filelock, which uses ``flock``, does not serve here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.engine.files import remove_parts

NAME = '.run.lock'
_held: dict[tuple[int, int, int], str] = {}
"""Locks by process, device and inode; the system counts those of a process as one."""


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a work folder for the run of this process.

    Args:
        folder: It is made if it is not there.

    Raises:
        PETLError: Another run holds it, or it is no folder that can be written to.
    """
    file = _open(Path(folder))
    key = None
    try:
        status = os.fstat(file)
        key = (os.getpid(), status.st_dev, status.st_ino)
        if key in _held:
            key = None
            # Closing any handle on the file would end the lock of this process.
            file, kept = -1, file
            _keep.append(kept)
            raise PETLError(_refusal(folder, f'pid {os.getpid()} (this process)'))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            key = None
            raise PETLError(_refusal(folder, _holder(file))) from None
        except OSError as error:
            key = None
            raise PETLError(
                f'cannot lock the work folder {folder}: {error.strerror}; its file '
                'system has no locks, so put work_dir on another'
            ) from None
        _held[key] = str(folder)
        said = f'host {socket.gethostname()}, pid {os.getpid()}\n'
        # Nothing depends on these words, so a full disk is no obstacle here.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, said.encode(), 0)
        yield
    finally:
        if key is not None:
            _held.pop(key, None)
        if file >= 0:
            os.close(file)


_keep: list[int] = []
"""Handles that stay open until the process ends; see :func:`hold_folder`."""


def _open(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise PETLError(f'work_dir {folder} is a file; name a folder') from None
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', None) or str(error)
        raise PETLError(f'cannot use work_dir {folder}: {why}') from None


def _holder(file: int) -> str:
    """Who wrote that it holds the lock; plain words only, whatever the file says."""
    with contextlib.suppress(OSError):
        text = os.pread(file, 200, 0).decode('ascii', 'replace').strip()
        if re.fullmatch(r'host [\w.-]+, pid \d+', text):
            return text
    return 'another process'


def _refusal(folder: str | os.PathLike, holder: str) -> str:
    return (
        f'a run is at work in {folder}: {holder}; wait for its end, or give this one '
        'another work_dir (--work-dir)'
    )


@contextlib.contextmanager
def hold_for_run(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a work folder for a run of any number of processes; the first one does.

    What writers that were killed have left in it is removed.

    Raises:
        PETLError: As of :func:`hold_folder`, in every process of the run.
    """
    from mmengine.dist import broadcast_object_list, is_main_process

    with contextlib.ExitStack() as stack:
        refusal: list[str | None] = [None]
        if is_main_process():
            try:
                stack.enter_context(hold_folder(folder))
                remove_parts(folder)
            except PETLError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise PETLError(refusal[0])
        yield
