"""Supernets: models that hold more than acts, and what a search chooses of them.

A method that searches says what its supernet is (:meth:`mmpetl.core.Method.supernet`);
the loops that train one and search in it know no more than what is written here.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Place, injections
from mmpetl.core.method import check_range


@dataclass(frozen=True)
class Evolution:
    """Settings of an evolutionary search; a method may have more, and other defaults.

    Attributes:
        generations: How many follow the random one.
        population: Candidates per generation.
        parents: The best so far, from which children are made.
        mutations: Children by mutation, at most.
        crossovers: Children by crossover, at most.
        touch: Probability that mutation draws a choice anew.
    """

    generations: int = 15
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    touch: float = 0.2

    def __post_init__(self) -> None:
        for name in ('population', 'parents'):
            check_range('the search', name, getattr(self, name), 1)
        for name in ('generations', 'mutations', 'crossovers'):
            check_range('the search', name, getattr(self, name), 0)
        check_range('the search', 'touch', self.touch, 0, 1)


class Subnet(Hashable, Protocol):
    """What acts of a supernet; equal ones act alike."""

    def as_dict(self) -> dict[str, Any]:
        """In words of JSON."""


class Space(Protocol):
    """What subnets are drawn from. Draws come from ``rng`` and nothing else."""

    def draw(self, rng: random.Random) -> Any:
        """A subnet at random."""

    def smallest(self) -> Any:
        """The subnet with the fewest parameters."""

    def largest(self) -> Any:
        """The subnet with the most parameters."""

    def mutate(self, rng: random.Random, parent: Any, plan: Any) -> Any:
        """A subnet that is its parent but for some choices.

        Args:
            rng: Where draws come from.
            parent: A subnet.
            plan: The :class:`Evolution` of the method.
        """

    def cross(self, rng: random.Random, one: Any, other: Any) -> Any:
        """A subnet of choices of two, which may be the same."""

    def read(self, given: Mapping[str, Any], place: str) -> Any:
        """A subnet from what :meth:`Subnet.as_dict` gave, and perhaps more.

        Raises:
            PETLError: It is none; ``place`` says where it came from.
        """

    def facts(self) -> dict[str, Any]:
        """What a search must find again to go on, in words of JSON."""


class Supernet(Protocol):
    """The deltas of a method of which one subnet acts at a time."""

    space: Space

    def activate(self, subnet: Any) -> None:
        """Let what the subnet asks for act, and nothing else."""

    def size(self, subnet: Any) -> int:
        """Parameters of a subnet, heads excluded."""


def supernet_of(model: nn.Module) -> Supernet:
    """The supernet that a model holds.

    Raises:
        PETLError: There is none, or several.
    """
    places = (
        Place.of(module, record, slot)
        for _, module, record in injections(model)
        for slot in record.slots
    )
    made = (place.method.supernet(place) for place in places)
    found = [supernet for supernet in made if supernet is not None]
    if len(found) != 1:
        raise PETLError(
            f'the model holds {len(found)} supernets, one is needed: '
            'method=dict(type=..., space=dict(...), ...) of a method that searches'
        )
    return found[0]
