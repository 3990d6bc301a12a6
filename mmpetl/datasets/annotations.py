"""Annotation files of others, held to what their readers take from them.

COCO's file of 2017 is 450 MB: it is decoded straight into the fields that are read, and
what else it holds is passed over. A key that an object has twice is told of in files of
up to 32 MiB; looking for it in larger ones costs more than all the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import as_utf8, checked, parse_json, read_bytes
from mmpetl.datasets.lines import as_label

_SMALL = 32 << 20
_XML_LIMIT = 16 << 20

# --- {picture: class id} -----------------------------------------------------


_LARGEST = 2**31 - 1


def parse_classes(data: bytes, place: str) -> dict[str, int]:
    """The object ``{picture: class id}`` of the fine-grained sets.

    Args:
        data: JSON; ids are integers, or their decimal digits as text.
        place: Where it comes from, for messages.

    Raises:
        PETLError: It is something else, or names a picture twice.
    """
    try:
        entries = parse_json(data, dict[str, int | str], place)
        found = {key: _class_id(key, value) for key, value in entries.items()}
        if not found:
            raise PETLError('it names no picture')
        return found
    except PETLError as error:
        why = str(error).removeprefix(place).lstrip(': ')
        raise PETLError(
            f'{place} is not a JSON object {{image path: class id}}: {why}'
        ) from None


def _class_id(key: str, value: int | str) -> int:
    number = as_label(value) if isinstance(value, str) else value
    if number is None or abs(number) > _LARGEST:
        raise PETLError(
            f"'{key}' has the class id {str(value)[:40]!r}, expected an integer of at "
            'most 32 bits'
        )
    return number


# --- COCO --------------------------------------------------------------------


class Category(msgspec.Struct):
    """A class of a COCO file."""

    id: int
    name: str


class Picture(msgspec.Struct):
    """A picture of a COCO file."""

    id: int
    file_name: str
    height: int
    width: int


class Rle(msgspec.Struct):
    """A mask by the lengths of its runs."""

    size: tuple[int, int]
    counts: list[int] | str


class Instance(msgspec.Struct):
    """An object of a COCO file; ``segmentation`` is decoded when it is looked at."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int | bool = 0
    ignore: int | bool = False
    segmentation: msgspec.Raw = msgspec.Raw(b'null')


class CocoFile(msgspec.Struct):
    """What is read of a COCO file; others' keys are passed over."""

    images: list[Picture]
    categories: list[Category]
    annotations: list[Instance] | msgspec.UnsetType = msgspec.UNSET


class _FilesOnly(msgspec.Struct):
    class Name(msgspec.Struct):
        file_name: str

    images: list[Name]
    annotations: list[msgspec.Raw]


_LONG = 200
"""Bytes of polygons that hold three points at least."""

_MASK = msgspec.json.Decoder(list[list[float]] | Rle | None)


def read_coco(path: Path, unique: bool = True) -> CocoFile:
    """A COCO file whose parts belong together.

    Args:
        path: The file.
        unique: Whether annotations need ids of their own; some heirs of the format
            number them anew in each picture.

    Raises:
        FileNotFoundError: There is none.
        PETLError: It is no COCO file, ids are given twice or lead nowhere, or a box
            is none: negative, not finite, or wholly outside of its picture.
    """
    data = read_bytes(path, 'COCO file')
    if data.startswith(b'\xef\xbb\xbf'):
        raise PETLError(
            f"'{path}' is not a COCO file as its readers take it: it begins with a "
            'byte order mark; save it as UTF-8 without one'
        )
    try:
        found = _decode(data, CocoFile, str(path))
        _check_coco_ids(found, unique)
        _check_boxes(found)
    except PETLError as error:
        why = str(error).removeprefix(str(path)).lstrip(': ')
        raise PETLError(f"'{path}' is not a COCO file: {why}") from None
    return found


def coco_names(data: bytes, place: str) -> list[str]:
    """Names of the pictures of a COCO file.

    Raises:
        PETLError: It is none.
    """
    try:
        found = _decode(data, _FilesOnly, place)
    except PETLError as error:
        why = str(error).removeprefix(place).lstrip(': ')
        raise PETLError(f'{place} is not a COCO file: {why}') from None
    return [entry.file_name for entry in found.images]


def _decode(data: bytes, kind: type, place: str):
    if len(data) <= _SMALL:
        parse_json(data, place=place)  # a key that is there twice
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except RecursionError:
        raise PETLError('it is nested too deep') from None
    except msgspec.ValidationError as error:
        said, _, at = str(error).replace('`', '').partition(' - at $.')
        said = said[:1].lower() + said[1:]
        raise PETLError(f'{at}: {said}' if at else said) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        as_utf8(data, place)
        raise PETLError(f'it is damaged or no JSON ({error})') from None


def _unique(values: Iterable, what: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise PETLError(f'{what} {value!r} is there {count} times')


def _check_coco_ids(found: CocoFile, unique: bool) -> None:
    _unique((entry.id for entry in found.images), 'image id')
    _unique((entry.id for entry in found.categories), 'category id')
    _unique((entry.name for entry in found.categories), 'category')
    for entry in found.images:
        if entry.height < 1 or entry.width < 1:
            raise PETLError(
                f'image {entry.id} is {entry.width} x {entry.height}, expected pixels'
            )
    if found.annotations is msgspec.UNSET:
        return
    if unique:
        _unique((entry.id for entry in found.annotations), 'annotation id')
    images = {entry.id for entry in found.images}
    categories = {entry.id for entry in found.categories}
    for entry in found.annotations:
        if entry.category_id not in categories:
            raise PETLError(
                f'annotation {entry.id} has category {entry.category_id}, which is not '
                'among the categories'
            )
        if entry.image_id not in images:
            raise PETLError(
                f'annotation {entry.id} belongs to image {entry.image_id}, which is '
                'not listed'
            )


def _check_boxes(found: CocoFile) -> None:
    """A box without extent is upstream's to drop; one that is none is refused."""
    if found.annotations is msgspec.UNSET:
        return
    sizes = {entry.id: (entry.width, entry.height) for entry in found.images}
    for entry in found.annotations:
        x, y, width, height = entry.bbox
        if not all(map(math.isfinite, (*entry.bbox, entry.area))) or entry.area < 0:
            raise PETLError(
                f'annotation {entry.id} has bbox {list(entry.bbox)} and area '
                f'{entry.area}, expected finite numbers and no negative area'
            )
        if width < 0 or height < 0:
            raise PETLError(
                f'annotation {entry.id} has bbox {list(entry.bbox)}, of negative width '
                'or height; a box is [x, y, width, height]'
            )
        across, down = sizes[entry.image_id]
        if x > across or y > down or x + width < 0 or y + height < 0:
            raise PETLError(
                f'annotation {entry.id} has bbox {list(entry.bbox)}, outside of its '
                f'picture of {across} x {down}'
            )
        try:
            _MASK.decode(entry.segmentation)
        except (msgspec.DecodeError, RecursionError) as error:
            said = str(error).partition(' - at')[0].replace('`', '')
            raise PETLError(
                f'annotation {entry.id} has a segmentation that is neither polygons '
                f'nor run lengths ({said})'
            ) from None


def remarks_of_coco(found: CocoFile, place: str) -> list[str]:
    """What upstream does without a word: boxes that reach beyond their picture."""
    sizes = {entry.id: (entry.width, entry.height) for entry in found.images}
    beyond = []
    for entry in found.annotations or ():
        x, y, width, height = entry.bbox
        across, down = sizes[entry.image_id]
        # Files of 2017 round to hundredths of a pixel.
        if min(x, y) < -1 or x + width > across + 1 or y + height > down + 1:
            beyond.append(entry.id)
    small = [e.id for e in found.annotations or () if min(e.bbox[2:]) < 1]
    flat = [e.id for e in found.annotations or () if _is_flat(e.segmentation)]
    return [
        f'{place}: {len(ids)} {what}, annotation {ids[0]} for one'
        for ids, what in (
            (beyond, 'boxes reach beyond their picture by more than a pixel'),
            (small, 'boxes are smaller than a pixel and are left out'),
            (flat, 'segmentations have no polygon of three points and are left out'),
        )
        if ids
    ]


def _is_flat(segmentation: msgspec.Raw) -> bool:
    """Whether it is polygons, none of which has three points."""
    if len(segmentation) > _LONG:
        return False
    polygons = _MASK.decode(segmentation)
    if not isinstance(polygons, list) or not polygons:
        return False
    return all(len(points) < 6 or len(points) % 2 for points in polygons)


# --- PASCAL VOC --------------------------------------------------------------


class _Box(msgspec.Struct):
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass
class VocFile:
    """What is read of a VOC annotation.

    Args:
        size: Width and height; None where the file does not say.
        beyond: Whether a box reaches beyond that size by more than a pixel.
        objects: Class name and whether it counts, of each object.
    """

    size: tuple[int, int] | None = None
    objects: list[tuple[str, bool]] = field(default_factory=list)
    beyond: bool = False


def read_voc(path: Path) -> VocFile:
    """A VOC annotation.

    Raises:
        FileNotFoundError: There is none.
        PETLError: It is no XML, a number is none, or a box is inside out, or wholly
            outside of the size that the file states.
    """
    data = read_bytes(path, 'annotation', _XML_LIMIT)
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise PETLError(f"'{path}' is not readable XML: {error}") from None
    found = VocFile()
    size = root.find('size')
    if size is not None:
        width, height = (
            _whole(size.findtext(key), f"'{path}': size.{key}")
            for key in ('width', 'height')
        )
        if width < 1 or height < 1:
            raise PETLError(f"'{path}' states a size of {width} x {height} pixels")
        found.size = width, height
    for number, entry in enumerate(root.findall('object'), 1):
        place = f"'{path}': object {number}"
        name = entry.findtext('name')
        if not name:
            raise PETLError(f'{place} has no name')
        box = _voc_box(entry, place)
        if found.size and (
            box.xmin > found.size[0]
            or box.ymin > found.size[1]
            or box.xmax < 0
            or box.ymax < 0
        ):
            raise PETLError(
                f'{place} has the box {_tuple(box)}, outside of the stated size '
                f'{found.size[0]} x {found.size[1]}'
            )
        if found.size:
            across, down = found.size
            found.beyond |= box.xmax > across + 1 or box.ymax > down + 1
        difficult = entry.findtext('difficult')
        flag = 0 if difficult is None else _whole(difficult, f'{place}, difficult')
        if flag not in (0, 1):
            raise PETLError(f'{place} has difficult {flag}, expected 0 or 1')
        found.objects.append((name, not flag))
    return found


def _voc_box(entry: ElementTree.Element, place: str) -> _Box:
    bounds = entry.find('bndbox')
    if bounds is None:
        raise PETLError(f'{place} has no bndbox')
    values = {key: _number(bounds.findtext(key)) for key in _Box.__struct_fields__}
    box = checked(values, _Box, f'{place}, bndbox')
    if not all(map(math.isfinite, _tuple(box))):
        raise PETLError(f'{place} has the box {_tuple(box)}, expected finite numbers')
    if box.xmax < box.xmin or box.ymax < box.ymin:
        raise PETLError(
            f'{place} has the box {_tuple(box)}, whose end lies before its beginning'
        )
    return box


def _tuple(box: _Box) -> tuple[float, float, float, float]:
    return box.xmin, box.ymin, box.xmax, box.ymax


def _number(text: str | None) -> float | str | None:
    try:
        return float(text) if text is not None and text.isascii() else text
    except ValueError:
        return text


def _whole(text: str | None, place: str) -> int:
    number = None if text is None else as_label(text.strip())
    if number is None:
        raise PETLError(f'{place} is {text!r}, expected a whole number')
    return number
