"""The one exception that tells a user what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PETLError(ValueError):
    """Bad input, in one line: what was asked, what is there, what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'X'?`` for the nearest of ``known``, or an empty string."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ''


def shorten(names: list[str], show: int = 2) -> str:
    """``a, b and 5 more``."""
    more = f' and {len(names) - show} more' if len(names) > show else ''
    return f'{", ".join(names[:show])}{more}'
