"""Operations that are counted follow the formula, and days follow from them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from mmpetl.benchmark import paper
from mmpetl.benchmark.paper import Assumptions, Cost, Flops, Work, cost_of, sum_of
from mmpetl.benchmark.paper_tables import tables
from mmpetl.benchmark.plan import choose_methods, read_plan
from mmpetl.config.compose import compose
from mmpetl.core import registered_methods

ROOT = Path(__file__).resolve().parents[2]


def test_counts_of_a_transformer_follow_the_formula():
    """Six blocks of 4 d^2 + 2 d h + 2 N d products per token, 65 tokens, h of 288."""
    config = compose('mini/digits', 'LinearProbe')
    counter = paper.Counter()
    probe = counter.count(config, 'mini/digits', {'type': 'LinearProbe'})
    n, d = 65, 96
    blocks = 6 * n * (4 * d * d + 2 * d * 288 + 2 * n * d)
    patches = 64 * 3 * 4 * 4 * d
    assert probe.forward == probe.step == probe.test == probe.trunk
    assert probe.forward == 2 * (blocks + patches)
    # The same group is counted once, whatever the recipe's classes.
    assert counter.count(config, 'mini/digits', {'type': 'LinearProbe'}) is probe


def test_what_trains_decides_what_goes_back():
    config = compose('mini/digits', 'LinearProbe')
    counter = paper.Counter()

    def count(**method):
        return counter.count(config, 'mini/digits', method)

    probe, full = count(type='LinearProbe'), count(type='Full')
    lora, side = count(type='LoRA', rank=4), count(type='LST', reduction=2)
    last = count(type='PartialK')
    assert full.step == pytest.approx(3 * probe.forward, rel=0.02)
    assert 2 * probe.forward < lora.step < 2.3 * probe.forward
    assert last.step < lora.step
    assert (probe.trunk, side.trunk) == (probe.forward,) * 2
    assert (full.trunk, lora.trunk) == (0, 0)


def test_methods_that_norm_over_the_batch_and_look_at_data_are_counted():
    config = compose('mini/digits', 'LinearProbe')
    counter = paper.Counter()
    for method in (
        {'type': 'HST', 'dims': [32, 48, 64], 'num_heads': [2, 4, 8]},
        {'type': 'GPS'},
        {'type': 'SCT'},
        {'type': 'ConvLoRA'},
    ):
        found = counter.count(config, 'mini/digits', method)
        assert found.step > found.forward > 0


def test_work_is_that_of_recipe_and_catalogue():
    work = paper.work_of(compose('vtab/svhn', 'LinearProbe'), 'vtab/svhn')
    assert (work.trained, work.tested, work.steps) == (100_000, 26_032, 1563)
    assert work.fixed
    work = paper.work_of(compose('ade20k', 'LinearProbe'), 'ade20k')
    assert (work.trained, work.steps, work.tested) == (2_560_000, 160_000, 2000)
    work = paper.work_of(compose('voc', 'LinearProbe'), 'voc')
    assert work.trained == 4 * 3 * (5011 + 11540)
    work = paper.work_of(compose('hmdb51', 'LinearProbe'), 'hmdb51')
    assert (work.trained, work.tested) == (90 * 3570, 1530 * 4 * 3)
    assert not work.fixed


def test_days_follow_from_operations():
    given = Assumptions('X', 100.0, 'TF32', 0.5, 0.8, 1000.0, 0.0)
    work = Work('r', 1000, 100, 10, 10, True)
    flops = Flops('g', 'm', 10**12, 3 * 10**12, 10**12, 10**12)
    found = cost_of(work, flops, 2, given)
    total = 2 * (1000 * 3e12 + 100 * 1e12)
    assert found.flops == pytest.approx(total)
    assert (found.runs, found.steps) == (2, 200)
    # 10 samples at 1,000 GFLOPs: large, so that nothing shares the device.
    assert (
        found.days == found.packed_days == pytest.approx(total / 100e12 / 0.5 / 86400)
    )
    # Two seeds of ten epochs see each picture once instead of twenty times.
    kept = total - 2 * (1000 - 1000 / 20) * 1e12
    assert found.kept_days == pytest.approx(kept / 100e12 / 0.5 / 86400)
    small = cost_of(work, Flops('g', 'm', 10**9, 3 * 10**9, 10**9, 0), 1, given)
    assert small.packed_days == pytest.approx(small.days * 0.5 / 0.8)
    assert small.kept_days == small.packed_days
    assert sum_of([found, found]).days == 2 * found.days
    assert sum_of([]) == Cost()


def test_the_tables_sum_what_they_list():
    pairs = [
        (Work(f'vtab/{n}', 1000, 100, 10, 10, False), Flops('V', m, 1, s, 1, 0))
        for n in 'ab'
        for m, s in (('LinearProbe', 10**15), ('LoRA', 2 * 10**15))
    ]
    pairs.append(
        (Work('coco', 50, 5, 1, 5, False), Flops('S', 'LoRA', 1, 10**15, 1, 0))
    )
    found = tables(pairs, 3, Assumptions())
    lines = found['recipes'].splitlines()
    assert [line.split(' | ')[0].strip('| ') for line in lines[2:]] == [
        'vtab (all)',
        'coco',
        '**all**',
    ]
    cells = [[c.strip() for c in line.strip('| ').split('|')] for line in lines[2:]]
    assert [row[1] for row in cells] == ['12', '3', '15']
    assert [row[2] for row in cells[:2]] == ['100', '50']
    total = sum(float(row[4].replace(',', '')) for row in cells[:2])
    assert float(cells[2][4].replace(',', '')) == pytest.approx(total, abs=0.11)
    assert '3 seeds' in found['assumptions']
    assert '| LoRA | 2,000,000.0 | 1,000,000.0 |' in found['methods']
    assert '| LinearProbe | 1,000,000.0 | – |' in found['methods']


def test_no_method_of_the_plan_is_forgotten():
    """But those of several tasks, and AIM, which looks at frames of pictures."""
    kept = runpy.run_path(str(ROOT / 'tools' / 'benchmark' / 'cost_on_paper.py'))
    asked = set(choose_methods(read_plan(kept['PLAN']).methods))
    counted = {method for _, method in kept['read_counts']()}
    left = {m for m in asked if registered_methods()[m].family == 'multi_task'}
    assert asked - counted == left | {'AIM'}
    assert counted <= asked


@pytest.mark.slow
def test_the_page_is_what_the_counts_give(monkeypatch, capsys):
    tool = ROOT / 'tools' / 'benchmark' / 'cost_on_paper.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), '--check'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    assert not end.value.code, capsys.readouterr()


@pytest.mark.slow
def test_counts_that_are_kept_are_those_of_today():
    """One pair of each backbone, counted again."""
    kept = runpy.run_path(str(ROOT / 'tools' / 'benchmark' / 'cost_on_paper.py'))
    known = kept['read_counts']()
    for recipe in ('vtab/cifar100', 'kinetics400', 'kinetics400_swin', 'ade20k', 'voc'):
        config = compose(recipe, 'LinearProbe')
        found = paper.Counter().count(config, recipe, {'type': 'BitFit'})
        assert found == known[found.group, 'BitFit']
