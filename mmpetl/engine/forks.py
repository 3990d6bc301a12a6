"""Forks end when SIGTERM tells them to, whatever handler their parent has.

A handler in Python runs between two steps of the interpreter. A child of a pool that is
told to end right behind its fork may have taken the signal and wait for a lock before
such a step comes, or be within the hooks of the fork, which drop what is raised in
them: it then goes on, and its pool waits for it without end. So a handler that says
``ends_forks`` stays behind in the parent, and the system ends the child.
"""

from __future__ import annotations

import os
import signal


def _end_by_the_system() -> None:
    """In a child: SIGTERM as the system has it, where our handler came along.

    Blocked meanwhile. What came before is handled at the next step of the interpreter,
    by that handler; what comes in between, when it is let through, by the system.
    """
    if not getattr(signal.getsignal(signal.SIGTERM), 'ends_forks', False):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_end_by_the_system)
