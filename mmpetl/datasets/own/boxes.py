"""Pictures with boxes in files of COCO: which there are, and what is wrong with them.

Four layouts are read; a part of ``train``, ``val`` or ``test`` is told by its name::

    folder/train/_annotations.coco.json, folder/train/*.jpg, folder/valid/...
    folder/annotations/instances_train.json, folder/train/*.jpg or folder/images/*.jpg
    folder/annotations.json, folder/images/*.jpg or folder/*.jpg
    file.json, with its pictures beside it

Files are held to their schema by :func:`mmpetl.datasets.annotations.read_coco`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError
from mmpetl.datasets.annotations import CocoFile, Instance, read_coco
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.own.find import PART_NAMES, Found, Picture, folders, some
from mmpetl.datasets.own.scenes import opened_scenes, size_of, with_classes

LAYOUT = 'COCO boxes'
NAMED = re.compile('coco|^instances')
"""What names of such files hold or begin with; ``annotations.json`` may be anything."""


@dataclass(frozen=True)
class Mark:
    """A box of a picture.

    Attributes:
        label: Number of its class.
        box: x and y of its upper left corner, width and height, px.
        crowd: Whether it stands for many, which are neither sought nor counted.
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class Boxes:
    """Pictures with boxes.

    Attributes:
        found: The pictures.
        marks: The boxes of each, by its path.
        sizes: Width and height of each, px.
    """

    found: Found
    marks: Mapping[str, tuple[Mark, ...]]
    sizes: Mapping[str, tuple[int, int]]

    def as_coco(self, paths: Iterable[str]) -> dict[str, Any]:
        """A COCO file of some pictures: classes are numbered from 1, in their order."""
        images, annotations = [], []
        for number, path in enumerate(paths, 1):
            width, height = self.sizes[path]
            images.append(
                {'id': number, 'file_name': path, 'width': width, 'height': height}
            )
            for mark in self.marks[path]:
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': number,
                        'category_id': mark.label + 1,
                        'bbox': list(mark.box),
                        'area': mark.box[2] * mark.box[3],
                        'iscrowd': int(mark.crowd),
                    }
                )
        categories = [{'id': i, 'name': n} for i, n in enumerate(self.found.names, 1)]
        return {'images': images, 'annotations': annotations, 'categories': categories}


def coco_files(data: Path, leave: Path | None = None) -> dict[Path, str]:
    """COCO files of a folder, or the file itself, with the part that each is of.

    There is none where the layout is another one; a part is empty where no name tells.
    """
    if data.is_file():
        return {data: ''} if data.suffix.lower() == '.json' else {}
    found = {}
    for folder in folders(data, leave):
        part = PART_NAMES.get(folder.name.lower(), '')
        if part:
            found |= {path: part for path in _jsons(folder)}
        elif folder.name.lower() == 'annotations':
            files = _jsons(folder)
            # captions_ and person_keypoints_ lie beside instances_ in COCO's own.
            things = [path for path in files if path.name.startswith('instances')]
            found |= {path: _part_of(path.stem) for path in things or files}
    return found or {path: _part_of(path.stem) for path in _jsons(data)}


def _jsons(folder: Path) -> list[Path]:
    """Files of COCO in a folder: by their name, or what they speak of.

    A damaged one is told by its name, so that it is not passed over.
    """
    files = [path for path in sorted(folder.glob('*.json')) if path.name[0] != '.']
    return [p for p in files if NAMED.search(p.name.lower()) or _speaks(p)]


def _speaks(path: Path) -> bool:
    """Whether a file has images and annotations."""
    keys = {b'"images"', b'"annotations"'}
    rest = b''
    try:
        with open(path, 'rb') as file:
            while keys and (block := file.read(1 << 20)):
                text = rest + block
                keys = {key for key in keys if key not in text}
                rest = block[-16:]  # a key may lie across two blocks
    except OSError:
        return False
    return not keys


def _part_of(stem: str) -> str:
    """The part that a word of a name tells: of ``instances_train2017``, ``train``."""
    words = re.findall('[a-z]+', stem.lower())
    return next((PART_NAMES[word] for word in words if word in PART_NAMES), '')


def find_boxes(data: Path, leave: Path | None = None) -> Boxes:
    """Find pictures and boxes, open each picture, and refuse what is no good.

    What is left aside (boxes beyond their picture, classes without a box) is noted.

    Args:
        data: A folder in one of the layouts above, or a file of COCO.
        leave: The work folder, resolved, which may lie below.

    Raises:
        PETLError: A file is no COCO file, or contradicts itself; parts are told by some
            files and not by others, or there is no training part; a picture is
            missing, is listed twice, cannot be decoded, lies in two parts, or has
            another size than is stated; or no class has a box.
    """
    root = data if data.is_dir() else data.parent
    files = coco_files(data, leave)
    parts = set(files.values())
    if '' in parts and len(files) > 1:
        raise PETLError(
            f"'{root}' has {len(files)} COCO files "
            f'({some([p.relative_to(root).as_posix() for p in files])}), and not all '
            'names tell which part a file is of; call them train, val or test, or name '
            'one file.'
        )
    if '' not in parts and 'train' not in parts:
        raise PETLError(
            f"'{root}' has COCO files of {', '.join(sorted(parts))} and none of train."
        )
    read = {path: read_coco(path, unique=False) for path in files}
    names = list(dict.fromkeys(c.name for f in read.values() for c in f.categories))
    pictures: list[Picture] = []
    marks: dict[str, tuple[tuple[str, Instance], ...]] = {}
    stated: dict[str, tuple[int, int]] = {}
    for path, part in files.items():
        for name, (size, marked) in _of_file(root, path, read[path], part).items():
            if name in marks:
                raise PETLError(
                    f"'{root}': {name} is listed twice, in {path.name} the second time."
                )
            pictures.append(Picture(name, '', part))
            stated[name], marks[name] = size, marked
    pictures.sort(key=lambda p: p.path)
    found = opened_scenes(Found(root, LAYOUT, tuple(pictures)))
    _check_sizes(found, stated)
    return _gathered(found, names, marks, stated)


_Marked = tuple[tuple[str, Instance], ...]


def _of_file(
    root: Path, path: Path, coco: CocoFile, part: str
) -> dict[str, tuple[tuple[int, int], _Marked]]:
    """Size and named boxes of the pictures of a file, by their path below the root."""
    called = {category.id: category.name for category in coco.categories}
    by_image: dict[int, list[tuple[str, Instance]]] = {i.id: [] for i in coco.images}
    for one in coco.annotations or ():
        by_image[one.image_id].append((called[one.category_id], one))
    places = _places(root, path, part)
    found, missing = {}, []
    for image in coco.images:
        name = Path(image.file_name)
        if name.is_absolute() or '..' in name.parts:
            raise PETLError(
                f"'{path}' names {image.file_name}; pictures lie below '{root}', and "
                'are named from there.'
            )
        file = next((p / name for p in places if is_file(p / name)), None)
        if file is None:
            missing.append(image.file_name)
            continue
        where = file.relative_to(root).as_posix()
        if where in found:
            raise PETLError(f"'{path}' lists {where} twice.")
        found[where] = (image.width, image.height), tuple(by_image[image.id])
    if missing:
        looked = some([f'{p.relative_to(root).as_posix()}/' for p in places])
        raise PETLError(
            f"'{path}' names {len(missing)} pictures that are not there: "
            f"{some(missing)}; looked for below '{root}' in {looked}."
        )
    return found


def _places(root: Path, path: Path, part: str) -> list[Path]:
    """Folders in which pictures of a file may lie, the nearest first."""
    own = path.stem.removeprefix('instances_')
    of_part = [name for name, other in PART_NAMES.items() if part and other == part]
    names = [own, *of_part]
    beside = [path.parent / 'images', path.parent]
    below = [root / 'images' / name for name in names] + [root / name for name in names]
    places = [*beside, *below, root / 'images', root]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _check_sizes(found: Found, stated: Mapping[str, tuple[int, int]]) -> None:
    odd = []
    for picture in found.pictures:
        size = size_of(found.root / picture.path)
        if size != stated[picture.path]:
            odd.append(
                f'{picture.path} is {size[0]} x {size[1]}, stated are '
                f'{stated[picture.path][0]} x {stated[picture.path][1]}'
            )
    if odd:
        raise PETLError(
            f"{len(odd)} pictures below '{found.root}' have another size than their "
            f'COCO file states: {some(odd, "; ")}. Boxes would be elsewhere.'
        )


def _gathered(
    found: Found,
    names: list[str],
    marks: Mapping[str, _Marked],
    sizes: Mapping[str, tuple[int, int]],
) -> Boxes:
    """Boxes cut at the borders of their pictures, and the classes that have any."""
    odd: Counter[str] = Counter()
    kept: dict[str, list[tuple[str, tuple[float, float, float, float], bool]]] = {}
    for picture in found.pictures:
        width, height = sizes[picture.path]
        kept[picture.path] = []
        for name, one in marks[picture.path]:
            x, y, w, h = one.bbox
            left, top = max(x, 0.0), max(y, 0.0)
            w, h = min(x + w, width) - left, min(y + h, height) - top
            # Files round to hundredths of a pixel, and some count from 1.
            odd['reach beyond their picture and were cut at its border'] += (
                min(x, y) < -1 or x + one.bbox[2] > width + 1
            ) or y + one.bbox[3] > height + 1
            if min(w, h) < 1:
                odd['are smaller than a pixel and were left aside'] += 1
                continue
            kept[picture.path].append((name, (left, top, w, h), bool(one.iscrowd)))
    used = {name for boxes in kept.values() for name, _, crowd in boxes if not crowd}
    classes = [name for name in names if name in used]
    if not classes:
        raise PETLError(
            f"'{found.root}' names {len(names)} classes, and no picture has a box of "
            'any; annotate some.'
        )
    notes = [*found.notes, *(f'{n} boxes {what}' for what, n in odd.items() if n)]
    unused = [name for name in names if name not in used]
    if unused:
        notes.append(f'classes without a box were left aside: {some(unused)}')
    labels = {name: label for label, name in enumerate(classes)}
    final = {
        path: tuple(
            Mark(labels[name], box, crowd)
            for name, box, crowd in boxes
            if name in labels
        )
        for path, boxes in kept.items()
    }
    shows = {
        path: frozenset(classes[mark.label] for mark in boxes if not mark.crowd)
        for path, boxes in final.items()
    }
    texts = {
        path: json.dumps([(classes[m.label], m.box, m.crowd) for m in boxes]).encode()
        for path, boxes in final.items()
    }
    named = with_classes(found, classes, shows, texts)
    return Boxes(replace(named, notes=tuple(notes)), final, sizes)
