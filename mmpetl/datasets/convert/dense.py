"""COCO, PASCAL VOC and ADE20K from their official archives."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mmpetl.core import PETLError
from mmpetl.core.boundary import as_utf8
from mmpetl.datasets.annotations import coco_names
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.convert.files import need_in, staged
from mmpetl.datasets.convert.unpack import Rule, unpack, write_late

Counts = list[tuple[str, int, int | None]]
"""Name of a part, files found, files that the official set has."""


def below(pattern: str) -> Rule:
    """A rule that keeps what ``pattern`` finds in a path: its group ``keep``."""
    compiled = re.compile(pattern)

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        match = compiled.search(f'/{path}')
        return PurePosixPath(match['keep']) if match else None

    return rule


VOC_RULE = below(
    r'/(?P<keep>VOC(2007|2012)/'
    r'((Annotations|ImageSets|JPEGImages|Segmentation(Class|ClassAug|Object))/.+))$'
)
ADE_RULE = below(
    r'/(?P<keep>(images/(training|validation)/[^/]+\.jpg'
    r'|annotations/(training|validation)/[^/]+\.png'
    r'|(objectInfo150|sceneCategories)\.txt))$'
)
COCO_RULE = below(
    r'/(?P<keep>((train|val)2017/[^/]+\.jpg'
    r'|annotations/instances_(train|val)2017\.json))$'
)


def convert_voc(sources: Iterable[Path], root: Path, workers: int = 1) -> Counts:
    """``VOCdevkit/VOC2007`` and ``VOC2012`` from the trainval and test archives.

    The lists come last, so that a half-unpacked year has none. Archives may be given
    one by one, in any order.

    Raises:
        PETLError: Damaged archives, or a list that names a file that is nowhere.
    """
    folder = root / 'VOCdevkit'
    unpacked = unpack(
        sources,
        folder,
        VOC_RULE,
        is_late=lambda place: place.parts[1] == 'ImageSets',
        workers=workers,
        title='VOC',
    )
    if not unpacked.late:
        raise PETLError(
            'these archives hold no VOC2007/ImageSets or VOC2012/ImageSets; give '
            'VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and '
            'VOCtrainval_11-May-2012.tar'
        )
    for place, content in unpacked.late.items():
        _check_voc_list(folder, place, as_utf8(content, str(place)))
    write_late(unpacked, folder)
    counts: Counts = []
    for split in facts_of('voc').splits:
        path = folder / split.file
        if path.is_file():
            counts.append((split.name, len(path.read_text().split()), split.size))
    return counts


def _check_voc_list(folder: Path, place: PurePosixPath, text: str) -> None:
    """Each id of a list that we read has its picture and its annotation."""
    if str(place) not in _voc_lists():
        return
    other, suffix = _voc_lists()[str(place)]
    year = folder / place.parts[0]
    for name in text.split():
        for path in (
            year / 'JPEGImages' / f'{name}.jpg',
            year / other / f'{name}{suffix}',
        ):
            if not path.is_file():
                raise PETLError(
                    f'{place} lists {name}, but there is no {path}; give the archive '
                    'that holds it, too'
                )


def _voc_lists() -> dict[str, tuple[str, str]]:
    """List file to the folder and the suffix of what annotates its pictures."""
    detection, segmentation = facts_of('voc'), facts_of('voc_seg')
    lists = {split.file: ('Annotations', '.xml') for split in detection.splits}
    for split in segmentation.splits:
        masks = 'SegmentationClassAug' if split.optional else 'SegmentationClass'
        lists[f'{segmentation.folder}/{split.file}'] = (masks, '.png')
    return lists


def convert_ade20k(sources: Iterable[Path], root: Path, workers: int = 1) -> Counts:
    """``ADEChallengeData2016`` from the archive of that name.

    Raises:
        PETLError: Damaged archive, a picture without its map, or a folder that is there
            and holds something else.
    """
    facts = facts_of('ade20k')
    folder = root / facts.path
    with staged(folder) as partial:
        if partial is not None:
            unpack(sources, partial, ADE_RULE, workers=workers, title='ADE20K')
            for split in facts.splits:
                _check_pairs(partial / split.images)
    for split in facts.splits:
        need_in(folder, split.images, split.images.replace('images', 'annotations'))
    return [
        (split.name, len(list((folder / split.images).glob('[!.]*.jpg'))), split.size)
        for split in facts.splits
    ]


def _check_pairs(images: Path) -> None:
    maps = images.parents[1] / 'annotations' / images.name
    stems = {path.stem for path in images.glob('[!.]*.jpg')}
    labelled = {path.stem for path in maps.glob('[!.]*.png')}
    if not stems:
        raise PETLError(
            f'the archive has no images/{images.name}/*.jpg; give '
            'ADEChallengeData2016.zip'
        )
    if stems != labelled:
        odd = sorted(stems ^ labelled)[0]
        raise PETLError(
            f'{images.name}: {odd} has a picture or a map, not both '
            f'({len(stems):,} pictures, {len(labelled):,} maps)'
        )


def convert_coco(sources: Iterable[Path], root: Path, workers: int = 1) -> Counts:
    """``coco/train2017``, ``val2017`` and their instance files.

    Instance files come last, when all pictures that they list are there; archives may
    be given one by one, that of the annotations at the end.

    Raises:
        PETLError: Damaged archives, a listed picture that is nowhere, or nothing of
            COCO 2017 in them.
    """
    folder = root / 'coco'
    done = unpack(
        sources,
        folder,
        COCO_RULE,
        is_late=lambda place: place.suffix == '.json',
        workers=workers,
        title='COCO',
    )
    if not done.written + done.skipped + len(done.late):
        raise PETLError(
            'these archives hold nothing of COCO 2017; give train2017.zip, '
            'val2017.zip and annotations_trainval2017.zip'
        )
    splits = facts_of('coco').splits
    for split in splits:
        content = done.late.get(PurePosixPath(split.file))
        if content is not None:
            _check_coco_file(folder / split.images, split.file, content)
    write_late(done, folder)
    return [
        (split.name, len(list((folder / split.images).glob('[!.]*.jpg'))), split.size)
        for split in splits
    ]


def _check_coco_file(images: Path, file: str, content: bytes) -> None:
    names = coco_names(content, file)
    there = {path.name for path in images.glob('*.jpg')}
    missing = [name for name in names if name not in there]
    if missing:
        raise PETLError(
            f'{file} lists {len(names):,} pictures, {len(missing):,} of which are not '
            f'in {images}, {missing[0]} for one; give the archive that holds them, too'
        )
