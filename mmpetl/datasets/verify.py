"""Whether the data on disk are the right ones: found, expected, what to do.

:func:`verify` reads every list of a data set, looks up every file it names, opens a
sample of them (or all), and holds what it found against the catalogue. A mini set is
held against its own stamp instead, and never passes for the official data.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import DatasetFacts, Split
from mmpetl.datasets.items import Item, folder_of, list_path, read_items
from mmpetl.datasets.mini.storage import read_stamp
from mmpetl.datasets.subsets import STAMP as SUBSETS
from mmpetl.datasets.subsets import draw_lists, sha256_of

Progress = Callable[[int, int], None]
"""Called with files done and files to do, as files are opened."""

TWINS = 0.02
"""Share of equal pictures in two splits that the sources themselves have: dSprites
repeats its first orientation, CIFAR-100 and PatchCamelyon hold a few pictures twice."""

_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Finding:
    """One thing that is not as expected.

    Args:
        split: Where; empty for the data set as a whole.
        what: What was found, with the first place it was found at.
        todo: What to do about it.
        fault: False for a remark that does not make the data set faulty.
    """

    split: str
    what: str
    todo: str
    fault: bool = True


@dataclass
class Report:
    """What :func:`verify` found of one data set.

    Args:
        id: The data set.
        folder: Where it was looked for.
        present: Whether there is anything.
        mini: Whether it is a drawn stand-in.
        counts: Split to samples found and expected, None where copies differ.
        classes: Classes found and expected, None where nothing was read.
        opened: Files that were opened.
        listed: Files that the lists name.
        findings: What is wrong, and remarks.
    """

    id: str
    folder: str
    present: bool = True
    mini: bool = False
    counts: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    classes: tuple[int | None, int] = (None, 0)
    opened: int = 0
    listed: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """Findings that make the data set faulty."""
        return [finding for finding in self.findings if finding.fault]

    @property
    def state(self) -> Literal['absent', 'faulty', 'healthy', 'healthy mini set']:
        """One word for it all."""
        if not self.present:
            return 'absent'
        if self.faults:
            return 'faulty'
        return 'healthy mini set' if self.mini else 'healthy'

    @property
    def ok(self) -> bool:
        """Whether training may begin."""
        return self.present and not self.faults

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), 'state': self.state}


def verify(
    facts: DatasetFacts,
    root: str | Path,
    sample: int | None = 64,
    mini: bool = False,
    workers: int = 4,
    progress: Progress | None = None,
) -> Report:
    """Look at one data set.

    Args:
        facts: Which, a row of the catalogue.
        root: The data root.
        sample: Files to open in each split; None opens all.
        mini: Expect a mini set, and hold it against its own stamp.
        workers: Threads that open files.
        progress: Told of every file opened.

    Returns:
        What was found; nothing is raised for faulty data.
    """
    root = Path(root).expanduser()
    folder = folder_of(facts, root)
    report = Report(facts.id, str(folder), classes=(None, facts.num_present))
    if not folder.is_dir():
        report.present = False
        report.findings.append(
            Finding('', f"there is no folder '{folder}'", f'get it: {facts.source}')
        )
        return report
    stamps = _stamps(facts, root)
    report.mini = bool(stamps)
    if report.mini != mini:
        report.findings.append(_wrong_kind(report.mini, folder))
    manifest: dict[str, Any] = {}
    for stamp in stamps:
        manifest |= stamp.get('manifest', {})
    items: dict[str, list[Item]] = {}
    for split in facts.splits:
        found, findings = _read(facts, split, root, manifest if report.mini else None)
        report.findings += findings
        if found is not None:
            items[split.name] = found
            expected = _expected(facts, split, root, manifest if report.mini else None)
            report.counts[split.name] = (len(found), expected)
    report.listed = sum(map(len, items.values()))
    report.findings += _check_classes(facts, items, report, manifest, root)
    report.findings += _check_folders(facts, items)
    report.findings += _check_overlap(facts, items)
    if facts.layout == 'vtab':
        report.findings += _check_content(items, sample)
    if facts.pool is not None:
        report.findings += _check_draw(facts, folder)
    report.findings += _check_files(facts, items, sample, workers, progress, report)
    return report


# --- lists -------------------------------------------------------------------


def _stamps(facts: DatasetFacts, root: Path) -> list[dict[str, Any]]:
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


def _wrong_kind(is_mini: bool, folder: Path) -> Finding:
    if is_mini:
        return Finding(
            '',
            f"'{folder}' holds a drawn mini set, not the official data",
            'point the data root at the official data, or verify it as mini',
        )
    return Finding(
        '',
        f"'{folder}' holds no mini set: it has no stamp of the generator",
        'make it with tools/misc/make_mini_data.py, or verify it as official data',
    )


def _expected(
    facts: DatasetFacts, split: Split, root: Path, manifest: dict[str, Any] | None
) -> int | None:
    if manifest is None:
        return split.size
    entry = manifest.get(_key(facts, split, root))
    return None if entry is None else entry['count']


def _key(facts: DatasetFacts, split: Split, root: Path) -> str:
    return list_path(facts, split, root).relative_to(root).as_posix()


def _read(
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
        if path is not None and not path.is_file()
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
    twice = [key for key, n in Counter(map(_identity, items)).items() if n > 1]
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
    expected = _expected(facts, split, root, manifest)
    if manifest is not None:
        entry = manifest.get(_key(facts, split, root), {})
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


def _identity(item: Item) -> str:
    """What makes a sample the same one in another list of the same data set."""
    return item.key or str(item.path)


# --- labels ------------------------------------------------------------------


def _check_classes(
    facts: DatasetFacts,
    items: dict[str, list[Item]],
    report: Report,
    manifest: dict[str, Any],
    root: Path,
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
            manifest.get(_key(facts, split, root), {}).get('labels', [])
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


def _check_folders(
    facts: DatasetFacts, items: dict[str, list[Item]]
) -> Iterable[Finding]:
    """Where a folder is a class, all lists must give its files the same label."""
    if facts.family not in ('image', 'video') or facts.layout == 'vtab':
        return
    seen: dict[str, Counter] = defaultdict(Counter)
    where: dict[tuple[str, int], tuple[str, Item]] = {}
    for name, entries in items.items():
        for item in entries:
            for label in item.labels:
                folder = item.path.parent.name
                seen[folder][label] += 1
                where.setdefault((folder, label), (name, item))
    labels = {label for counter in seen.values() for label in counter}
    if len(seen) < len(labels) or len(seen) < 2:
        return  # folders are not classes here
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


# --- overlap -----------------------------------------------------------------


def disjoint_splits(facts: DatasetFacts) -> list[tuple[str, ...]]:
    """Groups of splits of which no two may share a sample."""
    if facts.id == 'hmdb51':
        return [('train', 'val'), ('train_2', 'val_2'), ('train_3', 'val_3')]
    joined = ('train800val200', 'trainval')
    return [tuple(s.name for s in facts.splits if s.name not in joined)]


def _check_overlap(
    facts: DatasetFacts, items: dict[str, list[Item]]
) -> Iterable[Finding]:
    """No file is in two splits that are to be apart; ``trainval`` is its two parts."""
    keys = {name: set(map(_identity, entries)) for name, entries in items.items()}
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
        if keys['trainval'] != keys['train'] | keys['val']:
            yield Finding(
                'trainval',
                'it is not train and val together',
                'draw the subsets anew, or get the three lists from one source',
            )


def _digest(item: Item) -> str:
    try:
        return hashlib.sha256(item.path.read_bytes()).hexdigest()
    except OSError:
        return ''  # missing files are told of elsewhere


def _check_content(
    items: dict[str, list[Item]], sample: int | None
) -> Iterable[Finding]:
    """VTAB's splits have picture files of their own, so content is compared."""
    hashes = {
        name: [_digest(item) for item in _chosen(entries, sample, name == 'test')]
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
    """``train800val200`` is the other two, in order: pictures and labels."""
    if not {'train800', 'val200', 'train800val200'} <= items.keys():
        return
    parts = [*items['train800'], *items['val200']]
    whole = items['train800val200']
    name = 'train800val200'
    if len(parts) != len(whole):
        return  # counts are told of elsewhere
    labels = [
        a.where for a, b in zip(whole, parts, strict=True) if a.labels != b.labels
    ]
    if labels:
        yield Finding(
            name,
            f'{len(labels)} labels differ from those of train800 and val200 '
            f'({labels[0]})',
            'one of the lists is shifted or of another release: get all from one',
        )
    own = hashes['train800'] + hashes['val200']
    pairs = zip(whole, hashes[name], own, strict=True)
    other = [item.where for item, a, b in pairs if a and b and a != b]
    if other:
        yield Finding(
            name,
            f'{len(other)} pictures differ from those of train800 and val200 '
            f'({other[0]})',
            'some projects export them separately; results may differ a little',
            fault=len(other) == len(whole),
        )


def _check_draw(facts: DatasetFacts, folder: Path) -> Iterable[Finding]:
    """Subsets that were drawn here are those that their stamp says."""
    try:
        stamp = json.loads((folder / SUBSETS).read_text('utf-8'))
        seed, sizes = stamp['seed'], stamp['sizes'][facts.id]
    except FileNotFoundError:
        yield Finding(
            '',
            f"there is no '{SUBSETS}': the subsets are not ours, or were not drawn",
            'official index lists are read as they are; say so with a result',
            fault=False,
        )
        return
    except (ValueError, KeyError, TypeError):
        yield Finding('', f"'{folder / SUBSETS}' is damaged", 'draw the subsets anew')
        return
    pool = folder / facts.pool.file
    if not pool.is_file():
        yield Finding('', f"there is no '{pool}'", f'get it: {facts.source}')
        return
    if sha256_of(pool) != stamp.get('sha256'):
        yield Finding(
            '',
            f"'{pool}' is not the list that the subsets were drawn from",
            'draw the subsets anew',
        )
        return
    for file, lines in draw_lists(folder, facts, seed, tuple(sizes)).items():
        path = folder / file
        drawn = [line.encode() for line in lines]
        if path.is_file() and path.read_bytes().splitlines() != drawn:
            yield Finding(
                '',
                f"'{path}' is not what seed {seed} draws",
                'draw the subsets anew',
            )


# --- files -------------------------------------------------------------------


def _chosen(
    entries: Sequence[Item], sample: int | None, partly: bool = True
) -> Sequence[Item]:
    """``sample`` of the entries, the same ones each time, in the list's order."""
    if not partly or sample is None or len(entries) <= sample:
        return entries
    indices = random.Random(_SAMPLE_SEED).sample(range(len(entries)), sample)
    return [entries[index] for index in sorted(indices)]


def _check_files(
    facts: DatasetFacts,
    items: dict[str, list[Item]],
    sample: int | None,
    workers: int,
    progress: Progress | None,
    report: Report,
) -> Iterable[Finding]:
    """Open files in threads; the first bad one of each split is named."""
    jobs = [
        (name, item)
        for name, entries in items.items()
        for item in _chosen(entries, sample)
        if item.path.is_file()
    ]
    bad: dict[str, list[str]] = defaultdict(list)
    done = 0
    pending: dict[Future, str] = {}
    queue = iter(jobs)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            while True:
                # A bounded queue: millions of files are not millions of futures.
                for name, item in queue:
                    pending[pool.submit(fault_of, facts, item)] = name
                    if len(pending) >= 8 * workers:
                        break
                if not pending:
                    break
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    problem = future.result()
                    name = pending.pop(future)
                    if problem:
                        bad[name].append(problem)
                done += len(finished)
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report.opened = len(jobs)
    for name, problems in bad.items():
        yield Finding(
            name,
            f'{len(problems)} files are damaged: {min(problems)}',
            'fetch or unpack them again',
        )


def fault_of(facts: DatasetFacts, item: Item) -> str | None:
    """Open a sample's files; a line if one of them is damaged or a map is wrong."""
    try:
        problem = _looks_wrong(item.path)
        if problem:
            return problem
        size = _open_video(item.path) if facts.family == 'video' else _open(item.path)
        if item.mask is None or not item.mask.is_file():
            return None
        return _looks_wrong(item.mask) or _fault_of_mask(facts, item.mask, size)
    except Exception as error:  # decoders raise whatever they like
        text = (str(error).strip().splitlines() or [''])[0]
        return f"'{item.path}' cannot be decoded ({type(error).__name__}: {text})"


def _looks_wrong(path: Path) -> str | None:
    """Empty files, and pages that a failed download left under another name."""
    with path.open('rb') as file:
        head = file.read(256).lstrip().lower()
    if not head:
        return f"'{path}' is empty"
    if head.startswith((b'<!doctype', b'<html', b'<?xml', b'version https://git-lfs')):
        return f"'{path}' is a page of text, left by a download that failed"
    return None


def _open(path: Path) -> tuple[int, int]:
    """Width and height of a picture, decoded whole."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        return picture.size


def _open_video(path: Path) -> tuple[int, int]:
    """Width and height of a video whose first and last frames can be decoded."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    if not len(reader):
        raise ValueError('no frames')
    reader.seek_accurate(len(reader) - 1)
    last = reader.next().shape
    reader.seek_accurate(0)
    if reader.next().shape != last:
        raise ValueError('frames differ in size')
    return last[1], last[0]


def _fault_of_mask(
    facts: DatasetFacts, path: Path, size: tuple[int, int]
) -> str | None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        labels = np.asarray(picture)
        if picture.size != size:
            return (
                f"map '{path}' is {picture.size[0]} x {picture.size[1]}, its picture "
                f'{size[0]} x {size[1]}'
            )
    if labels.ndim != 2:
        return f"map '{path}' holds colours, not labels"
    # ADE20K keeps 0 for "other"; VOC keeps 255 for the rim.
    allowed = facts.num_classes + (facts.layout == 'ade20k')
    counted = labels[labels != 255] if facts.layout == 'voc_seg' else labels
    if counted.size and int(counted.max()) >= allowed:
        return f"map '{path}' holds label {int(counted.max())}, beyond {allowed - 1}"
    return None
