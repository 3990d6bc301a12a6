"""VTAB-1k: nineteen tasks."""

from __future__ import annotations

from mmpetl.datasets.catalog.entry import UNSTATED, DatasetFacts, Split

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


VTAB_ROWS = (
    _vtab(
        'cifar100',
        'CIFAR-100',
        'natural',
        100,
        10_000,
        UNSTATED,
        folder='cifar',
        aliases=('cifar', 'cifar_100'),
    ),
    _vtab('caltech101', 'Caltech-101', 'natural', 102, 6_084, 'CC BY 4.0'),
    _vtab('dtd', 'Describable Textures', 'natural', 47, 1_880, UNSTATED),
    _vtab(
        'oxford_flowers102',
        'Oxford Flowers-102',
        'natural',
        102,
        6_149,
        UNSTATED,
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
    _vtab('dmlab', 'DeepMind Lab frames', 'structured', 6, 22_735, UNSTATED),
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
        UNSTATED,
        traps=('A horizontal flip changes the label.', _SHARES_PICTURES),
    ),
    _vtab(
        'dsprites_ori',
        'dSprites, orientation',
        'structured',
        16,
        73_728,
        UNSTATED,
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
