"""A disk that is full ends a run in one line; a log that cannot be written does not.

Checkpoints name themselves (:class:`mmpetl.engine.DeltaCheckpointHook`). What else a
run writes, its log, its curves and its copy of the config, raises an ``OSError`` that
often names no file, or is a traceback that ``logging`` prints for every line.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator

from mmpetl.core import PETLError
from mmpetl.engine.latest import left_to_resume
from mmpetl.engine.resumable import folder_free

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing meets: no room, quota, size of a file, a read-only system."""


@contextlib.contextmanager
def writes_named(folder: str | os.PathLike) -> Iterator[None]:
    """Say what a run goes on from when the system refuses to write.

    Args:
        folder: Its work folder.

    Raises:
        PETLError: It was refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        what = error.filename or f'a file in {folder}'
        free = folder_free(os.path.join(folder, 'x'))
        raise PETLError(
            f'cannot write {what}: {error.strerror}{free}; {left_to_resume(folder)}; '
            'make room, or take a work_dir on another disk'
        ) from error


@contextlib.contextmanager
def logs_may_fail() -> Iterator[None]:
    """Let a log that cannot be written say so once, while handlers are being made."""
    kind = logging.StreamHandler
    kind.handleError = _say_once
    try:
        yield
    finally:
        del kind.handleError


def let_log_fail(logger: logging.Logger) -> None:
    """Let the handlers of a logger say once that they cannot write, and no more.

    The run goes on: its log is not its result.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = _say_once.__get__(handler)


def _say_once(self: logging.StreamHandler, record: logging.LogRecord) -> None:
    """In place of ``logging.Handler.handleError``, which prints a traceback."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(self, record)
        return
    if getattr(self, '_mmpetl_said', False):
        return
    self._mmpetl_said = True
    name = getattr(self, 'baseFilename', None) or 'the output'
    why = error.strerror or type(error).__name__
    with contextlib.suppress(OSError, ValueError):
        print(
            f'warning: {name} lacks lines from here on: {why}',
            file=sys.stderr,
            flush=True,
        )
