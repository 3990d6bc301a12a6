"""The five fine-grained sets."""

from __future__ import annotations

from mmpetl.datasets.catalog.entry import UNSTATED, DatasetFacts, Split

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
    folders: tuple[str, ...],
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
        folders=folders,
        traps=traps,
    )


FGVC_ROWS = (
    _fgvc(
        'cub_200_2011',
        'CUB-200-2011',
        'CUB_200_2011',
        'images',
        200,
        (5_394, 600, 5_794),
        'non-commercial research',
        'CaltechDATA, CUB_200_2011.tgz',
        ('CUB', 'CUB200', 'CUB2011'),
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
        ('NABird',),
        (_OWN_VAL, 'Class ids have gaps.'),
    ),
    _fgvc(
        'oxford_flowers',
        'Oxford Flowers-102, official split',
        'OxfordFlower',
        '',
        102,
        (1_020, 1_020, 6_149),
        UNSTATED,
        'Visual Geometry Group, Oxford, 102flowers.tgz (unpacks to jpg/)',
        ('OxfordFlowers', 'OxfordFlowers102', 'Flowers102', 'Flowers', 'Flower102'),
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
        ('dogs',),
    ),
    _fgvc(
        'stanford_cars',
        'Stanford Cars',
        'StanfordCars',
        '',
        196,
        (7_329, 815, 8_041),
        'research only, terms of ImageNet',
        'the original host is gone; copies of cars_train and cars_test serve, with '
        'cars_annos.mat, cars_train_annos.mat and cars_test_annos_withlabels.mat',
        ('cars', 'cars196'),
        (
            _OWN_VAL,
            'The splits name the pooled release, car_ims/000001.jpg with six digits; '
            'most mirrors hold cars_train and cars_test with five, which the converter '
            'matches by class and bounding box.',
        ),
    ),
)
