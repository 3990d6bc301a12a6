"""NOAH's evolutionary search, apart from any data."""

from __future__ import annotations

import random

import pytest

from mmpetl.core import PETLError
from mmpetl.engine.evolution import Candidate, Search, front, rank
from mmpetl.methods.noah import WIDTHS, NOAHEvolution, SearchSpace, Subnet


def total(subnet: Subnet) -> int:
    return sum(sum(getattr(subnet, name)) for name in WIDTHS)


def toy(limit: int, seed: int = 0, **plan) -> Search:
    """Subnets of three blocks, as large as the sum of their widths."""
    space = SearchSpace((1, 2, 3), (1, 2, 3), 3)
    return Search(space, total, limit, settings=NOAHEvolution(**plan), seed=seed)


@pytest.mark.parametrize('limit', [3, 7, 14, 27])
@pytest.mark.parametrize('seed', [0, 1])
def test_evolution_finds_the_known_optimum_and_never_an_illegal_subnet(limit, seed):
    asked: list[Subnet] = []

    def fitness(subnet: Subnet) -> float:
        asked.append(subnet)
        return total(subnet)

    best = rank(toy(limit, seed).run(fitness))[0]
    assert best.score == limit
    assert all(3 <= total(s) <= limit for s in asked)
    assert len(set(asked)) == len(asked), 'a subnet was scored twice'


def test_evolution_beats_random_draws_of_the_same_number():
    """A fitness with one optimum in 59,319 that random draws rarely meet."""
    wanted = Subnet((3, 1, 2), (2, 0, 0), (1, 3, 0))

    def fitness(subnet: Subnet) -> float:
        pairs = zip(
            (w for n in WIDTHS for w in getattr(subnet, n)),
            (w for n in WIDTHS for w in getattr(wanted, n)),
            strict=True,
        )
        return -sum(abs(a - b) for a, b in pairs)

    def mean_best(**plan) -> float:
        found = [rank(toy(27, s, **plan).run(fitness))[0].score for s in range(6)]
        return sum(found) / len(found)

    evolved = mean_best()
    assert evolved > mean_best(mutations=0, crossovers=0)
    assert evolved == 0


def test_a_generation_holds_what_the_paper_asks_for():
    scored = toy(27).run(total)
    plan = NOAHEvolution()
    assert {c.generation for c in scored} == set(range(plan.generations + 1))
    for generation in range(plan.generations + 1):
        mine = [c.origin for c in scored if c.generation == generation]
        assert len(mine) == plan.population
        assert mine.count('mutation') <= plan.mutations
        assert mine.count('crossover') <= plan.crossovers
        if generation == 0:
            assert set(mine) == {'random'}
    assert 'crossover' in {c.origin for c in scored}


def test_a_search_continues_from_its_record_as_if_never_interrupted():
    whole = toy(14).run(total)
    for stop in (0, 1, 7):
        part = [c for c in whole if c.generation <= stop]
        assert toy(14).run(total, part, stop + 1) == whole


def test_another_seed_proposes_other_subnets():
    assert toy(14, 0).propose(0, []) != toy(14, 1).propose(0, [])


def parents_of(search: Search, number: int = 4) -> list[Subnet]:
    rng = random.Random(3)
    return [search.space.draw(rng) for _ in range(number)]


def test_published_mutation_never_changes_a_width_that_stays():
    search = toy(27, mutate_width=False, touch=0.5, new_depth=0.5)
    rng, changed = random.Random(0), 0
    for _ in range(300):
        (parent,) = parents_of(search, 1)
        child = search.mutate(rng, [parent])
        for name in WIDTHS:
            old, new = getattr(parent, name), getattr(child, name)
            both = [(a, b) for a, b in zip(old, new, strict=True) if a and b]
            assert all(a == b for a, b in both)
            depth = sum(w > 0 for w in new)
            assert all(new[:depth])
            assert not any(new[depth:])
        changed += child != parent
    assert 50 < changed < 250


def test_an_untouched_child_is_as_frequent_as_the_probabilities_say():
    """(1 - 0.2 * 0.4 * 2/3)^3: a new depth is the old one in a third of the cases."""
    search = toy(27, mutate_width=False)
    rng, (parent,) = random.Random(0), parents_of(search, 1)
    same = sum(search.mutate(rng, [parent]) == parent for _ in range(4000)) / 4000
    assert same == pytest.approx((1 - 0.08 * 2 / 3) ** 3, abs=0.02)


def test_mutation_of_widths_is_ours_and_on_by_default():
    search = toy(27, new_depth=0.0)
    rng, (parent,) = random.Random(0), parents_of(search, 1)
    children = [search.mutate(rng, [parent]) for _ in range(200)]
    depths = {
        tuple(sum(w > 0 for w in getattr(c, n)) for n in WIDTHS) for c in children
    }
    assert len(depths) == 1
    assert len(set(children)) > 20


def test_crossover_inherits_whole_lists():
    search = toy(27)
    parents, rng = parents_of(search, 3), random.Random(0)
    mixed = 0
    for _ in range(100):
        child = search.cross(rng, parents)
        for name in WIDTHS:
            assert getattr(child, name) in {getattr(p, name) for p in parents}
        mixed += child not in parents
    assert mixed > 20


def test_a_small_space_ends_with_all_of_it():
    space = SearchSpace((1, 2), (1,), 1)
    search = Search(space, total, 100, settings=NOAHEvolution(population=50))
    scored = search.run(total)
    assert len(scored) == len({c.subnet for c in scored}) == 8
    assert rank(scored)[0].score == 6


@pytest.mark.parametrize(
    ('limit', 'at_least'), [(2, 0), (27, 28), (10, 11), (0, 0), (-1, 0)]
)
def test_a_budget_that_no_subnet_meets_is_refused(limit, at_least):
    with pytest.raises(
        PETLError, match=r'no subnet of the space has .* they have 3 to 27; change'
    ) as error:
        Search(SearchSpace((1, 2, 3), (1, 2, 3), 3), total, limit, at_least)
    assert '\n' not in str(error.value)


def test_a_budget_between_two_sizes_is_refused_once_it_is_tried():
    search = Search(SearchSpace((10,), (1, 3), 3), total, 45, 41)
    with pytest.raises(PETLError, match=r'none of [\d,]+ subnets drawn .* 41 and 45'):
        search.run(total)


def test_a_budget_that_random_draws_miss_starts_from_the_smallest():
    space = SearchSpace((1, 1000), (1, 12), 12)
    search = Search(space, total, 3, settings=NOAHEvolution(generations=1))
    scored = search.run(total)
    assert [c.origin for c in scored[:1]] in (['extreme'], ['random'])
    assert {total(c.subnet) for c in scored} == {3}


def test_equal_scores_rank_the_smaller_first_and_the_front_rises():
    def make(params, score):
        return Candidate(0, 'random', Subnet((params,), (1,), (1,)), params, score)

    scored = [make(5, 2.0), make(3, 2.0), make(9, 3.0), make(4, 1.0), make(1, 0.5)]
    assert [(c.params, c.score) for c in rank(scored)[:2]] == [(9, 3.0), (3, 2.0)]
    edge = [(c.params, c.score) for c in front(scored)]
    assert edge == [(1, 0.5), (3, 2.0), (9, 3.0)]


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        ({'population': 0}, 'the search needs population of at least 1'),
        ({'parents': 0}, 'parents of at least 1'),
        ({'touch': 1.5}, 'touch of at least 0 and at most 1'),
        ({'generations': -1}, 'generations of at least 0'),
    ],
)
def test_settings_out_of_range_are_named(plan, message):
    with pytest.raises(PETLError, match=message):
        NOAHEvolution(**plan)
