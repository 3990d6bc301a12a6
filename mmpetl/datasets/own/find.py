"""Which pictures there are, of which class, and what is wrong with them.

Three layouts are read here (boxes in :mod:`.boxes`, masks in :mod:`.masks`)::

    folder/<class>/*.jpg                       class folders
    folder/train/<class>/*.jpg, folder/test/…  class folders in splits
    list.csv                                   columns path, label and maybe split

Every file is opened: one that cannot be decoded later would end a run in the middle of
an epoch, and a copy of a training picture in the test set makes a score that is none.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from mmpetl.compat.pictures import eight_bits
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_utf8
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.soundness import MAX_BYTES, fault_of_picture
from mmpetl.datasets.walk import (
    SUFFIXES,
    files_below,
    is_hidden,
    is_picture,
    is_utf8,
)

PARTS = ('train', 'val', 'test')

PART_NAMES: Mapping[str, str] = {
    **{name: 'train' for name in ('train', 'training')},
    **{name: 'val' for name in ('val', 'valid', 'validation', 'dev')},
    **{name: 'test' for name in ('test', 'testing')},
}
"""What a split may be called, in small letters, and which it is."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    'path': ('path', 'file', 'filename', 'image'),
    'label': ('label', 'class'),
    'split': ('split',),
}
"""Columns of a CSV by what they hold, and the names that each may bear."""

DELIMITERS = (',', ';', '\t')

SHOWN = 5
"""How many files or classes an error names; it counts the others."""


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        path: Below the root, with slashes; absolute where a CSV says so.
        label: Name of its class; of boxes or masks, of the rarest class that it shows,
            and empty where it shows none.
        part: ``train``, ``val`` or ``test`` where the layout says it, else empty.
        digest: SHA-256 of the file, 64 hexadecimal digits; empty before it was opened.
            With boxes or a mask it is over these too.
    """

    path: str
    label: str
    part: str = ''
    digest: str = ''


@dataclass(frozen=True)
class Found:
    """What a folder or a CSV holds.

    Attributes:
        root: The folder that paths are below.
        layout: ``class folders``, ``class folders in splits``, ``CSV``, ``COCO boxes``
            or ``masks``.
        pictures: Sorted by path.
        notes: What was left aside, a line each.
        names: Of the classes of boxes or masks, in their order.
        shows: Of boxes or masks, the classes that a picture shows, by its path.
    """

    root: Path
    layout: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    shows: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is a place in here."""
        return self.names or tuple(sorted({p.label for p in self.pictures}))

    @property
    def parts(self) -> tuple[str, ...]:
        """The splits that the layout gives; none where all are to be drawn."""
        given = {picture.part for picture in self.pictures}
        return tuple(part for part in PARTS if part in given)


def find_pictures(data: str | Path, leave: Path | None = None) -> Found:
    """Find the pictures of a folder or a CSV, open each, and refuse what is no good.

    Copies of a picture in one class count once; those in the same split are left
    aside, which a note says.

    Args:
        data: A folder, or a ``.csv`` file.
        leave: The work folder, resolved, which may lie below; it holds no pictures.

    Raises:
        PETLError: There is nothing of that name; the layout is none of the three; there
            are fewer than two classes; pictures cannot be decoded; or a picture bears
            two labels, or lies in two splits.
    """
    data = Path(data).expanduser()
    if data.is_dir():
        found = _of_folder(data, leave)
    elif data.suffix.lower() == '.csv' and data.is_file():
        found = _of_csv(data)
    elif data.exists():
        raise PETLError(
            f"'{data}' is neither a folder of pictures nor a .csv file, nor a .json "
            'file of COCO.'
        )
    else:
        raise PETLError(f"There is no folder and no CSV file '{data}'.")
    if len(found.classes) < 2:
        only = f'one class, {found.classes[0]}' if found.classes else 'no picture'
        raise PETLError(
            f"'{data}' holds {only}; a classifier needs two classes or more, each a "
            'folder of pictures (or a label of the CSV).'
        )
    return without_copies(replace(found, pictures=tuple(opened(found))))


# ---- class folders -------------------------------------------------------------------
def _of_folder(root: Path, leave: Path | None) -> Found:
    below = folders(root, leave)
    splits = {
        folder: PART_NAMES[folder.name.lower()]
        for folder in below
        if folder.name.lower() in PART_NAMES and _holds_classes(folder)
    }
    others: Counter[str] = Counter()
    flat = [
        folder.name
        for folder in below
        if folder.name.lower() in PART_NAMES and folder not in splits
    ]
    # Between classes of other names one may be called train.
    if flat and (splits or 1 < len(flat) == len(below)):
        raise PETLError(
            f"'{root}' has {', '.join(f'{name}/' for name in flat)} without class "
            'folders inside; a split has a folder for each class (train/cat/...), or '
            'name path, label and split of each picture in a CSV.'
        )
    if 'train' not in splits.values():
        if splits:
            names = ', '.join(f'{folder.name}/' for folder in splits)
            raise PETLError(
                f"'{root}' has {names} and no train/; name the training pictures' "
                'folder train, or put all classes side by side to have splits drawn.'
            )
        pictures = list(_of_classes(root, root, '', others, leave))
        return _found(root, 'class folders', pictures, others)
    beside = [folder.name for folder in below if folder not in splits]
    if beside:
        raise PETLError(
            f"'{root}' has splits and, beside them, {some(beside)}; a folder there is "
            'train, val or test.'
        )
    twice = [part for part, n in Counter(splits.values()).items() if n > 1]
    if twice:
        names = some([f.name for f, part in splits.items() if part == twice[0]])
        raise PETLError(
            f"'{root}' has several folders of the split {twice[0]}: {names}."
        )
    pictures = [
        picture
        for folder, part in splits.items()
        for picture in _of_classes(root, folder, part, others, leave)
    ]
    trained = {picture.label for picture in pictures if picture.part == 'train'}
    new = sorted({picture.label for picture in pictures} - trained)
    if new:
        raise PETLError(
            f"'{root}' has classes that train/ has not: {some(new)}; a class that was "
            'never trained cannot be recognised.'
        )
    return _found(root, 'class folders in splits', pictures, others)


def folders(root: Path, leave: Path | None = None) -> list[Path]:
    """Folders of a folder that are not hidden, by name.

    Args:
        root: The folder.
        leave: The work folder, resolved; left out, as what is there for it alone.
    """
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir()
        and not is_hidden(path.name)
        and not (leave and _is_around(path, leave))
    )


def _is_around(folder: Path, leave: Path) -> bool:
    """Whether a folder is the work folder, or holds it and no picture beside it."""
    here = folder.resolve()
    if here == leave:
        return True
    within = leave.is_relative_to(here)
    return within and not any(map(is_picture, files_below(folder, leave)))


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds folders and no picture: a class may be called train."""
    return bool(folders(folder)) and not any(map(is_picture, folder.iterdir()))


def _of_classes(
    root: Path, folder: Path, part: str, others: Counter[str], leave: Path | None
) -> Iterator[Picture]:
    """Pictures of the class folders of a folder; other files are counted by suffix."""
    loose = sorted(path.name for path in folder.iterdir() if is_picture(path))
    if loose:
        beside = folders(folder, leave)
        where = 'beside its class folders' if beside else 'and no class folder'
        raise PETLError(
            f"'{folder}' has {len(loose)} pictures {where} "
            f'({some(loose)}); move each into a folder of the name of its class, or '
            'name class and picture in a CSV.'
        )
    for entry in folders(folder, leave):
        files = files_below(entry, leave)
        pictures = [path for path in files if is_picture(path)]
        others.update(p.suffix.lower() or p.name for p in files if not is_picture(p))
        if not pictures:
            kinds = sorted({p.suffix.lower() or p.name for p in files})
            there = f', but {some(kinds)}' if kinds else ''
            raise PETLError(
                f"the class folder '{entry}' holds no picture ({', '.join(SUFFIXES)})"
                f'{there}; fill it, or remove it.'
            )
        for path in pictures:
            yield Picture(path.relative_to(root).as_posix(), entry.name, part)


def _found(
    root: Path, layout: str, pictures: Iterable[Picture], others: Counter[str]
) -> Found:
    notes = ()
    if others:
        kinds = ', '.join(f'{n} {suffix}' for suffix, n in others.most_common(SHOWN))
        notes = (
            f'{others.total()} files are no picture that is read here and were left '
            f'aside: {kinds} (read are {", ".join(SUFFIXES)})',
        )
    return Found(root, layout, tuple(sorted(pictures, key=_place)), notes)


def _place(picture: Picture) -> tuple[str, str]:
    return picture.path, picture.label


# ---- CSV -----------------------------------------------------------------------------
def _of_csv(path: Path) -> Found:
    text = read_utf8(path, 'list')
    between = _delimiter(text.partition('\n')[0])
    reader = csv.DictReader(io.StringIO(text), strict=True, delimiter=between)
    try:
        columns = _columns(path, reader.fieldnames or ())
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise PETLError(f'{path}:{reader.line_num}: is no CSV: {error}.') from None
    pictures: dict[str, tuple[int, Picture]] = {}
    missing, repeated = [], 0
    for number, row in rows:
        cells = {kind: (row.get(name) or '').strip() for kind, name in columns.items()}
        for kind, cell in cells.items():
            if not cell:
                raise PETLError(f'{path}:{number}: {columns[kind]} is empty.')
        part = PART_NAMES.get(cells.get('split', '').lower(), '')
        if 'split' in cells and not part:
            raise PETLError(
                f'{path}:{number}: the split {cells["split"]!r} is none of '
                f'{", ".join(PARTS)}.'
            )
        if not is_file(path.parent / cells['path']):
            missing.append(f'{cells["path"]} (line {number})')
            continue
        picture = Picture(Path(cells['path']).as_posix(), cells['label'], part)
        line, before = pictures.setdefault(picture.path, (number, picture))
        if before != picture:
            raise PETLError(
                f'{path}: {picture.path} is {_said(before)} in line {line} and '
                f'{_said(picture)} in line {number}; a picture has one class and lies '
                'in one split.'
            )
        repeated += line != number
    if missing:
        raise PETLError(
            f'{path} names {len(missing)} files that are not below '
            f"'{path.parent}': {some(missing)}."
        )
    notes = [f'{repeated} lines repeat a picture and count once'] if repeated else []
    found = sorted((picture for _, picture in pictures.values()), key=_place)
    if 'split' in columns and not any(p.part == 'train' for p in found):
        raise PETLError(f'{path}: no line is of the split train.')
    return Found(path.parent, 'CSV', tuple(found), tuple(notes))


def _delimiter(first: str) -> str:
    """What stands between the columns: spreadsheets also write semicolons and tabs.

    Args:
        first: The first line.
    """
    known = {name for names in COLUMNS.values() for name in names}

    def named(between: str) -> int:
        cells = (cell.strip().strip('"').lower() for cell in first.split(between))
        return sum(cell in known for cell in cells)

    return max(DELIMITERS, key=named)


def _columns(path: Path, there: Iterable[str]) -> dict[str, str]:
    """Name of the column by what it holds."""
    by_name = {name.strip().lower(): name for name in there if name}
    found = {}
    for kind, names in COLUMNS.items():
        name = next((by_name[name] for name in names if name in by_name), None)
        if name is not None:
            found[kind] = name
        elif kind != 'split':
            raise PETLError(
                f'{path} has no column {" or ".join(names)}; its first line, which '
                f'names the columns (path,label), says '
                f'{", ".join(n.strip() for n in there if n) or "nothing"}.'
            )
    return found


def _said(picture: Picture) -> str:
    return f'{picture.label} of {picture.part}' if picture.part else picture.label


# ---- what the files hold -------------------------------------------------------------
def opened(found: Found) -> Iterator[Picture]:
    """The pictures with their digests.

    Raises:
        PETLError: Some cannot be decoded.
    """
    faults = []
    for picture in found.pictures:
        path = found.root / picture.path
        if not is_utf8(f'{picture.path}{picture.label}'):
            faults.append(f'{ascii(picture.path)} has a name that is no UTF-8')
            continue
        try:
            with open(path, 'rb') as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            faults.append(f'{picture.path} ({error.strerror})')
            continue
        fault = _fault(data)
        if fault:
            faults.append(f'{picture.path} {fault}')
        else:
            yield replace(picture, digest=hashlib.sha256(data).hexdigest())
    if faults:
        raise PETLError(
            f'{len(faults)} of {len(found.pictures):,} pictures below '
            f"'{found.root}' cannot be read: {some(faults, '; ')}. Mend or remove "
            'them.'
        )


def _fault(data: bytes) -> str | None:
    """Why a file makes no picture, in words behind its name; None where it does."""
    if not data:
        return 'is empty'
    if len(data) > MAX_BYTES:
        return f'is longer than {MAX_BYTES >> 20} MiB'
    fault = fault_of_picture(data)
    if fault:
        return fault
    try:
        with Image.open(io.BytesIO(data)) as picture:
            eight_bits(picture).convert('RGB')
    except Exception as error:  # decoders raise what they like
        return f'is no picture that can be read ({type(error).__name__})'
    return None


def without_copies(found: Found) -> Found:
    """One of each picture; a copy of another class or split is an error."""
    first: dict[str, Picture] = {}
    torn, left = [], 0
    for picture in found.pictures:
        before = first.setdefault(picture.digest, picture)
        if (before.label, before.part) != (picture.label, picture.part):
            torn.append((before, picture))
        left += before is not picture
    if torn:
        one, other = torn[0]
        labels = sum(a.label != b.label for a, b in torn)
        what = 'bear two labels' if labels else 'lie in two splits'
        raise PETLError(
            f'{labels or len(torn)} pictures {what}: {_pair(torn, bool(labels))}. '
            'Their files are equal, byte by byte; keep one of each.'
        )
    notes = list(found.notes)
    if left:
        notes.append(f'{left} copies of other pictures of their class were left aside')
    return replace(found, pictures=tuple(first.values()), notes=tuple(notes))


def _pair(torn: list[tuple[Picture, Picture]], labels: bool) -> str:
    one, other = next(p for p in torn if not labels or p[0].label != p[1].label)
    return f'{one.path} ({_said(one)}) and {other.path} ({_said(other)}) for one'


def some(names: list[str], between: str = ', ') -> str:
    """The first few of names, and how many more there are."""
    more = f'{between}and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return between.join(names[:SHOWN]) + more
