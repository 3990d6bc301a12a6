"""Labels: each class occurs, none is foreign, and all lists mean the same by them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.items import Item
from mmpetl.datasets.verify.findings import Finding, Report
from mmpetl.datasets.verify.lists import key_of


def check_classes(
    facts: DatasetFacts,
    items: dict[str, list[Item]],
    report: Report,
    manifest: dict[str, Any],
) -> list[Finding]:
    """The union of the splits holds each class, and labels run from 0."""
    labels = {
        name: {label for item in entries for label in item.labels}
        for name, entries in items.items()
    }
    union = set().union(*labels.values())
    if not union:
        return []
    if facts.layout == 'fgvc':
        return _check_ids(facts, labels, union, report)
    wanted = set(range(facts.num_classes))
    findings = []
    for name, found in labels.items():
        foreign = sorted(found - wanted)
        if foreign:
            findings.append(Finding(name, *_out_of_range(facts, items[name], foreign)))
    present = union & wanted
    if report.mini:
        drawn = [
            manifest.get(key_of(facts, split), {}).get('labels', [])
            for split in facts.splits
            if split.name in items
        ]
        wanted = set().union(*drawn)
    expected = len(wanted) if report.mini else facts.num_present
    report.classes = (len(present), expected)
    strange = present - wanted
    if (len(present) != expected or strange) and not findings:
        lacking = sorted(wanted - present)
        hint = f', none of class {lacking[0]} for one' if lacking else ''
        hint = f', class {min(strange)} should not be there' if strange else hint
        findings.append(
            Finding(
                '',
                f'{len(present)} classes occur, expected {expected}{hint}',
                'the class map is not the official one, or a list is cut short',
            )
        )
    return findings


def _out_of_range(
    facts: DatasetFacts, items: Sequence[Item], foreign: list[int]
) -> tuple[str, str]:
    first = next(item for item in items if set(item.labels) & set(foreign))
    if facts.layout in ('coco', 'voc'):
        return (
            f'objects of classes that are none of the {facts.num_classes} '
            f'({first.where})',
            'get the official annotations',
        )
    smallest = min(label for item in items for label in item.labels)
    top = facts.num_classes - 1
    if smallest == 1 and foreign == [facts.num_classes]:
        return (
            f'labels run from 1 to {facts.num_classes}: they are shifted by one, '
            f'0 to {top} is expected ({first.where})',
            'subtract one from every label of the list',
        )
    return (
        f'label {foreign[0]} is out of range 0 to {top} ({first.where})',
        'the list belongs to another class map: get the official one',
    )


def _check_ids(
    facts: DatasetFacts, labels: dict[str, set[int]], union: set[int], report: Report
) -> list[Finding]:
    """FGVC's ids are arbitrary: what counts is how many there are in all splits."""
    report.classes = (len(union), facts.num_classes)
    findings = []
    if len(union) != facts.num_classes:
        findings.append(
            Finding(
                '',
                f'the three JSON files hold {len(union)} class ids, expected '
                f'{facts.num_classes}',
                'they do not belong together, or one numbers its classes otherwise: '
                'get all three from one release',
            )
        )
    strange = {name: ids - labels.get('train', ids) for name, ids in labels.items()}
    for name, ids in strange.items():
        if ids:
            findings.append(
                Finding(
                    name,
                    f'{len(ids)} class ids are not in train.json, {min(ids)} for one',
                    'get all three files from one release',
                )
            )
    return findings


def check_folders(
    facts: DatasetFacts, items: dict[str, list[Item]]
) -> Iterable[Finding]:
    """Where a folder is a class, all lists must give its files the same label."""
    if facts.family not in ('image', 'video') or facts.layout == 'vtab':
        return
    seen: dict[str, Counter] = defaultdict(Counter)
    where: dict[tuple[str, int], tuple[str, Item]] = {}
    within: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name, entries in items.items():
        for item in entries:
            for label in item.labels:
                folder = item.path.parent.name
                seen[folder][label] += 1
                within[name, folder].add(label)
                where.setdefault((folder, label), (name, item))
    labels = {label for counter in seen.values() for label in counter}
    several = sum(len(found) > 1 for found in within.values())
    if len(seen) < len(labels) or len(seen) < 2 or several > len(within) / 2:
        return  # folders are not classes here, but parts of a download
    mixed = {folder: counter for folder, counter in seen.items() if len(counter) > 1}
    if mixed:
        folder, counter = next(iter(mixed.items()))
        (usual, _), (odd, _) = counter.most_common()[0], counter.most_common()[-1]
        name, item = where[folder, odd]
        yield Finding(
            name,
            f"{len(mixed)} class folders bear several labels: '{folder}' is {usual} "
            f'and {odd} ({item.where})',
            'the lists number their classes differently: get them from one release',
        )
