"""Mini sets: small, drawn (one is real), in the official on-disk layouts.

``make(root)`` writes them below a data root, so that the recipes for the full sets
read them unchanged. Names are folders below the root, ``vtab-1k/digits`` for one.
"""

from __future__ import annotations

import contextlib
import difflib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.items import list_path, read_items
from mmpetl.datasets.subsets import sha256_of
from mmpetl.datasets.walk import check_utf8

from . import dense, images, letters, multi_task, study, videos
from .images import OWN_TASKS, VTAB_CLASSES, ImageCounts
from .storage import is_complete, read_stamp, write_once

__all__ = [
    'NAMES',
    'UPSTREAM',
    'describe',
    'is_made',
    'make',
    'names_for',
    'read_stamp',
]

Size = Literal['tiny', 'small']

_UPSTREAM_SEED = 11

_VERSION = 1
"""Rises when a set's content changes, so that older copies are drawn anew."""


@dataclass(frozen=True)
class _Set:
    """A set: what writes it, and how many pictures or clips each size has.

    Args:
        write: Called with the folder, the counts and the seed.
        counts: Per size, what ``write`` takes: mostly (train, val) or (train, val,
            test).
        like: The set whose seed it shares, where it shows the same pictures.
    """

    write: Callable[[Path, tuple[int, ...], int], None]
    counts: dict[str, tuple[int, ...]]
    like: str = ''


def _letters(side: int, clutter: bool, suffix: str) -> Callable:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        letters.write_letters(folder, *counts, side, clutter, suffix, seed)

    return write


def _videos(task: str, side: int) -> Callable:
    return lambda folder, counts, seed: videos.write_videos(
        folder, task, *counts, side, seed
    )


def _vtab(task: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        images.write_vtab(folder, task, ImageCounts(*counts), seed)

    return _Set(
        write, {'tiny': (max(8, VTAB_CLASSES[task]), 4, 8), 'small': (800, 200, 400)}
    )


def _fgvc(task: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        train, val, test, side = counts
        images.write_fgvc(folder, task, ImageCounts(train, val, test), side, seed)

    classes = images.FGVC_TASKS[task].classes
    return _Set(
        write, {'tiny': (0, 4, 4, 24), 'small': (4 * classes, classes, classes, 96)}
    )


def _own(task: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        counts = ImageCounts(*counts) if counts else None
        images.write_vtab_splits(folder, OWN_TASKS[task](counts, seed))

    return _Set(write, {'tiny': (20, 10, 10), 'small': ()})


def _corrupted(task: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        keep, *own = counts
        own = ImageCounts(*own) if own else None
        images.write_corrupted(folder, task, own, keep, seed)

    sizes = {'tiny': (4, 20, 10, 10), 'small': (150,)}
    return _Set(write, sizes, like=f'vtab-1k/{task}')


def _many_shot(name: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        study.write_many_shot(folder, name, *counts, seed)

    return _Set(write, {'tiny': (5, 1, 12), 'small': (5, 5, 500)})


def _shifted(id: str) -> _Set:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        study.write_shifted(folder, id, *counts, seed)

    return _Set(write, {'tiny': (40,), 'small': (1000,)})


def _voc(year: int) -> Callable:
    def write(folder: Path, counts: tuple[int, ...], seed: int) -> None:
        splits = dict(zip(('trainval', 'test')[: len(counts)], counts, strict=True))
        dense.write_voc(folder, year, splits, seed)

    return write


_SETS: dict[str, _Set] = {
    'letters': _Set(
        _letters(32, False, '.png'), {'tiny': (146, 73), 'small': (30000, 2920)}
    ),
    'letters_in_clutter': _Set(
        _letters(64, True, '.jpg'), {'tiny': (146, 73), 'small': (30000, 2920)}
    ),
    'moving_letters': _Set(
        _videos('moving_letters', 64), {'tiny': (24, 24), 'small': (7200, 720)}
    ),
    **{f'vtab-1k/{task}': _own(task) for task in OWN_TASKS},
    **{f'vtab-1k/{task}_c': _corrupted(task) for task in OWN_TASKS},
    **{f'vtab-1k/{task}': _vtab(task) for task in images.VTAB_CLASSES},
    **{f'fgvc/{task}': _fgvc(task) for task in images.FGVC_TASKS},
    'kinetics400': _Set(
        _videos('kinetics400', 80), {'tiny': (4, 2), 'small': (480, 120)}
    ),
    'ssv2': _Set(_videos('ssv2', 80), {'tiny': (4, 2), 'small': (480, 160)}),
    'hmdb51': _Set(_videos('hmdb51', 80), {'tiny': (4, 2), 'small': (360, 120)}),
    'hmdb51_frames': _Set(
        lambda folder, counts, seed: videos.write_frames(
            folder, 'hmdb51', *counts, 80, seed
        ),
        {'tiny': (4, 2), 'small': (36, 12)},
    ),
    'coco': _Set(
        lambda folder, counts, seed: dense.write_coco(folder, *counts, seed),
        {'tiny': (4, 2), 'small': (400, 80)},
    ),
    'VOCdevkit/VOC2007': _Set(_voc(2007), {'tiny': (4, 2), 'small': (200, 80)}),
    'VOCdevkit/VOC2012': _Set(_voc(2012), {'tiny': (4,), 'small': (200,)}),
    'ADEChallengeData2016': _Set(
        lambda folder, counts, seed: dense.write_ade20k(folder, *counts, seed),
        {'tiny': (4, 2), 'small': (400, 80)},
    ),
    'nyud_mt': _Set(
        lambda folder, counts, seed: multi_task.write_nyud_mt(folder, *counts, seed),
        {'tiny': (4, 2), 'small': (400, 80)},
    ),
    **{f'many_shot/{name}': _many_shot(name) for name in study.POOLS},
    'imagenet': _Set(
        lambda folder, counts, seed: study.write_imagenet(folder, *counts, seed),
        {'tiny': (1, 20, 40), 'small': (4, 1000, 1000)},
    ),
    **{
        facts.path: _shifted(facts.id)
        for facts in CATALOG.values()
        if facts.layout == 'classes'
    },
}

NAMES: tuple[str, ...] = tuple(_SETS)
"""Every set, as its folder below the data root."""

UPSTREAM: tuple[str, ...] = ('letters', 'letters_in_clutter', 'moving_letters')
"""The large sets that the mini backbones were trained on; made when asked for."""


def names_for(wanted: Iterable[str] | None = None) -> tuple[str, ...]:
    """Full names for names or their last parts (``digits``), or folders (``fgvc``).

    ``None`` stands for all but :data:`UPSTREAM`.

    Raises:
        ValueError: A name that no set has.
    """
    if wanted is None:
        return tuple(name for name in NAMES if name not in UPSTREAM)
    found: dict[str, None] = {}
    for part in wanted:
        matches = [
            name
            for name in NAMES
            if part in (name, name.rpartition('/')[2], name.partition('/')[0])
        ]
        if not matches:
            short = [name.rpartition('/')[2] for name in NAMES]
            near = difflib.get_close_matches(part, [*NAMES, *short], 1)
            hint = f'; nearest: {near[0]}' if near else ''
            raise ValueError(
                f'no mini set is called {part!r}{hint} (known: {", ".join(NAMES)})'
            )
        found.update(dict.fromkeys(matches))
    return tuple(found)


def make(
    root: str | Path,
    names: Iterable[str] | None = None,
    size: Size = 'small',
    seed: int = 0,
    report: Callable[[str, bool], None] | None = None,
) -> dict[str, Path]:
    """Write mini sets below a data root; what is complete is left as it is.

    Args:
        root: The folder that ``MMPETL_DATA`` is to name.
        names: As :func:`names_for` takes them.
        size: ``tiny`` is a handful of files for tests, ``small`` trains in minutes.
        seed: Same seed, same files, byte for byte.
        report: Called with each set's name when it is done, and whether it was made.

    Returns:
        Name to folder.

    Raises:
        ValueError: Unknown name or size, or a root that is no UTF-8.
        FileExistsError: A set's folder holds files that were not drawn here.
    """
    if size not in ('tiny', 'small'):
        raise ValueError(f"size must be 'tiny' or 'small', got {size!r}")
    check_utf8(root)
    folders = {}
    for name in names_for(names):
        recipe = _recipe(name, size, seed)
        own = _SETS[name]
        own_seed = _seed_of(own.like or name, seed)

        def write(partial: Path, own=own, own_seed=own_seed, recipe=recipe) -> None:
            own.write(partial, tuple(recipe['counts']), own_seed)

        made = write_once(Path(root), name, recipe, write, describe)
        if report is not None:
            report(name, made)
        folders[name] = Path(root) / name
    return folders


def describe(root: str | Path) -> dict[str, dict]:
    """What lies below a data root, by the list (or folder) of each split that is there.

    Args:
        root: Holds sets of the catalogue, or some of their folders.

    Returns:
        Path below ``root`` to ``count``, ``labels`` (those that occur, sorted) and, of
        a list, its ``sha256``.
    """
    found = {}
    for facts in CATALOG.values():
        for split in facts.splits:
            path = list_path(facts, split, Path(root))
            with contextlib.suppress(PETLError):  # not there
                items = read_items(facts, split, Path(root))
                labels = {label for item in items for label in item.labels}
                entry = {'count': len(items), 'labels': sorted(labels)}
                if split.file:
                    entry['sha256'] = sha256_of(path)
                found[path.relative_to(root).as_posix()] = entry
    return found


def _seed_of(name: str, seed: int) -> int:
    """A set's own seed: what is made beside it does not change it.

    Upstream sets are one fixed draw, that on which the shipped backbones were trained.
    """
    if name in UPSTREAM:
        return _UPSTREAM_SEED
    return seed * 2**32 + zlib.crc32(name.encode())


def _recipe(name: str, size: str, seed: int) -> dict:
    return {
        'name': name,
        'size': size,
        'seed': seed,
        'counts': list(_SETS[name].counts[size]),
        'version': _VERSION,
    }


def is_made(root: str | Path, name: str, size: Size = 'small', seed: int = 0) -> bool:
    """Whether :func:`make` has nothing left to do for one set."""
    return is_complete(Path(root) / name, _recipe(name, size, seed))
