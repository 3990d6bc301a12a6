"""Extra data of the many-shot and robustness study."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import CATALOG, DatasetFacts, facts_of
from mmpetl.datasets.convert.dense import Counts
from mmpetl.datasets.convert.files import (
    look_into,
    need_in,
    staged,
    write_lines,
    write_unless_there,
)
from mmpetl.datasets.convert.jobs import run_all
from mmpetl.datasets.convert.members import PICTURES, members
from mmpetl.datasets.convert.tfds import TFDS_TASKS, TFDSExport
from mmpetl.datasets.convert.unpack import unpack
from mmpetl.datasets.convert.vtab import Examples, as_jpeg
from mmpetl.datasets.image_list import imagenet_wnids, subset_of
from mmpetl.datasets.lines import as_label
from mmpetl.datasets.walk import is_hidden, pictures_in

SIDE, PLANES = 32, 3
RECORD = 2 + PLANES * SIDE * SIDE
"""Bytes of one CIFAR-100 record: coarse class, fine class, three planes of 32 x 32."""

POOLS = ('cifar100', 'resisc45', 'clevr_dist')
"""Sets of several sizes, by their folder below ``many_shot``."""

VARIANTS = ('imagenet_v2', 'imagenet_r', 'imagenet_sketch', 'imagenet_a')


# --- sets of several sizes ---------------------------------------------------


@dataclass(frozen=True)
class _Records:
    """CIFAR-100's binary file."""

    content: np.ndarray

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        row = self.content[index]
        planes = row[2:].reshape(PLANES, SIDE, SIDE)
        return planes.transpose(1, 2, 0), int(row[1])


def read_cifar100(source: Path) -> dict[str, Examples]:
    """Splits of ``cifar-100-binary.tar.gz``.

    The Python version of the archive is made of pickles, which are not opened.

    Raises:
        PETLError: Another archive, or a damaged one.
    """
    found: dict[str, Examples] = {}
    for member in members(source):
        if member.path.name in ('train.bin', 'test.bin'):
            content = np.frombuffer(member.read(), np.uint8)
            if not len(content) or len(content) % RECORD:
                raise PETLError(
                    f'{member.path} of {source} has {len(content):,} bytes, which is '
                    f'no multiple of {RECORD:,}'
                )
            if member.path.stem in found:
                raise PETLError(f'{source} holds {member.path.name} twice')
            found[member.path.stem] = _Records(content.reshape(-1, RECORD))
    if set(found) != {'train', 'test'}:
        raise PETLError(
            f'{source} does not hold train.bin and test.bin; give the binary version, '
            'cifar-100-binary.tar.gz (the Python version holds pickles, which can run '
            'code and are not opened)'
        )
    return found


def read_tfds_pool(name: str, data_dir: Path | None) -> dict[str, Examples]:
    """All of a VTAB source's training part, and its test part."""
    if name not in TFDS_TASKS:
        raise PETLError(f'{name!r} has no source in TensorFlow Datasets')
    export, facts = TFDSExport(data_dir), CATALOG[name]
    return {
        'train': export.split(facts, 'trainval'),
        'test': export.split(facts, 'test'),
    }


def convert_pool(
    name: str, parts: dict[str, Examples], root: Path, workers: int = 1
) -> Counts:
    """``many_shot/<name>``: pictures, ``train.txt`` (the pool) and ``test.txt``.

    Small pictures stay lossless (PNG); others are JPEG as in VTAB-1k. The subsets of
    each size are drawn from the pool later.

    Raises:
        PETLError: A set that is not one of ``POOLS``, or a label out of range.
    """
    rows = [f for f in CATALOG.values() if f.base == 'many_shot' and f.folder == name]
    if not rows:
        raise PETLError(f'{name!r} is none of {", ".join(POOLS)}')
    facts = rows[0]
    folder = root / 'many_shot' / name
    with staged(folder) as partial:
        if partial is not None:
            lists = {
                part: _write_part(partial, part, examples, facts.num_classes, workers)
                for part, examples in parts.items()
            }
            for part, lines in lists.items():
                write_lines(partial / f'{part}.txt', lines)
    need_in(folder, 'train.txt', 'test.txt')
    sizes = {'train': facts.pool.size if facts.pool else None, 'test': facts.num_test}
    return [
        (part, len((folder / f'{part}.txt').read_text().splitlines()), size)
        for part, size in sizes.items()
    ]


def _write_part(
    folder: Path, part: str, examples: Examples, classes: int, workers: int
) -> list[str]:
    def work(index: int) -> str:
        picture, label = examples[index]
        if not 0 <= label < classes:
            raise PETLError(
                f'{part}: picture {index} has label {label}, out of range 0 to '
                f'{classes - 1}'
            )
        small = max(picture.shape[:2]) <= SIDE
        name = f'images/{part}/{index:06d}.{"png" if small else "jpg"}'
        encode = _as_png if small else as_jpeg
        write_unless_there(folder / name, encode(picture))
        return f'{name} {label}'

    return run_all(range(len(examples)), work, workers, part, len(examples))


def _as_png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, 'PNG')
    return buffer.getvalue()


# --- ImageNet ----------------------------------------------------------------


def list_imagenet(root: Path, workers: int = 1, check: bool = False) -> Counts:
    """``imagenet/train.txt`` and ``val.txt`` for folders ``<split>/<wnid>/*.JPEG``.

    Labels are positions of all 1,000 class ids in alphabetical order, as everywhere,
    whether or not a copy holds them all.

    Args:
        root: Data root.
        workers: Pictures that are opened at a time.
        check: Decode every picture, which takes hours for all of ImageNet.

    Raises:
        PETLError: Missing folders, one that is no class, a class of ``val`` that
            ``train`` lacks, or a picture that does not decode.
    """
    facts = facts_of('imagenet')
    folder = root / facts.path
    label_of = imagenet_wnids()
    classes: set[str] = set()
    lists: dict[str, list[str]] = {}
    for split in ('train', 'val'):
        below = folder / split
        if not below.is_dir():
            raise PETLError(f'there is no {below}; a folder per class is needed there')
        names = _classes(below)
        foreign = [name for name in names if name not in label_of]
        if foreign:
            raise PETLError(
                f'{below / foreign[0]} is no class of ImageNet-1k; a folder per class, '
                'called by its WordNet id, is needed there'
            )
        if split == 'train':
            classes = set(names)
        elif not set(names) <= classes:
            odd = sorted(set(names) - classes)[0]
            raise PETLError(f'{below / odd} is a class that {folder}/train lacks')
        lists[split] = [
            f'{split}/{name}/{file} {label_of[name]}'
            for name in names
            for file in pictures_in(below / name)
        ]
        if not lists[split]:
            raise PETLError(
                f'{below} holds no picture in a folder per class, called by its '
                'WordNet id'
            )
        if check:
            files = [folder / line.rpartition(' ')[0] for line in lists[split]]
            run_all(files, _open, workers, f'imagenet {split}', len(files))
    for split, lines in lists.items():
        write_lines(folder / f'{split}.txt', lines)
    pool = facts.pool.size if facts.pool else None
    return [
        ('train', len(lists['train']), pool),
        ('val', len(lists['val']), facts.split('test').size),
    ]


def _classes(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path.name for path in found if not is_hidden(path.name))


def _open(path: Path) -> None:
    why = look_into(path, path.read_bytes())
    if why:
        raise PETLError(f'cannot decode {path}: {why}')


def convert_variant(
    name: str, sources: Iterable[Path], root: Path, workers: int = 1
) -> Counts:
    """A shifted test set of ImageNet: its archive's class folders, as they are.

    Args:
        name: One of ``VARIANTS``.
        sources: The official archive.
        root: Data root.
        workers: Threads.

    Raises:
        PETLError: Another archive, or a damaged one.
    """
    if name not in VARIANTS:
        raise PETLError(f'{name!r} is none of {", ".join(VARIANTS)}')
    facts = facts_of(name)
    folder = root / facts.path
    present = set() if name == 'imagenet_v2' else _wnids_of(facts)

    def is_class(text: str) -> bool:
        if name == 'imagenet_v2':
            label = as_label(text)
            return label is not None and 0 <= label < facts.num_classes
        if re.fullmatch('n[0-9]{8}', text) and text not in present:
            raise PETLError(
                f'{text} is no class of {facts.title}; these archives are of another '
                'set'
            )
        return text in present

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        is_picture = path.suffix.lower() in PICTURES and len(path.parts) > 1
        if not is_picture or not is_class(path.parts[-2]):
            return None
        return PurePosixPath(*path.parts[-2:])

    with staged(folder) as partial:
        if partial is not None:
            done = unpack(sources, partial, rule, workers=workers, title=name)
            if not done.written + done.skipped:
                what = '0 to 999' if name == 'imagenet_v2' else 'as n01440764'
                raise PETLError(
                    f'these archives hold no pictures in class folders called {what}; '
                    f'they are not {facts.title}'
                )
    classes = _classes(folder)
    if not classes:
        raise PETLError(
            f'{folder} is there, but has no folder per class; move it away and call '
            'again'
        )
    pictures = sum(len(pictures_in(folder / name)) for name in classes)
    return [
        ('test', pictures, facts.split('test').size),
        ('classes', len(classes), facts.num_present),
    ]


def _wnids_of(facts: DatasetFacts) -> set[str]:
    """WordNet ids of the classes that a set holds."""
    label_of = imagenet_wnids()
    if facts.subset is None:
        return set(label_of)
    labels = set(subset_of(facts.id))
    return {wnid for wnid, label in label_of.items() if label in labels}
