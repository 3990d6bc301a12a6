"""Stanford Cars: from the copies that circulate to the names in the split files.

The split files name the pooled release, ``car_ims/000001.jpg`` to ``016185.jpg``, whose
host is gone. Copies hold ``cars_train`` and ``cars_test``, each numbered anew. The
annotation files of both tell the class and the bounding box of each picture, and by
these a picture is found again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from mmpetl.core import PETLError
from mmpetl.datasets.convert.matlab import read_table
from mmpetl.datasets.convert.members import members

POOLED = 'cars_annos.mat'
PARTS = {'cars_train_annos.mat': 'train', 'cars_test_annos_withlabels.mat': 'test'}
NEEDED = (
    f'with copies of cars_train and cars_test give {POOLED}, too, and the annotations '
    f'of the copies, {" and ".join(PARTS)}'
)
_FOLDERS = {
    'cars_train': 'train',
    'cars_test': 'test',
    'train': 'train',
    'test': 'test',
}
_BOX = ('class', 'bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')

Names = dict[tuple[str, str], PurePosixPath]
"""Part (``train`` or ``test``) and file name of a copy to its path when pooled."""


def pooled_names(sources: Iterable[Path]) -> Names:
    """What the pictures of a copy are called in the pooled release.

    Args:
        sources: Archives, folders and ``.mat`` files; the annotation files are looked
            for among them.

    Returns:
        Nothing where they do not hold the annotations of both.

    Raises:
        PETLError: Annotations that are malformed, or do not belong together.
    """
    files = _annotations(sources)
    parts = {file: part for file, part in PARTS.items() if file in files}
    if POOLED not in files or not parts:
        return {}
    pooled = defaultdict(list)
    for row in _rows(POOLED, files[POOLED], 'relative_im_path', 'test'):
        pooled[row[:5]].append((row[6], row[5]))
    copies = defaultdict(list)
    for file, part in parts.items():
        for row in _rows(file, files[file], 'fname'):
            copies[row[:5]].append((part == 'test', part, row[5]))
    names: Names = {}
    for key, found in copies.items():
        there = pooled[key]
        if len(parts) < len(PARTS):  # the other part may share a class and a box
            there = [entry for entry in there if entry[0] == found[0][0]]
        if len(found) != len(there):
            raise PETLError(
                f'{len(found)} pictures of the copy have class {key[0]} and box '
                f'{key[1:]}, {found[0][2]} for one, {len(there)} of {POOLED}: they do '
                'not belong together'
            )
        # Where several share class and box, their label is one and the same.
        for (_, part, name), (_, path) in zip(
            sorted(found), sorted(there), strict=True
        ):
            names[part, name] = PurePosixPath(path)
    return names


def pooled_place(path: PurePosixPath, names: Names) -> PurePosixPath | None:
    """Where a picture of a copy belongs in the pooled release, None if unknown."""
    for folder in reversed(path.parts[:-1]):
        if folder in _FOLDERS:
            return names.get((_FOLDERS[folder], path.name))
    return None


def _annotations(sources: Iterable[Path]) -> dict[str, bytes]:
    """Content of the annotation files that are there, by name."""
    wanted = (POOLED, *PARTS)
    found: dict[str, bytes] = {}

    def take(name: str, content: bytes, source: Path) -> None:
        if found.setdefault(name, content) != content:
            raise PETLError(f'{source} holds another {name} than what comes before it')

    for source in sources:
        if source.suffix == '.mat':
            if not source.is_file():
                raise PETLError(f'there is no file {source}')
            take(source.name, source.read_bytes(), source)
            continue
        for member in members(source):
            if member.path.name in wanted:
                take(member.path.name, member.read(), source)
    return found


def _rows(file: str, content: bytes, *last: str) -> list[tuple[Any, ...]]:
    """Class, box and further columns of each entry of an annotation file."""
    return read_table(file, content, 'annotations', (*_BOX, *last))
