"""Splits against each other: apart where they must be, joined where they say so."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.items import Item
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.subsets import STAMP as SUBSETS
from mmpetl.datasets.subsets import draw_lists, sha256_of
from mmpetl.datasets.verify.findings import Finding
from mmpetl.datasets.verify.lists import chosen, identity

TWINS = 0.02
"""Share of equal pictures in two splits that the sources themselves have: dSprites
repeats its first orientation, CIFAR-100 and PatchCamelyon hold a few pictures twice."""

JOINED = 'train800val200'


def disjoint_splits(facts: DatasetFacts) -> list[tuple[str, ...]]:
    """Groups of splits of which no two may share a sample."""
    if facts.id == 'hmdb51':
        return [('train', 'val'), ('train_2', 'val_2'), ('train_3', 'val_3')]
    joined = (JOINED, 'trainval')
    return [tuple(s.name for s in facts.splits if s.name not in joined)]


def check_overlap(
    facts: DatasetFacts, items: dict[str, list[Item]]
) -> Iterable[Finding]:
    """No file is in two splits that are to be apart; ``trainval`` is its two parts."""
    keys = {name: set(map(identity, entries)) for name, entries in items.items()}
    for group in disjoint_splits(facts):
        there = [name for name in group if name in keys]
        for index, one in enumerate(there):
            for other in there[index + 1 :]:
                both = keys[one] & keys[other]
                if both:
                    yield Finding(
                        other,
                        f"{len(both)} files are in '{one}' too, '{min(both)}' for one",
                        'results on it would be too good: get the official lists',
                    )
    if {'train', 'val', 'trainval'} <= keys.keys():
        yield from _check_trainval(items)


def _check_trainval(items: dict[str, list[Item]]) -> Iterable[Finding]:
    """The files of ``train`` and ``val``, with their labels, in whatever order."""
    parts = {identity(i): i.labels for i in (*items['train'], *items['val'])}
    whole = {identity(item): item for item in items['trainval']}
    todo = 'draw the subsets anew, or get the three lists from one source'
    if parts.keys() != whole.keys():
        yield Finding('trainval', 'it is not train and val together', todo)
        return
    odd = [item.where for key, item in whole.items() if item.labels != parts[key]]
    if odd:
        what = f'{len(odd)} labels differ from those of train and val ({odd[0]})'
        yield Finding('trainval', what, todo)


def _digest(item: Item) -> str:
    if not is_file(item.path):
        return ''  # a FIFO would be waited for
    try:
        return hashlib.sha256(item.path.read_bytes()).hexdigest()
    except OSError:
        return ''  # missing files are told of elsewhere


def check_content(
    items: dict[str, list[Item]], sample: int | None
) -> Iterable[Finding]:
    """VTAB's splits have picture files of their own, so content is compared."""
    hashes = {
        name: [_digest(item) for item in chosen(entries, sample, name == 'test')]
        for name, entries in items.items()
    }
    apart = [n for n in ('train800', 'val200', 'test') if n in hashes]
    for index, one in enumerate(apart):
        for other in apart[index + 1 :]:
            pool = set(hashes[one]) - {''}
            both = [h for h in hashes[other] if h in pool]
            if both:
                share = len(both) / min(len(pool), len(hashes[other]))
                yield Finding(
                    other,
                    f"{len(both)} of {len(hashes[other])} pictures are in '{one}' too",
                    'get the official split'
                    if share > TWINS
                    else 'so few are in the source itself',
                    fault=share > TWINS,
                )
    yield from _check_joined(items, hashes)


def _check_joined(
    items: dict[str, list[Item]], hashes: dict[str, list[str]]
) -> Iterable[Finding]:
    """``train800val200`` holds the pictures of the other two, with the same labels.

    In whatever order: TensorFlow Datasets interleaves the parts that it joins.
    """
    if not {'train800', 'val200', JOINED} <= items.keys():
        return
    parts = [*items['train800'], *items['val200']]
    whole = items[JOINED]
    if len(parts) != len(whole):
        return  # counts are told of elsewhere
    own = list(zip(hashes['train800'] + hashes['val200'], parts, strict=True))
    left = Counter((digest, item.labels) for digest, item in own)
    odd = []
    for digest, item in zip(hashes[JOINED], whole, strict=True):
        if left[digest, item.labels]:
            left[digest, item.labels] -= 1
        elif digest:  # missing files are told of elsewhere
            odd.append((digest, item))
    there = {digest for digest, _ in own}
    relabelled = [item.where for digest, item in odd if digest in there]
    other = [item.where for digest, item in odd if digest not in there]
    if relabelled:
        yield Finding(
            JOINED,
            f'{len(relabelled)} labels differ from those of train800 and val200 '
            f'({relabelled[0]})',
            'one of the lists is shifted or of another release: get all from one',
        )
    if other:
        yield Finding(
            JOINED,
            f'{len(other)} pictures differ from those of train800 and val200 '
            f'({other[0]})',
            'some projects export them separately; results may differ a little',
            fault=len(other) == len(whole),
        )


class _Stamp(msgspec.Struct):
    seed: Annotated[int, msgspec.Meta(ge=0)]
    sizes: dict[str, tuple[int, int]]
    sha256: str = ''


def check_draw(facts: DatasetFacts, folder: Path) -> Iterable[Finding]:
    """Subsets that were drawn here are those that their stamp says."""
    try:
        stamp = read_json(folder / SUBSETS, _Stamp)
        seed, sizes = stamp.seed, stamp.sizes[facts.id]
    except FileNotFoundError:
        yield Finding(
            '',
            f"there is no '{SUBSETS}': the subsets are not ours, or were not drawn",
            'official index lists are read as they are; say so with a result',
            fault=False,
        )
        return
    except (PETLError, KeyError):
        yield Finding('', f"'{folder / SUBSETS}' is damaged", 'draw the subsets anew')
        return
    pool = folder / facts.pool.file
    if not pool.is_file():
        yield Finding('', f"there is no '{pool}'", f'get it: {facts.source}')
        return
    if sha256_of(pool) != stamp.sha256:
        yield Finding(
            '',
            f"'{pool}' is not the list that the subsets were drawn from",
            'draw the subsets anew',
        )
        return
    for file, lines in draw_lists(folder, facts, seed, sizes).items():
        path = folder / file
        drawn = sorted(line.encode() for line in lines)
        if path.is_file() and sorted(path.read_bytes().splitlines()) != drawn:
            yield Finding(
                '',
                f"'{path}' is not what seed {seed} draws",
                'draw the subsets anew',
            )
