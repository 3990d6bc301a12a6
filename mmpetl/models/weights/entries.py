"""Tensors on their way from one naming into another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmpetl.models.weights.errors import WeightsError

Tensors = Mapping[str, Tensor]
State = dict[str, Tensor]


class Entry(NamedTuple):
    """A tensor under its canonical name, and where it came from."""

    tensor: Tensor
    source: str


Entries = dict[str, Entry]


def rename(*rules: tuple[str, str]) -> Callable[[Tensors], Entries]:
    """A reader that applies each (pattern, replacement) to each name, in order."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def read(tensors: Tensors) -> Entries:
        entries: Entries = {}
        for source, tensor in tensors.items():
            name = source
            for pattern, new in compiled:
                name = pattern.sub(new, name)
            put(entries, name, tensor, source)
        return entries

    return read


def renamed(state: Tensors, *rules: tuple[str, str]) -> State:
    """A state under other names: each (pattern, replacement) applied in order."""
    return {k: entry.tensor for k, entry in rename(*rules)(state).items()}


def put(entries: Entries, name: str, tensor: Tensor, source: str) -> None:
    """Add a tensor.

    Raises:
        WeightsError: The name is taken: the file mixes two namings.
    """
    if name in entries:
        raise WeightsError(
            f'{source} and {entries[name].source} both mean {name}; the file mixes '
            'two namings'
        )
    entries[name] = Entry(tensor, source)


def fuse(entries: Entries, name: str, parts: list[Tensor | None]) -> None:
    """Query, key and value stacked; with one of them missing the key stays missing.

    What is there then is kept under a name that no model has, so that it is not lost
    where the model has no such key.
    """
    found = [part for part in parts if part is not None]
    if len(found) == len(parts):
        put(entries, name, torch.cat(found), f'{name} (query, key, value)')
    elif found:
        whole = f'{name} ({len(found)} of {len(parts)} parts)'
        put(entries, whole, torch.cat(found), whole)


def stack_rows(
    state: Tensors, pattern: str, new: str, order: Iterable[str], absent: str = ''
) -> State:
    """Tensors that are rows of one: ``q``, ``k`` and ``v`` of one projection.

    Args:
        state: Tensors by name.
        pattern: Matches the name of a part; its group ``part`` tells which one.
        new: Name of the whole, with the other groups of ``pattern``.
        order: The parts, from the first row on.
        absent: The part that is zero where all others are there (a key's bias).

    Returns:
        The state with the wholes in place of the parts. A whole of which some part is
        missing stays in parts, under their own names.
    """
    order = tuple(order)
    found: dict[str, dict[str, str]] = {}
    for name in state:
        if match := re.match(pattern, name):
            found.setdefault(match.expand(new), {})[match['part']] = name
    result = dict(state)
    for whole, names in found.items():
        lacks = [part for part in order if part not in names]
        if lacks not in ([], [absent]):
            continue
        tensors = {part: result.pop(name) for part, name in names.items()}
        if lacks:
            tensors[absent] = torch.zeros_like(next(iter(tensors.values())))
        result[whole] = torch.cat([tensors[part] for part in order])
    return result
