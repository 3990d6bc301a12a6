"""What a design can reach, against counting, simulation and printed numbers."""

from __future__ import annotations

import io
import itertools
import math
import random
from pathlib import Path

import pytest

from mmpetl.benchmark.designs import (
    Design,
    Place,
    designs_of,
    least_p,
    least_p_friedman,
    num_for_effect,
    num_needed,
    num_needed_nemenyi,
    num_pictures,
)
from mmpetl.benchmark.paired import mcnemar
from mmpetl.benchmark.plan import read_plan, resolve
from mmpetl.benchmark.records import Job
from mmpetl.benchmark.statistics import wilcoxon_p
from mmpetl.core import PETLError


@pytest.mark.parametrize('num', [1, 3, 5, 6, 14])
def test_the_least_p_is_what_the_tests_give_at_their_most_extreme(num):
    # All differences have one sign, and no two are alike.
    assert wilcoxon_p([i + 1.0 for i in range(num)]) == pytest.approx(least_p(num))
    assert mcnemar(num, 0).p == pytest.approx(least_p(num))
    # Of the 2 ** num ways to give signs, two are as extreme: all plus and all minus.
    signs = list(itertools.product((-1, 1), repeat=num))
    extreme = sum(abs(sum(s)) == num for s in signs)
    assert least_p(num) == extreme / len(signs)


def test_nothing_observed_shows_nothing():
    assert least_p(0) == least_p(1) == 1.0


@pytest.mark.parametrize(('k', 'n'), [(3, 2), (3, 3), (2, 5)])
def test_the_least_p_of_friedman_is_that_of_ranks_that_all_agree(k, n):
    tasks = list(itertools.product(itertools.permutations(range(k)), repeat=n))
    alike = sum(len(set(orders)) == 1 for orders in tasks)
    assert least_p_friedman(k, n) == pytest.approx(alike / len(tasks))


def test_how_many_are_needed_is_the_least_number_that_is_enough():
    # 2 ** -5 = 0.031 and 2 ** -4 = 0.0625: six.
    assert num_needed(0.05) == 6
    # 528 pairs of 33 methods: 528 * 2 ** -14 = 0.032, and * 2 ** -13 = 0.064: fifteen.
    assert num_needed(0.05, 528) == 15
    assert num_needed(0.01) == 8
    # Strictly below: 2 ** -3 is not below itself.
    assert num_needed(0.125) == 5


def test_the_table_in_the_docs_is_that_of_the_functions():
    docs = Path(__file__).parents[2] / 'docs' / 'reading_results.md'
    text = docs.read_text(encoding='utf-8')
    needed = [num_needed(0.05, k * (k - 1) // 2) for k in (10, 20, 33)]
    assert (
        f'of 10, 20, 33 methods | `m 2^(1 - n)` | {", ".join(map(str, needed))} |'
        in (text)
    )
    assert least_p_friedman(3, 3) < 0.05 < least_p_friedman(3, 2)
    assert num_needed() == 6


def test_nemenyi_needs_as_many_tasks_as_make_the_difference_possible():
    # Demsar's table 5: q = 2.343 for three. CD = 2.343 sqrt(12 / (6 N)) <= 2 where
    # N >= 2 * 2.343 ** 2 / 4 = 2.74; for two 1.960: 1.96 ** 2 * 6 / 6 = 3.84.
    assert num_needed_nemenyi(3) == 3
    assert num_needed_nemenyi(2) == 4


def test_the_number_for_an_effect_is_that_of_tables():
    # Cohen (1988), paired t, d = 0.5, power 0.8, alpha 0.05: 34 pairs, 33.37 before it
    # is rounded; G*Power's signed-rank test for normal differences: 35.
    assert num_for_effect(0.5, 1.0) == math.ceil(34 * math.pi / 3)
    assert num_for_effect(-0.5, 1.0) == num_for_effect(0.5, 1.0)
    # A huge effect cannot need fewer than the test needs at all.
    assert num_for_effect(100.0, 1.0) == num_needed(0.05)
    assert num_for_effect(1.0, 0.0) == num_needed(0.05)
    assert num_for_effect(0.0, 1.0) is None
    assert num_for_effect(1e-9, 1.0) is None


@pytest.mark.slow
def test_the_number_for_an_effect_has_the_power_that_it_says():
    rng = random.Random(0)
    num = num_for_effect(0.8, 1.0, power=0.8)
    found = sum(
        wilcoxon_p([rng.gauss(0.8, 1.0) for _ in range(num)]) < 0.05
        for _ in range(2000)
    )
    # Four standard errors of a share of 2,000.
    assert found / 2000 == pytest.approx(0.8, abs=0.04)


def test_pictures_for_a_difference_are_those_of_the_formula():
    # By hand, d = 0.1, D = 0.3: (1.959964 * 0.547723 + 0.841621 * 0.538516) / 0.1
    # = 15.2674, squared 233.09.
    assert num_pictures(0.1, 0.3) == 234
    with pytest.raises(PETLError, match='takes 0 <'):
        num_pictures(0.4, 0.3)
    with pytest.raises(PETLError, match='between 0 and 1'):
        num_pictures(0.1, 0.3, power=1.0)


def test_a_small_design_says_what_it_cannot():
    design = Design('mini', 33, 3, 2)
    assert not design.reaches
    first, second = design.sentences()
    assert first == (
        'mini: 33 methods, 3 tasks, 2 seeds: over tasks, this design cannot reach '
        'p < 0.05 for two methods (least p 0.25; 6 tasks can; corrected for all 528 '
        'pairs cannot, least p 1, 15 tasks can).'
    )
    assert '2 seeds cannot reach p < 0.05 (least p 0.5; 6 seeds can)' in second
    assert design.to_json()['tasks_needed_corrected'] == 15


def test_a_large_design_says_what_it_can():
    design = Design('vtab', 3, 19, 3)
    assert design.reaches
    assert design.reaches_all
    assert design.ranks_reach
    first, second = design.sentences()
    assert (
        'can reach p < 0.05 for two methods (least p 3.81e-06; corrected for' in first
    )
    assert 'all 3 pairs can, least p 1.14e-05)' in first
    assert 'this can be reached' in second


def test_designs_without_anything_to_compare_say_so():
    assert Design('x', 1, 5, 3).sentences() == [
        'x: 1 method, 5 tasks, 3 seeds: nothing to compare'
    ]
    assert 'One seed has no spread' in Design('x', 2, 6, 1).sentences()[1]


def test_a_plan_is_one_design_for_each_set_of_recipes():
    jobs = [
        Job(f'vtab/{task}', method, seed)
        for task in ('svhn', 'dtd')
        for method in ('LoRA', 'SSF')
        for seed in (1, 2)
    ]
    # BitFit lacks a task, SSF a seed of one; kinetics400 is a set of its own.
    jobs += [Job('vtab/dtd', 'BitFit', 1), Job('kinetics400', 'LoRA', 1)]
    jobs.remove(Job('vtab/dtd', 'SSF', 2))
    jobs.append(Job('vtab/svhn', 'LoRA', 9, stage='tune'))
    assert designs_of(jobs) == [
        Design('vtab', 2, 2, 1),
        Design('kinetics400', 1, 1, 1),
    ]


def test_recipes_of_a_folder_are_as_many_designs_as_tables():
    """Images, clips and two tasks of the mini set: three backbones and metrics."""
    recipes = ['mini/digits', 'mini/textures', 'mini/hmdb51_frames', 'mini/nyud_mt']
    plan = read_plan('mini', recipes=recipes, methods=['BitFit', 'LoRA'])
    resolved = resolve(plan)
    assert resolved.places['mini/digits'] == Place('mini', 'mini ViT', 'top1')
    assert resolved.places['mini/nyud_mt'].metric == 'miou'
    found = designs_of(resolved.jobs, places=resolved.places)
    assert sorted(d.num_tasks for d in found) == [1, 1, 2]
    names = [d.name for d in found]
    assert len(set(names)) == 3
    assert 'mini, mini ViT, top1' in names
    # Recipes without a folder become one table where their sets are of one benchmark.
    places = {name: Place('dense', 'Swin-T', 'miou') for name in ('a', 'b')}
    assert designs_of([Job('a', 'LoRA', 1), Job('b', 'LoRA', 1)], places=places) == [
        Design('dense', 1, 2, 1)
    ]


def test_a_dry_run_says_it():
    from rich.console import Console

    from mmpetl.benchmark.progress import print_designs

    jobs = [
        Job(f'mini/{task}', method, seed)
        for task in 'abc'
        for method in ('LoRA', 'SSF', 'GPS')
        for seed in (1, 2)
    ]
    console = Console(record=True, width=60, file=io.StringIO())
    print_designs(jobs, console)
    lines = console.export_text().splitlines()
    assert lines == Design('mini', 3, 3, 2).sentences()
    assert lines[0].startswith('mini: 3 methods, 3 tasks, 2 seeds: over tasks, this')
