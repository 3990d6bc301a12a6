"""Every data set that the project speaks of: what it is and where it lies on disk.

One row per data set, read by the dataset classes, the mini generator, the verifier and
the documentation. Names are those of the published result tables. A path is
``<data root>/<base>/<folder>/<split's list>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mmpetl.core import PETLError, suggest

Family = Literal['image', 'video', 'detection', 'segmentation']
Benchmark = Literal['vtab', 'fgvc', 'video', 'dense', 'study']
Layout = Literal[
    'vtab', 'fgvc', 'list', 'classes', 'video', 'coco', 'ade20k', 'voc', 'voc_seg'
]


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Args:
        name: As dataset classes take it.
        size: Samples of the official split; None where copies differ by much.
        file: Its list below the data set's folder; empty where a folder is the list.
        images: Folder that the list's paths are relative to, below the data set's.
        optional: The data set is whole without it.
    """

    name: str
    size: int | None
    file: str = ''
    images: str = ''
    optional: bool = False


@dataclass(frozen=True)
class DatasetFacts:
    """One data set.

    Args:
        id: Name in the published tables.
        title: What people call it.
        benchmark: The collection that it belongs to.
        family: Kind of task, which decides the toolbox that trains it.
        group: ``natural``, ``specialised`` or ``structured`` for VTAB-1k; otherwise a
            word for a table's heading.
        num_classes: Outputs of the head. Background counts where it is predicted.
        splits: What there is to read.
        base: Folder below the data root that several sets share.
        folder: Folder below ``base``.
        layout: How lists and files are laid out.
        metrics: Main metric first.
        licence: Terms, in a few words. Check them at the source.
        source: Where the data come from.
        aliases: Other names of the set and of its folder.
        traps: What goes wrong with it, a sentence each.
        pool: The list that drawn splits come from, for sets of several sizes.
        folds: Pairs ``train_fold<k>``, ``val_fold<k>`` that are drawn besides.
        subset: How many of ``num_classes`` the set holds, if not all.
    """

    id: str
    title: str
    benchmark: Benchmark
    family: Family
    group: str
    num_classes: int
    splits: tuple[Split, ...]
    base: str
    folder: str
    layout: Layout
    metrics: tuple[str, ...]
    licence: str
    source: str
    aliases: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()
    pool: Split | None = None
    folds: int = 0
    subset: int | None = None

    @property
    def path(self) -> str:
        """The data set's folder below the data root."""
        return '/'.join(part for part in (self.base, self.folder) if part)

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def num_present(self) -> int:
        """Classes that occur in the set's labels."""
        return self.subset or self.num_classes

    @property
    def num_test(self) -> int | None:
        """Samples that the published figure is measured on: the last split's."""
        return [split for split in self.splits if not split.optional][-1].size

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            PETLError: There is none.
        """
        for split in self.splits:
            if split.name == name:
                return split
        names = ', '.join(split.name for split in self.splits)
        raise PETLError(f"{self.id} has no split '{name}'; there are {names}.")


_UNSTATED = 'see the source'

# --- VTAB-1k -----------------------------------------------------------------

_VTAB_SOURCE = (
    'VTAB-1k export of TensorFlow Datasets; a processed archive is the Hugging Face '
    'data set XiN0919/VTAB-1k'
)
_SHARES_PICTURES = (
    'The two tasks of this source share their pictures; only labels differ.'
)


def _vtab(
    id: str,
    title: str,
    group: str,
    num_classes: int,
    num_test: int,
    licence: str,
    folder: str = '',
    aliases: tuple[str, ...] = (),
    traps: tuple[str, ...] = (),
) -> DatasetFacts:
    sizes = {'train800': 800, 'val200': 200, 'train800val200': 1000, 'test': num_test}
    return DatasetFacts(
        id=id,
        title=title,
        benchmark='vtab',
        family='image',
        group=group,
        num_classes=num_classes,
        splits=tuple(Split(name, size, f'{name}.txt') for name, size in sizes.items()),
        base='vtab-1k',
        folder=folder or id,
        layout='vtab',
        metrics=('top1',),
        licence=licence,
        source=_VTAB_SOURCE,
        aliases=aliases,
        traps=traps,
    )


_VTAB = (
    _vtab(
        'cifar100',
        'CIFAR-100',
        'natural',
        100,
        10_000,
        _UNSTATED,
        folder='cifar',
        aliases=('cifar', 'cifar_100'),
    ),
    _vtab('caltech101', 'Caltech-101', 'natural', 102, 6_084, 'CC BY 4.0'),
    _vtab('dtd', 'Describable Textures', 'natural', 47, 1_880, _UNSTATED),
    _vtab(
        'oxford_flowers102',
        'Oxford Flowers-102',
        'natural',
        102,
        6_149,
        _UNSTATED,
        aliases=('flowers102',),
    ),
    _vtab(
        'oxford_iiit_pet',
        'Oxford-IIIT Pet',
        'natural',
        37,
        3_669,
        'CC BY-SA 4.0',
        aliases=('oxford_pet', 'pets'),
    ),
    _vtab(
        'svhn',
        'SVHN, cropped digits',
        'natural',
        10,
        26_032,
        'non-commercial',
        traps=('A horizontal flip changes what a digit is.',),
    ),
    _vtab(
        'sun397',
        'SUN397',
        'natural',
        397,
        21_750,
        'research only',
        traps=('One picture cannot be decoded by TensorFlow and is left out.',),
    ),
    _vtab('patch_camelyon', 'PatchCamelyon', 'specialised', 2, 32_768, 'CC0'),
    _vtab('eurosat', 'EuroSAT, RGB', 'specialised', 10, 5_400, 'MIT'),
    _vtab(
        'resisc45',
        'RESISC45',
        'specialised',
        45,
        6_300,
        'research only; manual download',
    ),
    _vtab(
        'diabetic_retinopathy',
        'Diabetic Retinopathy, btgraham-300',
        'specialised',
        5,
        42_670,
        'terms of the Kaggle competition; login needed',
    ),
    _vtab(
        'clevr_count',
        'CLEVR, number of objects',
        'structured',
        8,
        15_000,
        'CC BY 4.0',
        traps=('Class 0 stands for three objects.', _SHARES_PICTURES),
    ),
    _vtab(
        'clevr_dist',
        'CLEVR, distance of the closest object',
        'structured',
        6,
        15_000,
        'CC BY 4.0',
        traps=(_SHARES_PICTURES,),
    ),
    _vtab('dmlab', 'DeepMind Lab frames', 'structured', 6, 22_735, _UNSTATED),
    _vtab(
        'kitti',
        'KITTI, distance of the closest vehicle',
        'structured',
        4,
        711,
        'CC BY-NC-SA 3.0',
        traps=('711 test pictures: one is 0.14 points.',),
    ),
    _vtab(
        'dsprites_loc',
        'dSprites, x position',
        'structured',
        16,
        73_728,
        _UNSTATED,
        traps=('A horizontal flip changes the label.', _SHARES_PICTURES),
    ),
    _vtab(
        'dsprites_ori',
        'dSprites, orientation',
        'structured',
        16,
        73_728,
        _UNSTATED,
        traps=('A flip changes the label.', _SHARES_PICTURES),
    ),
    _vtab(
        'smallnorb_azi',
        'smallNORB, azimuth',
        'structured',
        18,
        12_150,
        'research only',
        traps=(
            'The 200 validation pictures come from the official test set.',
            _SHARES_PICTURES,
        ),
    ),
    _vtab(
        'smallnorb_ele',
        'smallNORB, elevation',
        'structured',
        9,
        12_150,
        'research only',
        traps=(
            'Nine classes; a published recipe says 18.',
            'The 200 validation pictures come from the official test set.',
            _SHARES_PICTURES,
        ),
    ),
)

# --- FGVC --------------------------------------------------------------------

_FGVC_SOURCE = (
    '; splits: data release of VPT, also in the Hugging Face data set XiN0919/FGVC'
)
_OWN_VAL = 'About a tenth of the official training set serves for validation.'


def _fgvc(
    id: str,
    title: str,
    folder: str,
    images: str,
    num_classes: int,
    sizes: tuple[int, int, int],
    licence: str,
    source: str,
    traps: tuple[str, ...] = (_OWN_VAL,),
) -> DatasetFacts:
    return DatasetFacts(
        id=id,
        title=title,
        benchmark='fgvc',
        family='image',
        group='fine-grained',
        num_classes=num_classes,
        splits=tuple(
            Split(name, size, f'{name}.json', images)
            for name, size in zip(('train', 'val', 'test'), sizes, strict=True)
        ),
        base='fgvc',
        folder=folder,
        layout='fgvc',
        metrics=('top1',),
        licence=licence,
        source=source + _FGVC_SOURCE,
        traps=traps,
    )


_FGVC = (
    _fgvc(
        'cub_200_2011',
        'CUB-200-2011',
        'CUB_200_2011',
        'images',
        200,
        (5_394, 600, 5_794),
        'non-commercial research',
        'CaltechDATA, CUB_200_2011.tgz',
    ),
    _fgvc(
        'nabirds',
        'NABirds',
        'nabirds',
        'images',
        555,
        (21_536, 2_393, 24_633),
        'non-commercial; registration',
        'Cornell Lab of Ornithology',
        (_OWN_VAL, 'Class ids have gaps.'),
    ),
    _fgvc(
        'oxford_flowers',
        'Oxford Flowers-102, official split',
        'OxfordFlower',
        '',
        102,
        (1_020, 1_020, 6_149),
        _UNSTATED,
        'Visual Geometry Group, Oxford, 102flowers.tgz (unpacks to jpg/)',
        (),
    ),
    _fgvc(
        'stanford_dogs',
        'Stanford Dogs',
        'StanfordDogs',
        'Images',
        120,
        (10_800, 1_200, 8_580),
        'research only, terms of ImageNet',
        'Stanford, images.tar',
    ),
    _fgvc(
        'stanford_cars',
        'Stanford Cars',
        'StanfordCars',
        '',
        196,
        (7_329, 815, 8_041),
        'research only, terms of ImageNet',
        'the original host is gone',
        (
            _OWN_VAL,
            'The splits name the pooled release, car_ims/000001.jpg with six digits; '
            'most mirrors hold cars_train and cars_test with five.',
        ),
    ),
)

# --- video -------------------------------------------------------------------


def _video(
    id: str,
    title: str,
    num_classes: int,
    splits: tuple[Split, ...],
    licence: str,
    source: str,
    traps: tuple[str, ...],
) -> DatasetFacts:
    return DatasetFacts(
        id=id,
        title=title,
        benchmark='video',
        family='video',
        group='video',
        num_classes=num_classes,
        splits=splits,
        base='',
        folder=id,
        layout='video',
        metrics=('top1', 'top5'),
        licence=licence,
        source=source,
        traps=traps,
    )


def _hmdb51_splits() -> tuple[Split, ...]:
    """Split 1 is ``train`` and ``val``; the other two bear their number."""
    splits = []
    for number in (1, 2, 3):
        tail = '' if number == 1 else f'_{number}'
        for name, size in (('train', 3_570), ('val', 1_530)):
            file = f'hmdb51_{name}_split_{number}_videos.txt'
            splits.append(Split(name + tail, size, file, 'videos', number > 1))
    return tuple(splits)


_VIDEO = (
    _video(
        'kinetics400',
        'Kinetics-400',
        400,
        (
            Split('train', None, 'kinetics400_train_list_videos.txt', 'videos_train'),
            Split('val', None, 'kinetics400_val_list_videos.txt', 'videos_val'),
        ),
        'annotations CC BY 4.0; clips under the terms of YouTube',
        'cvdfoundation/kinetics-dataset',
        (
            'About 240,000 and 20,000 clips; many have disappeared, so that copies '
            'differ: state the counts of yours with a result.',
            'Class folders of the release hold blanks.',
        ),
    ),
    _video(
        'ssv2',
        'Something-Something V2',
        174,
        (
            Split('train', 168_913, 'sthv2_train_list_videos.txt', 'videos'),
            Split('val', 24_777, 'sthv2_val_list_videos.txt', 'videos'),
        ),
        'non-commercial; registration',
        'Qualcomm AI Datasets, .webm, to be re-encoded to .mp4',
        (
            'The test set has no public labels; "test" in papers is validation.',
            'A horizontal flip changes the label.',
        ),
    ),
    _video(
        'hmdb51',
        'HMDB51',
        51,
        _hmdb51_splits(),
        'CC BY 4.0',
        'Serre Lab, Brown University: hmdb51_org.rar and test_train_splits.rar',
        ('Published figures are those of split 1.',),
    ),
)

# --- dense -------------------------------------------------------------------

_VOC_SOURCE = 'PASCAL VOC, Oxford: VOCtrainval and VOCtest archives'
_DENSE = (
    DatasetFacts(
        id='coco',
        title='COCO 2017',
        benchmark='dense',
        family='detection',
        group='dense',
        num_classes=80,
        splits=(
            Split(
                'train', 118_287, 'annotations/instances_train2017.json', 'train2017'
            ),
            Split('val', 5_000, 'annotations/instances_val2017.json', 'val2017'),
        ),
        base='',
        folder='coco',
        layout='coco',
        metrics=('ap_box', 'ap_mask'),
        licence='annotations CC BY 4.0; pictures under the terms of Flickr',
        source='cocodataset.org',
        traps=(
            'Category ids run to 90 with ten gaps.',
            'Some published figures are of test-dev: state the split.',
        ),
    ),
    DatasetFacts(
        id='ade20k',
        title='ADE20K, SceneParse150',
        benchmark='dense',
        family='segmentation',
        group='dense',
        num_classes=150,
        splits=(
            Split('train', 20_210, '', 'images/training'),
            Split('val', 2_000, '', 'images/validation'),
        ),
        base='',
        folder='ADEChallengeData2016',
        layout='ade20k',
        metrics=('miou',),
        licence='research only',
        source='MIT Scene Parsing Benchmark, ADEChallengeData2016.zip',
        traps=('Label 0 is "other": it is taken off, and 1 to 150 become 0 to 149.',),
    ),
    DatasetFacts(
        id='voc',
        title='PASCAL VOC 07+12, detection',
        benchmark='dense',
        family='detection',
        group='dense',
        num_classes=20,
        splits=(
            Split('trainval2007', 5_011, 'VOC2007/ImageSets/Main/trainval.txt'),
            Split('trainval2012', 11_540, 'VOC2012/ImageSets/Main/trainval.txt'),
            Split('test2007', 4_952, 'VOC2007/ImageSets/Main/test.txt'),
        ),
        base='',
        folder='VOCdevkit',
        layout='voc',
        metrics=('map50',),
        licence=_UNSTATED,
        source=_VOC_SOURCE,
        traps=('The figure published as AP is the mAP at IoU 0.5 with eleven points.',),
    ),
    DatasetFacts(
        id='voc_seg',
        title='PASCAL VOC 2012, segmentation',
        benchmark='dense',
        family='segmentation',
        group='dense',
        num_classes=21,
        splits=(
            Split('train', 1_464, 'ImageSets/Segmentation/train.txt', 'JPEGImages'),
            Split(
                'aug',
                9_118,
                'ImageSets/Segmentation/aug.txt',
                'JPEGImages',
                optional=True,
            ),
            Split('val', 1_449, 'ImageSets/Segmentation/val.txt', 'JPEGImages'),
        ),
        base='VOCdevkit',
        folder='VOC2012',
        layout='voc_seg',
        metrics=('miou',),
        licence=_UNSTATED,
        source=_VOC_SOURCE + '; aug: the masks of SBD in SegmentationClassAug',
        traps=('Masks are palette pictures: 0 is background, 255 the rim.',),
    ),
)

# --- extra data of the study -------------------------------------------------

_FOLDED = 500
"""Up to so many pictures, a score is the mean over five folds."""


def _sized(
    id: str,
    title: str,
    folder: str,
    num_classes: int,
    pool: int,
    num_test: int,
    sizes: Mapping[str, tuple[int, int]],
    licence: str,
    source: str,
    traps: tuple[str, ...] = (),
) -> tuple[DatasetFacts, ...]:
    """A training set at several sizes; ``sizes`` holds (training, validation)."""
    return tuple(
        DatasetFacts(
            id=f'{id}_{size}',
            title=f'{title}, {train + val:,} training pictures',
            benchmark='study',
            family='image',
            group='many-shot',
            num_classes=num_classes,
            splits=(
                Split('train', train, f'{size}/train.txt'),
                Split('val', val, f'{size}/val.txt'),
                Split('trainval', train + val, f'{size}/trainval.txt'),
                Split('test', num_test, 'test.txt'),
            ),
            base='many_shot',
            folder=folder,
            layout='list',
            metrics=('top1',),
            licence=licence,
            source=source,
            traps=traps if size == 'full' else (),
            pool=Split('pool', pool, 'train.txt'),
            folds=5 if train + val <= _FOLDED else 0,
        )
        for size, (train, val) in sizes.items()
    )


def _imagenet(
    id: str,
    title: str,
    folder: str,
    size: int,
    source: str,
    subset: int | None = None,
    traps: tuple[str, ...] = (),
) -> DatasetFacts:
    """A shifted test set of ImageNet: a folder per class."""
    return DatasetFacts(
        id=id,
        title=title,
        benchmark='study',
        family='image',
        group='robustness',
        num_classes=1000,
        splits=(Split('test', size),),
        base='',
        folder=folder,
        layout='classes',
        metrics=('top1',),
        licence='research only, terms of ImageNet',
        source=source,
        traps=traps,
        subset=subset,
    )


_MASKED = (
    'Scores of the other 800 classes are left out before the largest is taken '
    '(mmpetl.MaskedAccuracy).'
)
_STUDY = (
    *_sized(
        'cifar100',
        'CIFAR-100',
        'cifar100',
        100,
        50_000,
        10_000,
        {
            '500': (400, 100),
            '1k': (800, 200),
            '5k': (4_000, 1_000),
            '10k': (8_000, 2_000),
            'full': (49_000, 1_000),
        },
        _UNSTATED,
        'University of Toronto, CIFAR-100',
    ),
    *_sized(
        'resisc45',
        'RESISC45',
        'resisc45',
        45,
        25_200,
        6_300,
        {
            '225': (180, 45),
            '450': (360, 90),
            '900': (720, 180),
            '2250': (1_800, 450),
            '4500': (3_600, 900),
            '9000': (7_200, 1_800),
            'full': (18_900, 6_300),
        },
        'research only; manual download',
        'NWPU-RESISC45; test pictures are those of VTAB',
    ),
    *_sized(
        'clevr_dist',
        'CLEVR, distance of the closest object',
        'clevr_dist',
        6,
        70_000,
        15_000,
        {
            '1k': (800, 200),
            '5k': (4_000, 1_000),
            '10k': (8_000, 2_000),
            'full': (63_000, 7_000),
        },
        'CC BY 4.0',
        'CLEVR v1.0 with the labels of VTAB',
        (
            'The published tuning trained on all 70,000 and validated on a part of '
            'them; here the two are apart.',
        ),
    ),
    DatasetFacts(
        id='imagenet',
        title='ImageNet, 100 shots',
        benchmark='study',
        family='image',
        group='robustness',
        num_classes=1000,
        splits=(
            Split('train', 100_000, '100shot/train.txt'),
            Split('val', 10_000, '100shot/val.txt'),
            Split('test', 50_000, 'val.txt'),
        ),
        base='',
        folder='imagenet',
        layout='list',
        metrics=('top1',),
        licence='research only; registration',
        source='image-net.org, ILSVRC 2012; train/ and val/ with a folder per class',
        traps=('The validation split is drawn from the training set.',),
        pool=Split('pool', 1_281_167, 'train.txt'),
    ),
    _imagenet(
        'imagenet_v2',
        'ImageNet-V2, matched frequency',
        'imagenetv2-matched-frequency-format-val',
        10_000,
        'modestyachts/ImageNetV2',
        traps=('Folders are called 0 to 999: sorted as text, labels come out wrong.',),
    ),
    _imagenet(
        'imagenet_r',
        'ImageNet-R',
        'imagenet-r',
        30_000,
        'hendrycks/imagenet-r',
        200,
        (_MASKED,),
    ),
    _imagenet(
        'imagenet_sketch',
        'ImageNet-Sketch',
        'sketch',
        50_889,
        'HaohanWang/ImageNet-Sketch',
    ),
    _imagenet(
        'imagenet_a',
        'ImageNet-A',
        'imagenet-a',
        7_500,
        'hendrycks/natural-adv-examples',
        200,
        (_MASKED, 'File names hold blanks: split a list line at its last blank.'),
    ),
)

CATALOG: Mapping[str, DatasetFacts] = {
    facts.id: facts for facts in (*_VTAB, *_FGVC, *_VIDEO, *_DENSE, *_STUDY)
}
"""Every data set by its id: the benchmark's thirty first, then the others."""

BENCHMARK_IDS: tuple[str, ...] = tuple(
    facts.id
    for facts in CATALOG.values()
    if facts.benchmark != 'study' and facts.id != 'voc_seg'
)
"""The thirty data sets of the benchmark."""


def facts_of(name: str) -> DatasetFacts:
    """A data set by id or alias.

    Raises:
        PETLError: There is none of that name.
    """
    if name in CATALOG:
        return CATALOG[name]
    for facts in CATALOG.values():
        if name in facts.aliases:
            return facts
    raise PETLError(
        f"There is no data set '{name}'.{suggest(name, CATALOG)} "
        f'There are: {", ".join(CATALOG)}.'
    )


def select(names: Iterable[str] = ()) -> tuple[DatasetFacts, ...]:
    """Data sets by id, alias, benchmark (``vtab``), group or family; all without names.

    Raises:
        PETLError: A name that is none of these.
    """
    found: dict[str, DatasetFacts] = {}
    wanted = list(names)
    if not wanted:
        return tuple(CATALOG.values())
    for name in wanted:
        if name in CATALOG:
            found[name] = CATALOG[name]
            continue
        members = _where(lambda facts, n=name: n in (facts.benchmark, facts.group))
        members = members or _where(lambda facts, n=name: n == facts.family)
        for facts in members or (facts_of(name),):
            found[facts.id] = facts
    return tuple(found.values())


def _where(test: Callable[[DatasetFacts], bool]) -> tuple[DatasetFacts, ...]:
    return tuple(facts for facts in CATALOG.values() if test(facts))
