"""The lists of a data set: what they name, whether it is there, how many there are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import DatasetFacts, Split
from mmpetl.datasets.items import Item, folder_of, list_path, read_items
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.mini.storage import read_stamp
from mmpetl.datasets.subsets import sha256_of
from mmpetl.datasets.verify.findings import Finding

_SAMPLE_SEED = 0


def stamps_of(facts: DatasetFacts, root: Path) -> list[dict[str, Any]]:
    """Stamps of the drawn folders that the data set's lists lie in."""
    found = {}
    for split in facts.splits:
        for folder in list_path(facts, split, root).parents:
            if folder == root or root not in folder.parents:
                break
            stamp = read_stamp(folder)
            if stamp is not None:
                found[folder] = stamp
                break
    own = read_stamp(folder_of(facts, root))
    return [*found.values(), *([own] if own else [])]


def wrong_kind(is_mini: bool, folder: Path) -> Finding:
    """Drawn data where the official ones are expected, or the other way round."""
    if is_mini:
        return Finding(
            '',
            f"'{folder}' holds a drawn mini set, not the official data",
            'point the data root at the official data, or verify it as mini',
        )
    return Finding(
        '',
        f"'{folder}' holds no mini set: it has no stamp of the generator",
        'make it with mmpetl data make, or verify it as official data',
    )


def expected_size(
    facts: DatasetFacts, split: Split, manifest: dict[str, Any] | None
) -> int | None:
    """Samples of the official split, or of the drawn one that a manifest tells of."""
    if manifest is None:
        return split.size
    entry = manifest.get(key_of(facts, split))
    return None if entry is None else entry['count']


def key_of(facts: DatasetFacts, split: Split) -> str:
    """A split's entry in a manifest, whatever its folder is called by now."""
    return PurePosixPath(facts.path, split.file or split.images).as_posix()


def read(
    facts: DatasetFacts, split: Split, root: Path, manifest: dict[str, Any] | None
) -> tuple[list[Item] | None, list[Finding]]:
    """The samples of a split, or None, and what is wrong with its list."""
    path = list_path(facts, split, root)
    if not path.exists():
        if split.optional:
            return None, []
        return None, [
            Finding(split.name, f"there is no '{path}'", f'get it: {facts.source}')
        ]
    try:
        items = read_items(facts, split, root)
    except PETLError as error:
        return None, [Finding(split.name, str(error), 'get the list anew')]
    findings = [*_check_count(facts, split, root, items, manifest)]
    missing = [
        (item.where, path)
        for item in items
        for path in (item.path, item.mask, *item.others)
        if path is not None and not is_file(path)
    ]
    if missing:
        where, path = missing[0]
        findings.append(
            Finding(
                split.name,
                f"{len(missing)} listed files are missing, '{path}' ({where}) for one",
                'unpack the archive again, or check the folder names',
            )
        )
    by_key: dict[str, Item] = {}
    torn = [
        (by_key[key], item)
        for item in items
        if by_key.setdefault(key := identity(item), item).labels != item.labels
    ]
    if torn:
        one, other = torn[0]
        findings.append(
            Finding(
                split.name,
                f'{len(torn)} entries give a file another label than before, '
                f"'{one.path}' {one.labels} and {other.labels} ({other.where}) for one",
                'get the list anew: one of the labels is wrong',
            )
        )
    twice = [key for key, n in Counter(map(identity, items)).items() if n > 1]
    if twice:
        findings.append(
            Finding(
                split.name,
                f"{len(twice)} files are listed twice, '{twice[0]}' for one",
                'get the list anew',
            )
        )
    return items, findings


def _check_count(
    facts: DatasetFacts,
    split: Split,
    root: Path,
    items: Sequence[Item],
    manifest: dict[str, Any] | None,
) -> Iterable[Finding]:
    expected = expected_size(facts, split, manifest)
    if manifest is not None:
        entry = manifest.get(key_of(facts, split), {})
        if (
            'sha256' in entry
            and sha256_of(list_path(facts, split, root)) != (entry['sha256'])
        ):
            yield Finding(
                split.name,
                f"'{list_path(facts, split, root)}' is not the list that was drawn: "
                'its checksum differs',
                'remove the folder and make the mini set again',
            )
    if expected is None:
        yield Finding(
            split.name,
            f'{len(items):,} samples; copies of this set differ',
            'state the count with a result',
            fault=False,
        )
    elif len(items) != expected:
        yield Finding(
            split.name,
            f'{len(items):,} samples, expected {expected:,}',
            'get the list anew; a part of the archive may not be unpacked',
        )


def identity(item: Item) -> str:
    """What makes a sample the same one in another list of the same data set."""
    return item.key or str(item.path)


def chosen(
    entries: Sequence[Item], sample: int | None, partly: bool = True
) -> Sequence[Item]:
    """``sample`` of the entries, the same ones each time, in the list's order."""
    if not partly or sample is None or len(entries) <= sample:
        return entries
    indices = random.Random(_SAMPLE_SEED).sample(range(len(entries)), sample)
    return [entries[index] for index in sorted(indices)]
