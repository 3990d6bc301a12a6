"""Pictures with masks of their pixels: which there are, and what is wrong with them.

A mask has the stem of its picture, in one of two layouts, with parts or without::

    folder/images/*.jpg, folder/masks/*.png       or images/train/, masks/train/, ...
    folder/train/images/*.jpg, folder/train/masks/*.png, folder/val/...

A mask holds the number of a class in each pixel, with a palette or without, or colours.
Names of the classes, and colours where masks hold these, stand in a file beside the
folders: a line for each class, in their order, ``cat`` or ``cat 255 0 0``. Masks with a
palette are read by its colours where every class has one there and numbers cannot be
what is meant: palettes give one number several colours, or have the colours of the
classes in another order. The number 255 and a class called ``ignore`` or ``void`` do
not count.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets.lines import read_lines
from mmpetl.datasets.maps import fault_of_form, sizes
from mmpetl.datasets.own.find import (
    PART_NAMES,
    Found,
    Picture,
    folders,
    some,
)
from mmpetl.datasets.own.scenes import opened_scenes, size_of, with_classes
from mmpetl.datasets.walk import files_below, is_picture

LAYOUT = 'masks'
IGNORED = 255
"""Number of pixels that do not count."""
IGNORED_NAMES = ('ignore', 'void')

PICTURES = ('images', 'imgs', 'jpegimages')
MASKS = ('masks', 'labels', 'annotations', 'segmentationclass')
"""What folders may be called, in small letters."""

CLASS_FILES = ('classes.txt', 'class_dict.csv', 'labelmap.txt')
"""Files of names and colours; the latter two as other tools write them."""

MOST_UNNAMED = 64
"""Numbers that masks may hold where no file names them: more are no classes."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Named:
    """A class of the file of names: its colour is None where masks hold numbers."""

    name: str
    colour: Colour | None

    @property
    def counts(self) -> bool:
        """Whether it is a class, and no word for what does not count."""
        return self.name.casefold() not in IGNORED_NAMES


@dataclass(frozen=True)
class Masks:
    """Pictures with masks.

    Attributes:
        found: The pictures.
        files: The mask of each, by its path.
        numbers: What masks hold to labels: 256 numbers, or a label by colour.
        palette: A colour for each class, or None where none is known.
        by_palette: Whether a mask with a palette stands for the colours of that.
    """

    found: Found
    files: Mapping[str, Path]
    numbers: np.ndarray | Mapping[Colour, int]
    palette: list[list[int]] | None
    by_palette: bool = False

    def labels(self, path: str) -> np.ndarray:
        """Labels of a picture by its path, (H, W) uint8; 255 does not count."""
        return _labels(self.files[path], self.numbers, self.by_palette)


def mask_folders(data: Path, leave: Path | None = None) -> list[tuple[Path, Path, str]]:
    """Folders of pictures and of their masks, with the part that each pair is of.

    There is none where the layout is another one.
    """
    if not data.is_dir():
        return []
    pair = _pair(data, leave)
    if pair is None:
        parts = [f for f in folders(data, leave) if f.name.lower() in PART_NAMES]
        pairs = [(_pair(f, leave), PART_NAMES[f.name.lower()]) for f in parts]
        return [(*pair, part) for pair, part in pairs if pair]
    pictures, masks = pair
    within = [f for f in folders(pictures, leave) if f.name.lower() in PART_NAMES]
    if not within:
        return [(pictures, masks, '')]
    return [(f, masks / f.name, PART_NAMES[f.name.lower()]) for f in within]


def _pair(folder: Path, leave: Path | None) -> tuple[Path, Path] | None:
    called = {f.name.lower(): f for f in folders(folder, leave)}
    pictures = next((called[name] for name in PICTURES if name in called), None)
    masks = next((called[name] for name in MASKS if name in called), None)
    return (pictures, masks) if pictures and masks else None


def find_masks(data: Path, leave: Path | None = None) -> Masks:
    """Find pictures and masks, open each, and refuse what is no good.

    Args:
        data: A folder in one of the layouts above.
        leave: The work folder, resolved, which may lie below.

    Raises:
        PETLError: A picture has no mask or several, a mask no picture or another size;
            one cannot be decoded, or lies in two parts; masks hold colours and no file
            says of which classes; or they hold numbers or colours that it does not
            name; or palettes give one number several colours; or there are fewer than
            two classes.
    """
    pairs = mask_folders(data, leave)
    parts = [part for _, _, part in pairs]
    if '' not in parts and 'train' not in parts:
        raise PETLError(
            f"'{data}' has masks of {', '.join(parts)} and none of train; name the "
            "training pictures' folder train, or leave parts out to have them drawn."
        )
    twice = [part for part, n in Counter(parts).items() if n > 1]
    if twice:
        raise PETLError(f"'{data}' has several folders of the split {twice[0]}.")
    files: dict[str, Path] = {}
    pictures = []
    for folder, masks, part in pairs:
        for picture, mask in _matched(folder, masks, leave):
            path = picture.relative_to(data).as_posix()
            pictures.append(Picture(path, '', part))
            files[path] = mask
    pictures.sort(key=lambda p: p.path)
    found = opened_scenes(Found(data, LAYOUT, tuple(pictures)))
    named, place = _named(data)
    held = _all_held(found, files)
    by_palette = _is_by_palette(held, named)
    values = _counted(held, named, by_palette, data)
    if any(isinstance(value, tuple) for value in values):
        numbers, classes, colours, notes = _by_colour(data, values, named, place)
    else:
        numbers, classes, colours, notes = _by_number(data, values, named, place)
    if len(classes) < 2:
        raise PETLError(
            f"the masks of '{data}' hold {len(classes)} class"
            f'{"" if len(classes) == 1 else "es"} ({some(classes)}); two are needed, '
            'what lies around things being one.'
        )
    colours = colours or _palette_of(found, files, numbers)
    shows, marks = {}, {}
    for picture in found.pictures:
        labels = _labels(files[picture.path], numbers, by_palette)
        there = np.unique(labels[labels != IGNORED]).tolist()
        shows[picture.path] = frozenset(classes[label] for label in there)
        marks[picture.path] = hashlib.sha256(labels.tobytes()).digest()
    named_found = with_classes(found, classes, shows, marks)
    notes = (*found.notes, *notes)
    named_found = replace(named_found, notes=notes)
    return Masks(named_found, files, numbers, colours, by_palette)


def _matched(
    pictures: Path, masks: Path, leave: Path | None
) -> Iterator[tuple[Path, Path]]:
    """Pictures with the masks of their stems.

    Raises:
        PETLError: Some have none or several, or masks are left.
    """
    if not masks.is_dir():
        raise PETLError(f"'{pictures}' has no folder of masks '{masks}' beside it.")
    named = [path for path in files_below(pictures, leave) if is_picture(path)]
    other: dict[str, list[Path]] = {}
    for path in files_below(masks, leave):
        other.setdefault(_stem(path, masks), []).append(path)
    kinds = {path.suffix.lower() for files in other.values() for path in files}
    if kinds and kinds <= {'.txt', '.xml'}:
        raise PETLError(
            f"'{masks}' holds {' and '.join(sorted(kinds))} files (boxes as YOLO or "
            'VOC write them?) and no masks; boxes are read from files of COCO.'
        )
    stems = Counter(_stem(path, pictures) for path in named)
    several = [stem for stem, n in stems.items() if n > 1]
    several += [stem for stem in stems if len(other.get(stem, ())) > 1]
    if several:
        raise PETLError(
            f"'{pictures}' and '{masks}' have several files of one stem: "
            f'{some(several)}; a picture has one mask.'
        )
    lonely = [stem for stem in stems if stem not in other]
    left = [files[0].name for stem, files in other.items() if stem not in stems]
    if lonely or left:
        what = f'{len(lonely)} pictures without a mask: {some(lonely)}'
        if not lonely:
            what = f'{len(left)} files of no picture: {some(left)}'
        raise PETLError(
            f"'{pictures}' and '{masks}' do not fit: {what}; a mask has the stem of "
            'its picture.'
        )
    for path in named:
        yield path, other[_stem(path, pictures)][0]


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix('').as_posix()


# ---- what masks hold -----------------------------------------------------------------
@dataclass(frozen=True)
class _Held:
    """What a mask holds.

    Attributes:
        name: Of the mask.
        values: Numbers, or colours.
        palette: The colour of each of these numbers that has one; None where the mask
            has no palette.
    """

    name: str
    values: list[int] | list[Colour]
    palette: Mapping[int, Colour] | None

    def colours(self, named: Collection[Colour]) -> dict[int, Colour]:
        """Colours of its numbers; 255 is one of them where its colour is named."""
        return {
            number: colour
            for number, colour in (self.palette or {}).items()
            if number != IGNORED or colour in named
        }


def _values(picture: Image.Image) -> np.ndarray:
    """Numbers of an opened mask (H, W), or its colours (H, W, 3)."""
    return np.asarray(picture.convert('RGB') if fault_of_form(picture) else picture)


def _palette(picture: Image.Image) -> dict[int, Colour] | None:
    """Colours of the numbers of an opened mask; None where it has no palette.

    The number 255 is left out where another one has its colour, which is then of that.
    """
    if picture.mode != 'P':
        return None
    given = picture.getpalette('RGB') or []
    given += [0] * (768 - len(given))
    colours = {n: tuple(given[3 * n : 3 * n + 3]) for n in range(256)}
    last = colours.pop(IGNORED)
    return colours if last in colours.values() else {**colours, IGNORED: last}


def _all_held(found: Found, files: Mapping[str, Path]) -> list[_Held]:
    """What each mask holds.

    Raises:
        PETLError: A mask cannot be decoded, is lossy or of another size than its
            picture.
    """
    held, faults = [], []
    for picture in found.pictures:
        path = files[picture.path]
        name = path.relative_to(found.root).as_posix()
        fault = _fault(path, found.root / picture.path)
        if fault:
            faults.append(f'{name} {fault}')
            continue
        with Image.open(path) as mask:
            values, palette = _values(mask), _palette(mask)
        if values.ndim == 3:
            colours = np.unique(values.reshape(-1, 3), axis=0)
            held.append(_Held(name, [tuple(c) for c in colours.tolist()], None))
            continue
        there = np.unique(values).astype(int).tolist()
        if there[-1] > IGNORED or there[0] < 0:
            faults.append(f'{name} holds the number {there[-1]}, of 255 at most')
        if palette is not None:
            palette = {n: palette[n] for n in there if n in palette}
        held.append(_Held(name, there, palette))
    if faults:
        raise PETLError(
            f"{len(faults)} of {len(found.pictures):,} masks below '{found.root}' are "
            f'no good: {some(faults, "; ")}.'
        )
    return held


def _is_by_palette(held: Sequence[_Held], named: Sequence[Named]) -> bool:
    """Whether masks with a palette stand for its colours, and not for its numbers.

    Numbers are what most programs mean, and colours are for the eye. Those of one file
    may be others in the next, though, or those of classes in another order.

    Raises:
        PETLError: A number has several colours, and not every class has one.
    """
    known = bool(named) and all(one.colour for one in named)
    classes = {one.colour for one in named if one.counts} if known else set()
    coloured: dict[int, tuple[Colour, str]] = {}
    for mask in held:
        for number, colour in mask.colours(classes).items():
            before, first = coloured.setdefault(number, (colour, mask.name))
            if before == colour:
                continue
            if known:
                return True
            one, other = (' '.join(map(str, c)) for c in (before, colour))
            raise PETLError(
                f'the number {number} is the colour {one} in {first} and {other} in '
                f'{mask.name}: each mask has a palette of its own; name all classes '
                f"with their colours in {CLASS_FILES[0]} ('cat 255 0 0'), or save all "
                'masks with one palette.'
            )
    colours = {number: colour for number, (colour, _) in coloured.items()}
    different = set(colours.values())
    if not known or len(different) < len(colours):
        return False
    if not different:
        return False
    order = dict(enumerate(one.colour for one in named))
    of = set(order.values())
    if not different <= of:
        # They are for the eye alone, unless one says that a number is another class.
        return any(c in of and order.get(n) != c for n, c in colours.items())
    beside_colours = any(isinstance(mask.values[0], tuple) for mask in held)
    return beside_colours or not colours.items() <= order.items()


def _counted(
    held: Sequence[_Held], named: Sequence[Named], by_palette: bool, data: Path
) -> Counter[int | Colour]:
    """In how many masks each number or colour is.

    Raises:
        PETLError: Some hold numbers and some colours.
    """
    counts: Counter[int | Colour] = Counter()
    kinds: dict[bool, str] = {}
    known = {one.colour for one in named}
    for mask in held:
        values = set(mask.values)
        if by_palette and mask.palette is not None:
            values = set(mask.colours(known).values())
        for value in values:
            kinds.setdefault(isinstance(value, tuple), mask.name)
        counts.update(values)
    if len(kinds) > 1:
        raise PETLError(
            f"of the masks below '{data}' some hold numbers ({kinds[False]}) and some "
            f'colours ({kinds[True]}); write all in one way.'
        )
    return counts


def _fault(path: Path, picture: Path) -> str | None:
    try:
        with Image.open(path) as mask:
            form = fault_of_form(mask)
            if form and ('JPEG' in form or mask.format == 'JPEG'):
                return 'is a JPEG, whose loss changes labels; save masks as PNG'
            if form and mask.mode not in ('RGB', 'RGBA'):
                return form
            mask.load()
            return sizes(mask.size, size_of(picture))
    except Exception as error:  # decoders raise what they like
        return f'is no picture that can be read ({type(error).__name__})'


_COLOUR = re.compile(
    r'(.*?)[\s,:;]+' + r'(\d{1,3})[\s,;]+' * 2 + r'(\d{1,3})(?:[\s,:;].*)?'
)
"""A name and a colour; what CVAT writes behind it (parts, actions) is passed over."""


def _named(data: Path) -> tuple[list[Named], Path | None]:
    """Classes of the file of names, and that file; nothing where there is none."""
    path = next((data / name for name in CLASS_FILES if (data / name).is_file()), None)
    if path is None:
        return [], None
    found = []
    for number, line in read_lines(path):
        if line.startswith('#') or line.replace(' ', '').lower() == 'name,r,g,b':
            continue
        match = _COLOUR.fullmatch(line)
        name = (match[1] if match else line).strip()
        colour = tuple(int(value) for value in match.groups()[1:]) if match else None
        if not name or (colour and max(colour) > 255):
            raise PETLError(
                f'{path}:{number}: {line!r} is no class; a line is a name, or a name '
                'and the red, green and blue of its colour, 0 to 255 each.'
            )
        found.append(Named(name, colour))
    for what, values in (
        ('name', [one.name for one in found]),
        ('colour', [one.colour for one in found if one.colour]),
    ):
        twice = [value for value, n in Counter(values).items() if n > 1]
        if twice:
            raise PETLError(f'{path} has the {what} {twice[0]} twice.')
    return found, path


_Read = tuple[
    'np.ndarray | dict[Colour, int]', list[str], 'list[list[int]] | None', list[str]
]


def _by_colour(
    data: Path,
    values: Counter[int | Colour],
    named: Sequence[Named],
    place: Path | None,
) -> _Read:
    """Labels by colour, names, palette, and what is to be said."""
    if place is None or not any(one.colour for one in named):
        said = some([f'{r} {g} {b}' for r, g, b in sorted(values)])
        raise PETLError(
            f"the masks of '{data}' hold {len(values)} colours ({said}), and nothing "
            f'says of which classes; write {data / CLASS_FILES[0]} with a line for '
            "each class, as in 'cat 255 0 0'."
        )
    of = {one.colour: one for one in named if one.colour}
    strange = [
        f'{r} {g} {b} (in {values[r, g, b]} masks)'
        for r, g, b in sorted(values)
        if (r, g, b) not in of
    ]
    if strange:
        raise PETLError(
            f"the masks of '{data}' hold {len(strange)} colours that {place} does not "
            f'name: {some(strange)}. Name them, or map them to a class called '
            f'{IGNORED_NAMES[0]}.'
        )
    used = [one for one in named if one.counts and one.colour in values]
    numbers = {one.colour: label for label, one in enumerate(used)}
    numbers |= {one.colour: IGNORED for one in named if not one.counts and one.colour}
    palette = [list(one.colour) for one in used]
    return numbers, [one.name for one in used], palette, _unused(named, used)


def _by_number(
    data: Path,
    values: Counter[int | Colour],
    named: Sequence[Named],
    place: Path | None,
) -> _Read:
    """Labels by number, names, palette, and what is to be said."""
    table = np.full(256, IGNORED, np.uint8)
    notes = []
    if place is None:
        held = sorted(value for value in values if value != IGNORED)
        if held == [0] and IGNORED in values:
            held = [0, IGNORED]
            notes.append('masks hold 0 and 255 alone, so that 255 is a class here')
        if len(held) > MOST_UNNAMED:
            raise PETLError(
                f"the masks of '{data}' hold {len(held)} numbers, and nothing names "
                'them: soft edges, or shades of grey? Save masks without smoothing, or '
                f'name the classes in {data / CLASS_FILES[0]}, a line each.'
            )
        notes.append(
            'classes are called by their numbers, since there is no '
            f'{CLASS_FILES[0]} beside the pictures'
        )
        table[held] = range(len(held))
        return table, [f'class {value}' for value in held], None, notes
    strange = [
        f'{value} (in {values[value]} masks)'
        for value in sorted(values)
        if value >= len(named) and value != IGNORED
    ]
    if strange:
        raise PETLError(
            f"the masks of '{data}' hold numbers that {place} does not name: "
            f'{some(strange)}; it names {len(named)} classes, the first of which is 0.'
        )
    used = [one for i, one in enumerate(named) if one.counts and i in values]
    for number, one in enumerate(named):
        if one in used:
            table[number] = used.index(one)
    palette = [list(one.colour) for one in used if one.colour]
    return (
        table,
        [one.name for one in used],
        palette if len(palette) == len(used) else None,
        _unused(named, used),
    )


def _unused(named: Sequence[Named], used: Sequence[Named]) -> list[str]:
    left = [one.name for one in named if one.counts and one not in used]
    return [f'classes without a pixel were left aside: {some(left)}'] if left else []


def _palette_of(
    found: Found, files: Mapping[str, Path], numbers: np.ndarray | Mapping[Colour, int]
) -> list[list[int]] | None:
    """Colours of the first mask's palette; None where it has none of its own."""
    with Image.open(files[found.pictures[0].path]) as picture:
        given = picture.getpalette('RGB') if picture.mode == 'P' else None
    if not given or isinstance(numbers, Mapping):
        return None
    held = [n for n in range(256) if numbers[n] != IGNORED]
    colours = [given[3 * n : 3 * n + 3] for n in held]
    whole = all(len(c) == 3 for c in colours)
    distinct = len({tuple(c) for c in colours}) == len(colours)
    return colours if whole and distinct else None


def _labels(
    path: Path, numbers: np.ndarray | Mapping[Colour, int], by_palette: bool
) -> np.ndarray:
    """Labels of a mask, (H, W) uint8."""
    with Image.open(path) as picture:
        values, palette = _values(picture), _palette(picture)
    if not isinstance(numbers, Mapping):
        return numbers[values.astype(np.uint8)]
    if by_palette and palette is not None:
        of_numbers = np.full(256, IGNORED, np.uint8)
        for number, colour in palette.items():
            of_numbers[number] = numbers.get(colour, IGNORED)
        return of_numbers[values]
    packed = values.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    labels = np.full(packed.shape, IGNORED, np.uint8)
    for (r, g, b), label in numbers.items():
        labels[packed == (r << 16 | g << 8 | b)] = label
    return labels
