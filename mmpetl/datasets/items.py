"""What a split on disk lists, whatever its layout: files, labels, maps.

The dataset classes stop at the first fault; this reads on, so that a verifier can tell
all of them. Nothing is opened but the lists, and the XML files of VOC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_bytes
from mmpetl.datasets.annotations import parse_classes, read_coco, read_voc
from mmpetl.datasets.catalog import DatasetFacts, Split
from mmpetl.datasets.classes import COCO_CLASSES, VOC_CLASSES
from mmpetl.datasets.folders import find_folder, pictures_below
from mmpetl.datasets.image_list import read_classes
from mmpetl.datasets.lines import below, is_file, read_labelled, read_lines
from mmpetl.datasets.video_list import read_video_list


@dataclass(frozen=True)
class Item:
    """One sample.

    Args:
        where: List and line, or the file itself where a folder is the list.
        path: Its picture or video.
        labels: Its label, or those of all its objects; class ids for FGVC.
        mask: Its label map.
        others: More files that it needs.
        key: What tells it from others, where the path does not.
    """

    where: str
    path: Path
    labels: tuple[int, ...] = ()
    mask: Path | None = None
    others: tuple[Path, ...] = ()
    key: str = ''


def folder_of(facts: DatasetFacts, root: Path) -> Path:
    """The set's folder below the data root, in the spelling that is there.

    Raises:
        PETLError: Several folders bear names of the set.
    """
    if facts.layout in ('vtab', 'fgvc'):
        return find_folder(root / facts.base, facts) or root / facts.path
    return root / facts.path


def list_path(facts: DatasetFacts, split: Split, root: Path) -> Path:
    """The file, or where there is none the folder, that says what a split holds."""
    return folder_of(facts, root) / (split.file or split.images)


def read_items(facts: DatasetFacts, split: Split, root: Path) -> list[Item]:
    """The samples of one split, in the order of its list.

    Args:
        facts: The data set.
        split: One of its splits.
        root: The data root.

    Raises:
        PETLError: The list is missing or malformed.
    """
    path = list_path(facts, split, root)
    if not (path.exists() if split.file else path.is_dir()):
        kind = 'list' if split.file else 'folder'
        raise PETLError(f"there is no {kind} '{path}'.")
    try:
        return _READERS[facts.layout](facts, split, folder_of(facts, root))
    except (UnicodeDecodeError, OSError) as error:
        raise PETLError(f"'{path}' cannot be read: {error}") from None


def _vtab(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    return [
        Item(f'{path}:{number}', below(folder, name), (label,))
        for number, name, label in read_labelled(path)
    ]


def _classes(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    found = read_classes(folder, facts.num_classes)
    return [Item(str(folder / name), folder / name, (label,)) for name, label in found]


def _fgvc(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    pairs = parse_classes(read_bytes(path, 'split file'), f"'{path}'")
    first = next(iter(pairs), '')
    pictures = pictures_below(folder, split.images, first)
    return [
        Item(f"{path}: '{key}'", pictures / key, (value,))
        for key, value in pairs.items()
    ]


def _video(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    return [
        Item(
            f'{path}:{number}',
            below(folder / split.images, name),
            (label,),
            key=name,
        )
        for number, name, _, label in read_video_list(path)
    ]


def _coco(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    data = read_coco(path)
    if not data.annotations:
        raise PETLError(f"'{path}' is not a COCO file: it has no annotations")
    names = {entry.id: entry.name for entry in data.categories}
    files = {entry.id: entry.file_name for entry in data.images}
    objects: dict[int, set[int]] = {number: set() for number in files}
    for entry in data.annotations:
        objects[entry.image_id].add(entry.category_id)
    order = {name: label for label, name in enumerate(COCO_CLASSES)}
    # A category that is none of the eighty stands out as label -1.
    label_of = {number: order.get(name, -1) for number, name in names.items()}
    return [
        Item(
            f'{path}: image {number}',
            folder / split.images / file,
            tuple(sorted({label_of.get(k, -1) for k in objects[number]})),
            key=file,
        )
        for number, file in files.items()
    ]


def _ade20k(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    images = folder / split.images
    maps = folder / split.images.replace('images', 'annotations', 1)
    return [
        Item(str(path), path, mask=maps / f'{path.stem}.png')
        for path in sorted(images.glob('[!.]*.jpg'))
    ]


def _voc(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    year = path.parents[2]
    items = []
    for number, name in read_lines(path):
        xml = year / 'Annotations' / f'{name}.xml'
        picture = year / 'JPEGImages' / f'{name}.jpg'
        labels = _voc_labels(xml)
        items.append(Item(f'{path}:{number}', picture, labels, None, (xml,)))
    return items


def _voc_labels(xml: Path) -> tuple[int, ...]:
    """Labels of the objects in a file; -1 for what is none of the twenty classes."""
    if not is_file(xml):
        return ()
    names = {name: label for label, name in enumerate(VOC_CLASSES)}
    return tuple(sorted({names.get(name, -1) for name, _ in read_voc(xml).objects}))


def _voc_seg(facts: DatasetFacts, split: Split, folder: Path) -> list[Item]:
    path = folder / split.file
    maps = 'SegmentationClassAug' if split.name == 'aug' else 'SegmentationClass'
    return [
        Item(
            f'{path}:{number}',
            folder / split.images / f'{name}.jpg',
            mask=folder / maps / f'{name}.png',
        )
        for number, name in read_lines(path)
    ]


_Reader = Callable[[DatasetFacts, Split, Path], list[Item]]
_READERS: Mapping[str, _Reader] = {
    'vtab': _vtab,
    'list': _vtab,
    'classes': _classes,
    'fgvc': _fgvc,
    'video': _video,
    'coco': _coco,
    'ade20k': _ade20k,
    'voc': _voc,
    'voc_seg': _voc_seg,
}
