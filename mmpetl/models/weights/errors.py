"""What a user is told when a file of base weights cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmpetl.core.errors import PETLError


class WeightsError(PETLError):
    """A weight file that is damaged, foreign, or made for another model."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No file at the path that was given."""

    # OSError would print its own (errno, text) form.
    __str__ = Exception.__str__


class WeightsBusyError(WeightsError):
    """Another process is fetching the same file into the same folder."""


class SeveralTrunksError(WeightsError):
    """Several models in one file, of which none was asked for."""


OF_SHAPES = (IndexError, RuntimeError)
"""How torch fails where a tensor has not the axes that its name promises."""


def misshapen(where: str, names: str, error: Exception) -> WeightsError:
    """The refusal of a file whose names are known and whose shapes are not theirs."""
    said = str(error).strip().partition('\n')[0]
    return WeightsError(f'{where} has {names} names, but not their shapes: {said}')


def several_trunks(where: str, prefixes: Sequence[str]) -> SeveralTrunksError:
    """The refusal of a file in which several models fit, by the paths before them."""
    part = next(filter(None, prefixes), '').rstrip('./')
    if not part:
        return SeveralTrunksError(
            f'{where} holds the names of {len(prefixes)} trunks side by side; keep '
            'those of one in a file of its own'
        )
    return SeveralTrunksError(
        f'{where} holds {len(prefixes)} trunks (below '
        f'{" and ".join(map(repr, prefixes))}); name one as `checkpoint_part` of '
        f'mmpetl.PETLBackbone, as in {part!r}'
    )


def shorten(names: Iterable[str], limit: int = 4) -> str:
    """The first ``limit`` names and how many more there are, in one line."""
    names = list(names)
    shown = ', '.join(names[:limit])
    rest = len(names) - limit
    return f'{shown} and {rest} more' if rest > 0 else shown
