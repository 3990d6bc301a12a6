"""Forks end when SIGTERM tells them to, whatever handler their parent has.

A handler in Python runs between two steps of the interpreter. A child that is told to
end right behind its fork does not come to it: Python drops there what the child has
been sent and what its hooks raise, and a worker of a pool soon waits for a lock. It
goes on, and its pool waits for it without end. So a handler that says ``ends_forks``
stays behind in the parent, and the system ends the child; what is sent meanwhile waits.
"""

from __future__ import annotations

import os
import signal
import threading

_TERM = {signal.SIGTERM}
_masks = threading.local()


def _before() -> None:
    """Let SIGTERM wait in this thread, which alone the child will have."""
    _masks.before = None
    if getattr(signal.getsignal(signal.SIGTERM), 'ends_forks', False):
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERM)


def _behind() -> None:
    """In the parent, and where there was nothing to do."""
    if getattr(_masks, 'before', None) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)
        _masks.before = None


def _behind_in_child() -> None:
    """SIGTERM as the system has it, and then let through what has waited."""
    if getattr(_masks, 'before', None) is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _behind()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(
        before=_before, after_in_parent=_behind, after_in_child=_behind_in_child
    )
