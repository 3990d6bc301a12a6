"""Evolutionary search over the subnets of a supernet, apart from any data.

Guo et al., "Single Path One-Shot Neural Architecture Search", ECCV 2020, as NOAH and
GLoRA have it. Differs from their authors' code: the last generation is ranked too; of
equal scores the smaller subnet is ranked first; a budget that random draws never meet
is begun from the smallest or the largest subnet instead of drawing for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmpetl.core import PETLError
from mmpetl.core.supernet import Evolution, Space, Subnet

Origin = Literal['random', 'mutation', 'crossover', 'extreme']

ATTEMPTS = 10
"""Mutations and crossovers are tried so many times per wanted child, as published."""

DRAWS = 200
"""Random draws per wanted candidate: a narrow budget is met by few."""


@dataclass(frozen=True)
class Candidate:
    """A subnet that was scored."""

    generation: int
    origin: Origin
    subnet: Subnet
    params: int
    score: float


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first: high score, then few parameters, then found early."""
    return sorted(candidates, key=lambda c: (-c.score, c.params))


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no smaller candidate equals or beats, by rising size."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.params, -c.score)):
        if not best or candidate.score > best[-1].score:
            best.append(candidate)
    return best


class Search:
    """Generations of subnets between two sizes.

    What a generation proposes depends on the seed, its number and all that was scored
    before, and on nothing else; so a search continues from its record.

    Args:
        space: What subnets are drawn from.
        size: Parameters of a subnet.
        limit: The most parameters a subnet may have.
        at_least: The fewest it may have.
        settings: See :class:`~mmpetl.core.supernet.Evolution`.
        seed: Seed of all draws.

    Raises:
        PETLError: No subnet of the space meets the budget.
    """

    def __init__(
        self,
        space: Space,
        size: Callable[[Subnet], int],
        limit: int,
        at_least: int = 0,
        settings: Evolution | None = None,
        seed: int = 0,
    ) -> None:
        self.space = space
        self.size = size
        self.limit = limit
        self.at_least = at_least
        self.settings = settings or Evolution()
        self.seed = seed
        self.extremes = space.smallest(), space.largest()
        least, most = map(size, self.extremes)
        if at_least > limit or least > limit or most < at_least:
            raise PETLError(
                f'no subnet of the space has between {at_least:,} and {limit:,} '
                f'parameters: they have {least:,} to {most:,}; change the budget '
                '(limit, at_least), or the space of the supernet'
            )

    def legal(self, subnet: Subnet) -> bool:
        """Whether a subnet meets the budget."""
        return self.at_least <= self.size(subnet) <= self.limit

    def run(
        self,
        evaluate: Callable[[Subnet], float],
        scored: Sequence[Candidate] = (),
        start: int = 0,
        after_generation: Callable[[int, list[Candidate]], None] | None = None,
    ) -> list[Candidate]:
        """Score generation after generation.

        Args:
            evaluate: Score of a subnet, higher is better.
            scored: What earlier generations scored.
            start: The first generation to run.
            after_generation: Called with its number and all that is scored.

        Returns:
            All that is scored, in order.
        """
        scored = list(scored)
        for generation in range(start, self.settings.generations + 1):
            for origin, subnet in self.propose(generation, scored):
                score = float(evaluate(subnet))
                size = self.size(subnet)
                scored.append(Candidate(generation, origin, subnet, size, score))
            if after_generation is not None:
                after_generation(generation, scored)
        return scored

    def propose(
        self, generation: int, scored: Sequence[Candidate]
    ) -> list[tuple[Origin, Subnet]]:
        """The new candidates of a generation: legal, and none of them scored before.

        There may be fewer than asked for where the space has no more to offer.
        """
        rng = random.Random(f'{self.seed}:{generation}')
        known = {candidate.subnet for candidate in scored}
        found: list[tuple[Origin, Subnet]] = []
        plan = self.settings

        def collect(
            origin: Origin, draws: Iterator[Subnet], wanted: int, attempts: int
        ) -> None:
            for _ in range(attempts):
                if wanted <= 0:
                    return
                subnet = next(draws)
                if subnet not in known and self.legal(subnet):
                    known.add(subnet)
                    found.append((origin, subnet))
                    wanted -= 1

        parents = [c.subnet for c in rank(scored)[: plan.parents]]
        if parents:
            for origin, draw, wanted in (
                ('mutation', self.mutate, plan.mutations),
                ('crossover', self.cross, plan.crossovers),
            ):
                draws = iter(lambda draw=draw: draw(rng, parents), None)
                collect(origin, draws, wanted, ATTEMPTS * wanted)
        draws = iter(lambda: self.space.draw(rng), None)
        wanted = plan.population - len(found)
        collect('random', draws, wanted, DRAWS * wanted)
        if not known:
            collect('extreme', iter(self.extremes), 2, 2)
        if not known:
            raise PETLError(
                f'none of {DRAWS * wanted:,} subnets drawn from the space has between '
                f'{self.at_least:,} and {self.limit:,} parameters; widen the budget '
                '(limit, at_least)'
            )
        return found

    def mutate(self, rng: random.Random, parents: Sequence[Subnet]) -> Subnet:
        """One of the parents but for some choices."""
        return self.space.mutate(rng, rng.choice(parents), self.settings)

    def cross(self, rng: random.Random, parents: Sequence[Subnet]) -> Subnet:
        """Choices of two parents, perhaps the same."""
        return self.space.cross(rng, rng.choice(parents), rng.choice(parents))
