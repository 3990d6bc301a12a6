"""VTAB-1k from a processed archive, from arrays or class folders, or from TFDS.

The processed layout is that of NOAH's export script: lists and JPEG files per split,
the training and validation pictures a second time under ``train800val200``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image

from mmpetl.compat.pictures import eight_bits
from mmpetl.core import PETLError
from mmpetl.core.boundary import as_utf8, regular_file
from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.convert.dense import Counts
from mmpetl.datasets.convert.files import (
    need_in,
    partial_of,
    staged,
    write_lines,
    write_unless_there,
)
from mmpetl.datasets.convert.jobs import run_all
from mmpetl.datasets.convert.npz import read_examples
from mmpetl.datasets.convert.unpack import unpack, write_late
from mmpetl.datasets.folders import find_folder, is_called, known_names
from mmpetl.datasets.lines import as_label
from mmpetl.datasets.walk import is_hidden

TASKS: Mapping[str, DatasetFacts] = {
    facts.id: facts for facts in CATALOG.values() if facts.benchmark == 'vtab'
}
DRAWN = ('train800', 'val200', 'test')
JOINED = 'train800val200'
_FILE = re.compile(rf'images/({"|".join((*DRAWN, JOINED))})/[0-9]{{6}}\.jpg')
_LIST = re.compile(rf'({"|".join((*DRAWN, JOINED))})\.txt')
_LINE = re.compile(
    r'(?P<path>images/(?P<split>\w+)/[0-9]{6}\.jpg) (?P<label>[0-9]{1,9})'
)


def task_of(name: str) -> DatasetFacts | None:
    """The task that a folder's name or an id means."""
    for facts in TASKS.values():
        if is_called(facts, name):
            return facts
    return None


def find_tasks(names: Sequence[str] | None) -> list[DatasetFacts]:
    """Tasks by id or alias; all nineteen where none is named.

    Raises:
        PETLError: An unknown name.
    """
    if not names:
        return list(TASKS.values())
    found = []
    for name in names:
        facts = task_of(name)
        if facts is None:
            raise PETLError(
                f'{name!r} is none of the 19 VTAB-1k tasks ({", ".join(TASKS)})'
            )
        found.append(facts)
    return found


# --- the processed archive ---------------------------------------------------


def convert_processed(
    sources: Iterable[Path], root: Path, workers: int = 1
) -> dict[str, Counts]:
    """Tasks from archives or folders in the processed layout.

    A task's folder gets its name when its lists agree with its pictures.

    Returns:
        Counts by task, for the tasks that the archives hold.

    Raises:
        PETLError: Damaged archives, malformed lists, listed pictures that are missing,
            a link where a task belongs, or no task at all.
    """
    base = root / 'vtab-1k'
    links = [f for f in TASKS.values() if (base / f.folder).is_symlink()]
    seen: dict[str, DatasetFacts] = {}
    done = {
        facts.id
        for facts in TASKS.values()
        if (base / facts.folder).is_dir() and any((base / facts.folder).iterdir())
    }

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        for depth, part in enumerate(path.parts[:-1]):
            facts = task_of(part)
            rest = '/'.join(path.parts[depth + 1 :])
            if facts and (_FILE.fullmatch(rest) or _LIST.fullmatch(rest)):
                seen[facts.id] = facts
                if facts.id in done:
                    return None
                if facts in links:
                    raise PETLError(
                        f'{base / facts.folder} is a link to an empty or missing '
                        f'folder; remove it, or let {base} be the link'
                    )
                return PurePosixPath(partial_of(Path(facts.folder)).name) / rest
        return None

    unpacked = unpack(
        sources,
        base,
        rule,
        is_late=lambda place: place.suffix == '.txt',
        workers=workers,
        title='VTAB-1k',
    )
    if not seen:
        raise PETLError(
            'these archives hold no task in the processed layout '
            '(<task>/images/<split>/000000.jpg, <task>/<split>.txt)'
        )
    fresh = [facts for facts in seen.values() if facts.id not in done]
    for facts in fresh:
        _check_lists(facts, base, unpacked.late)
    write_late(unpacked, base)
    for facts in fresh:
        partial_of(base / facts.folder).rename(base / facts.folder)
    return {facts.id: count(facts, root) for facts in seen.values()}


def _check_lists(
    facts: DatasetFacts, base: Path, late: Mapping[PurePosixPath, bytes]
) -> None:
    partial = partial_of(base / facts.folder)
    for split in (*DRAWN, JOINED):
        content = late.get(PurePosixPath(partial.name, f'{split}.txt'))
        if content is None:
            raise PETLError(f'{facts.id}: the archives hold no {split}.txt')
        lines = as_utf8(content, f'{facts.id}, {split}.txt').split('\n')
        entries = list(filter(None, map(str.strip, lines)))
        if not entries:
            raise PETLError(f'{facts.id}: {split}.txt lists no picture')
        for number, line in enumerate(entries, 1):
            match = _LINE.fullmatch(line)
            if match is None or match['split'] != split:
                raise PETLError(
                    f'{facts.id}, {split}.txt:{number}: {line!r} is not '
                    f"'images/{split}/000000.jpg <label>'"
                )
            if int(match['label']) >= facts.num_classes:
                raise PETLError(
                    f'{facts.id}, {split}.txt:{number}: label {match["label"]} is out '
                    f'of range 0 to {facts.num_classes - 1}'
                )
            if not (partial / match['path']).is_file():
                raise PETLError(
                    f'{facts.id}, {split}.txt:{number}: the archives hold no '
                    f'{match["path"]}'
                )


def count(facts: DatasetFacts, root: Path) -> Counts:
    """Lines of each list beside the official number; PETLError where one lacks."""
    folder = root / facts.path
    need_in(folder, *(split.file for split in facts.splits))
    return [
        (
            split.name,
            len((folder / split.file).read_text(encoding='utf-8').splitlines()),
            split.size,
        )
        for split in facts.splits
    ]


# --- an export ---------------------------------------------------------------


class Examples(Protocol):
    """The pictures of one split, in the order of the export."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(H, W), (H, W, 1) or (H, W, 3) uint8, and the label from 0."""


class Export(Protocol):
    """Where the splits of tasks come from."""

    def split(self, facts: DatasetFacts, name: str) -> Examples:
        """One of ``train800``, ``val200``, ``test``; PETLError if it is not there."""


@dataclass(frozen=True)
class _Arrays:
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class NpzExport:
    """``<folder>/<task>/<split>.npz`` with ``images`` (N, H, W, C) and ``labels``."""

    folder: Path

    def split(self, facts: DatasetFacts, name: str) -> Examples:
        path = _task_folder(self.folder, facts) / f'{name}.npz'
        return _Arrays(*read_examples(path))


@dataclass(frozen=True)
class _Files:
    items: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.items[index]
        try:
            with Image.open(path) as picture:
                return np.asarray(eight_bits(picture).convert('RGB')), label
        except Exception as error:  # decoders raise whatever they like
            raise PETLError(f'cannot read {path}: {error}') from None


@dataclass(frozen=True)
class FolderExport:
    """``<folder>/<task>/<split>/<label>/<picture>``, pictures sorted by name.

    The label is the folder's name.
    """

    folder: Path

    def split(self, facts: DatasetFacts, name: str) -> Examples:
        folder = _task_folder(self.folder, facts) / name
        items = []
        for below in _not_hidden(folder) if folder.is_dir() else ():
            label = as_label(below.name)
            if label is None or label < 0:
                raise PETLError(f'{below} is not called by its label, a number from 0')
            if not below.is_dir():
                raise PETLError(
                    f'{below} is a file; wanted is {folder}/<label>/<picture>'
                )
            there = [path for path in _not_hidden(below) if not path.is_dir()]
            files = [regular_file(path, 'picture') for path in there]
            items += [(path, label) for path in files]
        if not items:
            raise PETLError(f'there is no {folder}/<label>/<picture>')
        return _Files(sorted(items, key=lambda item: (item[0].name, item[1])))


def _not_hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not is_hidden(path.name)]


def _task_folder(folder: Path, facts: DatasetFacts) -> Path:
    found = find_folder(folder, facts)
    if found is None:
        official, *others = known_names(facts)
        also = f' (nor {", ".join(others)})' if others else ''
        raise PETLError(f'{folder} has no folder {official}{also} for {facts.id}')
    return found


def convert_export(
    facts: DatasetFacts, export: Export, root: Path, workers: int = 1
) -> Counts:
    """One task from an export, into the processed layout.

    Pictures are stored as JPEG with Pillow's defaults, as the official script does.
    ``train800val200`` is train800 and then val200. In the archives that circulate it
    holds the same pictures in another order, since TensorFlow Datasets reads a joined
    split by turns, sixteen pictures of each part.

    Raises:
        PETLError: A split is missing or holds a label out of range.
    """
    with staged(root / facts.path) as partial:
        if partial is not None:
            splits = {name: export.split(facts, name) for name in DRAWN}
            parts = {name: [name] for name in DRAWN}
            parts[JOINED] = list(DRAWN[:2])
            lists = {}
            for name, origin in parts.items():
                sources = [splits[part] for part in origin]
                lists[name] = _write_split(facts, partial, name, sources, workers)
            for name, lines in lists.items():
                write_lines(partial / f'{name}.txt', lines)
    return count(facts, root)


def _write_split(
    facts: DatasetFacts,
    folder: Path,
    split: str,
    sources: list[Examples],
    workers: int,
) -> list[str]:
    """Pictures of one split; returns the lines of its list."""
    items = [(source, i) for source in sources for i in range(len(source))]

    def work(item: tuple[int, tuple[Examples, int]]) -> str:
        number, (source, index) = item
        picture, label = source[index]
        if not 0 <= label < facts.num_classes:
            raise PETLError(
                f'{facts.id}, {split}: picture {index} has label {label}, out of range '
                f'0 to {facts.num_classes - 1}'
            )
        name = f'images/{split}/{number:06d}.jpg'
        write_unless_there(folder / name, as_jpeg(picture))
        return f'{name} {label}'

    title = f'{facts.id} {split}'
    return run_all(enumerate(items), work, workers, title, len(items))


def as_jpeg(picture: np.ndarray) -> bytes:
    """Encode (H, W), (H, W, 1) or (H, W, 3) uint8; grey pictures get three channels."""
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(picture).convert('RGB').save(buffer, 'JPEG')
    return buffer.getvalue()
