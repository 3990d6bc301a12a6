"""What a user is told when a file of base weights cannot be used."""

from __future__ import annotations

from collections.abc import Iterable

from mmpetl.core.errors import PETLError


class WeightsError(PETLError):
    """A weight file that is damaged, foreign, or made for another model."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No file at the path that was given."""

    # OSError would print its own (errno, text) form.
    __str__ = Exception.__str__


class WeightsBusyError(WeightsError):
    """Another process is fetching the same file into the same folder."""


def shorten(names: Iterable[str], limit: int = 4) -> str:
    """The first ``limit`` names and how many more there are, in one line."""
    names = list(names)
    shown = ', '.join(names[:limit])
    rest = len(names) - limit
    return f'{shown} and {rest} more' if rest > 0 else shown
