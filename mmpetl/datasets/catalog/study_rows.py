"""Extra data of the empirical study: several sizes, and ImageNet."""

from __future__ import annotations

from collections.abc import Mapping

from mmpetl.datasets.catalog.entry import UNSTATED, DatasetFacts, Split

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
STUDY_ROWS = (
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
        UNSTATED,
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
