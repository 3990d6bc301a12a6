"""Patterns over dotted names, ranges of blocks, and names in short."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mmpetl.core.errors import PETLError

_NUMBER = re.compile('[0-9]{1,18}')
"""A number of a block; ``²`` is a digit to Python, and no number."""


def as_patterns(layers: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """One pattern or several as a tuple, None for all layers.

    Raises:
        PETLError: It is neither, or empty.
    """
    if layers is None:
        return None
    alone = isinstance(layers, str) or not isinstance(layers, Iterable)
    found = (layers,) if alone else tuple(layers)
    if not found or not all(isinstance(p, str) and p.strip('!') for p in found):
        raise PETLError(
            "layers takes a pattern or a list of them, as in '*.attn.qkv' or "
            f"['blocks.*', '!*.mlp.*']; got {layers!r}"
        )
    return found


def matches(patterns: Sequence[str], names: Iterable[str]) -> bool:
    """Whether one of a place's names fits a pattern, and none an exclusion.

    Where all patterns exclude (``!pattern``), every other place fits.
    """
    names = tuple(names)
    wanted = [p for p in patterns if not p.startswith('!')]
    barred = [p[1:] for p in patterns if p.startswith('!')]
    if any(fnmatchcase(name, p) for name in names for p in barred):
        return False
    return not wanted or any(fnmatchcase(name, p) for name in names for p in wanted)


def first_match(table: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first key of ``table`` that is a pattern of one of the names."""
    names = tuple(names)
    for pattern in table:
        if any(fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def as_blocks(blocks: Any, count: int) -> tuple[int, ...] | None:
    """Indices of blocks in order, None for all.

    Args:
        blocks: An index (negative ones count from the end), a slice, a range, a slice
            as text (``'6:'``), or a list of these.
        count: How many blocks there are.

    Raises:
        PETLError: It is none of these, or no block is meant.
    """
    if blocks is None:
        return None
    alone = isinstance(blocks, range | str) or not isinstance(blocks, Iterable)
    found: set[int] = set()
    for part in (blocks,) if alone else blocks:
        found |= _indices(part, count, blocks)
    if not found:
        raise PETLError(f'blocks={blocks!r} means none of the {count} blocks')
    return tuple(sorted(found))


def _indices(part: Any, count: int, whole: Any) -> set[int]:
    if isinstance(part, str) and ':' in part:
        try:
            ends = [int(n) if n.strip() else None for n in part.split(':')]
            part = slice(*ends)
        except (ValueError, TypeError):
            pass
    if isinstance(part, slice):
        return set(range(*part.indices(count)))
    if isinstance(part, bool) or not isinstance(part, int | range):
        raise PETLError(
            'blocks takes indices, slices or a list of these, as in [0, 1], '
            f"slice(6, None), '6:' or -1; got {whole!r}"
        )
    found = set()
    for index in part if isinstance(part, range) else (part,):
        if not -count <= index < count:
            raise PETLError(f'there is no block {index}; the model has {count} blocks')
        found.add(index % count)
    return found


def nearest(pattern: str, names: Iterable[str]) -> str:
    """`` Did you mean '*.attn.qkv'?`` for a pattern that no name fits, or nothing."""
    plain = pattern.removeprefix('!')
    tails: dict[str, None] = {}
    for name in names:
        parts = name.split('.')
        tails[name] = None
        for k in range(1, min(3, len(parts)) + 1):
            if not _NUMBER.fullmatch(parts[-k]):
                tails[f'*.{".".join(parts[-k:])}'] = None
    near = difflib.get_close_matches(plain, tails, n=1, cutoff=0.5)
    return f' Did you mean {near[0]!r}?' if near else ''


def in_short(
    names: Iterable[str], facts: Mapping[str, str] | None = None
) -> list[tuple[str, str, int]]:
    """Names with their numbers drawn together: ``blocks.{0..11}.attn.qkv``.

    Args:
        names: Dotted names.
        facts: What is said of each; only names of which the same is said are drawn
            together.

    Returns:
        Name in short, what is said, how many, in the order of the names.
    """
    rows = [
        (tuple(name.split('.')), '' if facts is None else facts[name], 1)
        for name in names
    ]
    depth = max((len(parts) for parts, _, _ in rows), default=0)
    for place in range(depth):
        groups: dict[Any, list[tuple[tuple[str, ...], int]]] = {}
        for parts, fact, count in rows:
            numbered = place < len(parts) and bool(_NUMBER.fullmatch(parts[place]))
            rest = (*parts[:place], None, *parts[place + 1 :]) if numbered else parts
            groups.setdefault((rest, fact), []).append((parts, count))
        rows = []
        for (rest, fact), members in groups.items():
            parts = members[0][0]
            if len(members) > 1 and None in rest:
                inside = _ranges([int(m[place]) for m, _ in members])
                parts = (*parts[:place], f'{{{inside}}}', *parts[place + 1 :])
            rows.append((parts, fact, sum(count for _, count in members)))
    return [('.'.join(parts), fact, count) for parts, fact, count in rows]


def _ranges(numbers: list[int]) -> str:
    """``0..3,5`` for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ','.join(
        f'{run[0]}..{run[-1]}' if len(run) > 2 else ','.join(map(str, run))
        for run in runs
    )
