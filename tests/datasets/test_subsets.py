"""Drawn subsets: nested, balanced, apart, and the same every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmpetl.core import PETLError
from mmpetl.datasets.subsets import draw_order, hold_out, sets_of, write_subsets


def test_prefixes_are_balanced_and_complete():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 50)).tolist()
    order = draw_order(labels)
    assert sorted(order) == list(range(500))
    for count in (10, 50, 200):
        assert set(Counter(labels[i] for i in order[:count]).values()) == {count // 10}
    assert draw_order(labels) == order
    assert draw_order(labels, seed=1) != order


def test_a_class_that_runs_out_drops_out():
    labels = [0] * 2 + [1] * 10
    order = draw_order(labels)
    assert Counter(labels[i] for i in order[:4]) == {0: 2, 1: 2}
    assert Counter(labels[i] for i in order[:8]) == {0: 2, 1: 6}


def test_validation_pictures_are_the_classes_shares():
    labels = [0] * 70 + [1] * 30
    train, val = hold_out(labels, draw_order(labels), 11)
    # 7.7 and 3.3 of 11: the larger remainder takes what is left over
    assert Counter(labels[i] for i in val) == {0: 8, 1: 3}
    assert sorted(train + val) == list(range(100))


def test_folds_part_a_subset():
    labels = [k % 4 for k in range(80)]
    chosen = draw_order(labels)[:40]
    vals = [set(hold_out(labels, chosen, 8, fold)[1]) for fold in range(5)]
    assert set().union(*vals) == set(chosen)
    assert all(len(val) == 8 for val in vals)
    with pytest.raises(PETLError, match='too few for fold 6'):
        hold_out(labels, chosen, 8, 5)


@pytest.fixture
def pool(tmp_path) -> Path:
    """CIFAR-100's training list in its official size; no pictures are looked up."""
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % 100)
    lines = [f'images/train/{i:06d}.png {label}\n' for i, label in enumerate(labels)]
    (tmp_path / 'train.txt').write_text(''.join(lines))
    return tmp_path


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_official_sizes_are_drawn_nested(pool):
    stamp = write_subsets(pool, sets_of('cifar100'))
    sizes = {'500': 500, '1k': 1_000, '5k': 5_000, '10k': 10_000, 'full': 50_000}
    before: set[str] = set()
    for name, size in sizes.items():
        train, val, both = (
            lines_of(pool / name / f'{part}.txt')
            for part in ('train', 'val', 'trainval')
        )
        assert len(both) == size == len(set(both))
        assert set(train) | set(val) == set(both)
        assert len(train) + len(val) == size
        assert both == sorted(both)
        counts = Counter(line.rpartition(' ')[2] for line in val)
        assert set(counts.values()) == {len(val) // 100}
        assert before <= set(both)
        before = set(both)
    assert len(lines_of(pool / 'full/val.txt')) == 1_000
    assert (pool / '500/val_fold1.txt').read_text() == (
        pool / '500/val.txt'
    ).read_text()
    assert json.loads((pool / 'subsets.json').read_text()) == stamp
    assert stamp['sizes']['cifar100_full'] == [49_000, 1_000]


def test_lists_of_others_are_not_replaced(pool):
    (pool / '1k').mkdir()
    (pool / '1k/train.txt').write_text('mine 0\n')
    with pytest.raises(PETLError, match=r"1k/train.txt' was not drawn here"):
        write_subsets(pool, sets_of('cifar100'))
    assert (pool / '1k/train.txt').read_text() == 'mine 0\n'
    assert not (pool / '500').exists()


def test_a_list_that_is_too_short_leaves_nothing_behind(pool):
    (pool / 'train.txt').write_text('a.png 0\nb.png 1\n')
    with pytest.raises(PETLError, match='takes 500 pictures, the training list has 2'):
        write_subsets(pool, sets_of('cifar100'))
    assert [path.name for path in pool.iterdir()] == ['train.txt']
    with pytest.raises(PETLError, match="drawn from 'cifar10'. There are: cifar100,"):
        sets_of('cifar10')
