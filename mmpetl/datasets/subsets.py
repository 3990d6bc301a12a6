"""Drawn splits: a training set at several sizes, with validation pictures set apart.

The study "Lessons Learned from a Unifying Empirical Study of Parameter-Efficient
Transfer Learning", https://arxiv.org/abs/2409.16434, names its index lists but we know
only their sizes. **These draws are ours**: nested (a larger subset holds the smaller
one), balanced over classes as far as the classes reach, and fixed by a seed. Results on
them are of the same size of data, not of the same pictures. Whoever has the official
index lists writes them as ``<size>/{train,val,trainval}.txt`` and they are read as they
are.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.core import PETLError
from mmpetl.core.part_files import whole_file
from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.lines import read_labelled

STAMP = 'subsets.json'
"""Says from which list, by which seed and rule the subsets of a folder were drawn."""

RULE = 1
"""Rises when the same seed draws other pictures."""


def draw_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Indices in the order in which subsets take them: the first n are the subset.

    Classes take turns, in a random order of pictures within each, so that any prefix is
    as balanced as it can be. A class that runs out drops out.

    Args:
        labels: Label of each picture of the whole training set, in the list's order.
        seed: Same labels, same seed, same order.
    """
    members = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    turns = []
    for label, indices in members.items():
        shuffled = np.random.default_rng([seed, label]).permutation(indices)
        turns += [(rank, label, int(index)) for rank, index in enumerate(shuffled)]
    return [index for _, _, index in sorted(turns)]


def hold_out(
    labels: Sequence[int], chosen: Sequence[int], count: int, fold: int = 0
) -> tuple[list[int], list[int]]:
    """Training and validation indices of a subset; each class gives its share.

    Args:
        labels: Label of each picture of the whole training set.
        chosen: Indices of the subset, in the order of :func:`draw_order`.
        count: Validation pictures.
        fold: Which part of each class is held out, from 0; fold 0 takes the last ones.

    Raises:
        PETLError: There are not enough pictures for that fold.
    """
    members = defaultdict(list)
    for index in chosen:
        members[labels[index]].append(index)
    shares = {k: count * len(v) / len(chosen) for k, v in members.items()}
    quota = {k: int(share) for k, share in shares.items()}
    # What is left over goes to the largest remainders, the smaller label first.
    order = sorted(shares, key=lambda k: (quota[k] - shares[k], k))
    for label in order[: count - sum(quota.values())]:
        quota[label] += 1
    val: set[int] = set()
    for label, indices in members.items():
        end = len(indices) - fold * quota[label]
        if end < quota[label]:
            raise PETLError(
                f'class {label} has {len(indices)} pictures in the subset, too few for '
                f'fold {fold + 1} of {quota[label]}.'
            )
        val.update(indices[end - quota[label] : end])
    return [i for i in chosen if i not in val], [i for i in chosen if i in val]


def sets_of(folder: str) -> tuple[DatasetFacts, ...]:
    """Sets of the catalogue that are drawn from one folder's training list.

    Args:
        folder: ``cifar100``, ``resisc45``, ``clevr_dist`` or ``imagenet``.

    Raises:
        PETLError: No set is drawn from it.
    """
    found = tuple(f for f in CATALOG.values() if f.pool and f.folder == folder)
    if not found:
        known = dict.fromkeys(f.folder for f in CATALOG.values() if f.pool)
        raise PETLError(
            f"No subsets are drawn from '{folder}'. There are: {', '.join(known)}."
        )
    return found


def write_subsets(
    folder: Path,
    sets: Sequence[DatasetFacts],
    seed: int = 0,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Draw the subsets of a training set and write their lists beside it.

    Args:
        folder: Holds the list of the whole training set.
        sets: As :func:`sets_of` gives them.
        seed: Of the draw.
        sizes: Training and validation pictures by id, for a stand-in that is smaller
            than the official set.

    Returns:
        What the stamp says: the rule, the seed, the list drawn from and the sizes.

    Raises:
        PETLError: The training list is missing or too short, or lists are there that
            were not drawn here.
    """
    pool = sets[0].pool.file
    lines = [f'{name} {label}' for _, name, label in read_labelled(folder / pool)]
    labels = [int(line.rpartition(' ')[2]) for line in lines]
    stamp = {
        'drawn_by': 'mmpetl',
        'rule': RULE,
        'seed': seed,
        'list': pool,
        'sha256': sha256_of(folder / pool),
        'sizes': {},
    }
    if not (folder / STAMP).is_file():
        for facts in sets:
            if (folder / facts.split('train').file).exists():
                raise PETLError(
                    f"'{folder / facts.split('train').file}' was not drawn here and is "
                    'not replaced; move it away to draw anew.'
                )
    order = draw_order(labels, seed)
    drawn = {}
    for facts in sets:
        train, val = (sizes or {}).get(
            facts.id, (facts.split('train').size, facts.split('val').size)
        )
        stamp['sizes'][facts.id] = [train, val]
        drawn |= _lists(facts, labels, order, train, val)
    # Nothing is written unless all sizes can be drawn.
    for file, chosen in drawn.items():
        _write(folder / file, [lines[index] for index in chosen])
    _replace(folder / STAMP, json.dumps(stamp, indent=1) + '\n')
    return stamp


def _lists(
    facts: DatasetFacts, labels: list[int], order: list[int], train: int, val: int
) -> dict[str, list[int]]:
    """Indices by list file, in ascending order as the whole list has them."""
    if train + val > len(order):
        raise PETLError(
            f'{facts.id} takes {train + val:,} pictures, the training list has '
            f'{len(order):,}.'
        )
    chosen = order[: train + val]
    base = facts.split('train').file
    lists = {}
    for fold in range(max(facts.folds, 1)):
        parts = dict(
            zip(('train', 'val'), hold_out(labels, chosen, val, fold), strict=True)
        )
        for part, indices in parts.items():
            name = base.replace('train.txt', f'{part}_fold{fold + 1}.txt')
            if facts.folds:
                lists[name] = sorted(indices)
            if fold == 0:
                lists[facts.split(part).file] = sorted(indices)
    for split in facts.splits:
        if split.name == 'trainval':
            lists[split.file] = sorted(chosen)
    return lists


def draw_lists(
    folder: Path, facts: DatasetFacts, seed: int, sizes: tuple[int, int]
) -> dict[str, list[str]]:
    """The lines that each list of a set should hold, by its file.

    Args:
        folder: Holds the list of the whole training set.
        facts: One set that is drawn from it.
        seed: Of the draw.
        sizes: Training and validation pictures.
    """
    lines = [
        f'{name} {label}' for _, name, label in read_labelled(folder / facts.pool.file)
    ]
    labels = [int(line.rpartition(' ')[2]) for line in lines]
    lists = _lists(facts, labels, draw_order(labels, seed), *sizes)
    return {file: [lines[i] for i in chosen] for file, chosen in lists.items()}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, ''.join(f'{line}\n' for line in lines))


def _replace(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, 'utf-8')
