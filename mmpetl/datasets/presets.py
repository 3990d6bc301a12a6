"""What pictures go through, by name: normalisation, augmentation, interpolation.

A recipe says ``preprocessing = dict(normalisation='half', augmentation='plain')``;
:func:`pipelines` and :func:`statistics` write it out in upstream's terms. Published
code differs here more than it says: a Google ViT of ImageNet-21k saw inputs in [-1, 1]
(``half``), and much code feeds it ImageNet statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from mmpetl.core import PETLError, suggest

Normalisation = Literal['half', 'imagenet', 'clip', 'none']
Interpolation = Literal['bicubic', 'bilinear']
Steps = list[dict[str, Any]]

STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of RGB in [0, 1]; ``none`` leaves pixels there."""


@dataclass(frozen=True)
class Preprocessing:
    """A named preset.

    Args:
        normalisation: A key of :data:`STATISTICS`; None where the config writes the
            model's mean and standard deviation out.
        augmentation: A key of :data:`AUGMENTATIONS`; None where the config writes its
            pipelines out, as video and dense recipes do.
        interpolation: Of the resizing, with Pillow, which smooths on the way down.
        size: Side of the square that the model sees, px.
        cache: How many training pictures, decoded and resized, each loading process
            may keep in memory; 0 keeps none.
    """

    normalisation: Normalisation | None = 'half'
    augmentation: str | None = None
    interpolation: Interpolation = 'bicubic'
    size: int = 224
    cache: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ('normalisation', (*get_args(Normalisation), None)),
            ('augmentation', (*AUGMENTATIONS, None)),
            ('interpolation', get_args(Interpolation)),
        ):
            value = getattr(self, name)
            if value not in known:
                there = ', '.join(k for k in known if k)
                raise PETLError(
                    f'there is no preprocessing.{name} {value!r}.'
                    f'{suggest(str(value), filter(None, known))} There are: {there}'
                )
        for name, least in (('size', 1), ('cache', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise PETLError(
                    f'preprocessing.{name} is a whole number from {least}, '
                    f'not {value!r}'
                )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Preprocessing:
        """A preset from a config's ``preprocessing``."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise PETLError(
                    f'preprocessing has no key {key!r}.{suggest(key, known)} '
                    f'It takes: {", ".join(known)}'
                )
        return cls(**values)

    def facts(self) -> dict[str, Any]:
        """The preset as a dictionary, for records."""
        return asdict(self)


def statistics(name: str) -> dict[str, list[float]]:
    """``mean`` and ``std`` in units of 0 to 255, as data preprocessors take them."""
    mean, std = STATISTICS[name]
    # Rounded as upstream prints them: 123.675, not 123.67499999999998.
    return {
        'mean': [round(255 * value, 6) for value in mean],
        'std': [round(255 * value, 6) for value in std],
    }


def pipelines(preset: Preprocessing) -> tuple[Steps, Steps]:
    """Training and test pipeline of a preset for image classification."""
    if preset.augmentation is None:
        raise PETLError(
            'preprocessing.augmentation is not set, and the config has no pipelines of '
            f'its own; there are: {", ".join(AUGMENTATIONS)}'
        )
    fixed, drawn, test = AUGMENTATIONS[preset.augmentation](preset)
    load = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
    pack = {'type': 'PackInputs'}
    prefix = [load, *fixed]
    if preset.cache:
        prefix = [
            {
                'type': 'mmpetl.LoadOnce',
                'transforms': prefix,
                'max_images': preset.cache,
            }
        ]
    return [*prefix, *drawn, pack], [load, *test, pack]


def _square(side: int, interpolation: str) -> dict[str, Any]:
    return {
        'type': 'Resize',
        'scale': (side, side),
        'backend': 'pillow',
        'interpolation': interpolation,
    }


def _short_side(side: int, interpolation: str) -> dict[str, Any]:
    return {
        'type': 'ResizeEdge',
        'scale': side,
        'edge': 'short',
        'backend': 'pillow',
        'interpolation': interpolation,
    }


def flip(direction: str = 'horizontal') -> dict[str, Any]:
    """A flip of every second picture."""
    return {'type': 'RandomFlip', 'prob': 0.5, 'direction': direction}


def rand_augment() -> dict[str, Any]:
    """RandAugment of timm, ``rand-m9-mstd0.5-inc1``."""
    return {
        'type': 'RandAugment',
        'policies': 'timm_increasing',
        'num_policies': 2,
        'total_level': 10,
        'magnitude_level': 9,
        'magnitude_std': 0.5,
        'hparams': {'pad_val': [128, 128, 128], 'interpolation': 'bicubic'},
    }


def _random_resized_crop(side: int, interpolation: str) -> dict[str, Any]:
    return {
        'type': 'RandomResizedCrop',
        'scale': side,
        'backend': 'pillow',
        'interpolation': interpolation,
    }


def _erase(**how: Any) -> dict[str, Any]:
    """Random erasing of timm: in a quarter of the pictures, a third of one at most."""
    return {
        'type': 'RandomErasing',
        'erase_prob': 0.25,
        'max_area_ratio': 1 / 3,
        'mode': 'rand',
        **how,
    }


# Each gives the steps that are the same in every epoch, those that are drawn anew, and
# those of the test. Sides follow the size in the published proportion to 224.
_Parts = tuple[Steps, Steps, Steps]


def _scaled(side: int, preset: Preprocessing) -> int:
    return round(side * preset.size / 224)


def _plain(preset: Preprocessing) -> _Parts:
    """Straight to the square, ratio not kept: the protocol of VTAB-1k."""
    resize = [_square(preset.size, preset.interpolation)]
    return resize, [], resize


def _flipped(preset: Preprocessing) -> _Parts:
    """Straight to the square, and a flip: the light augmentation of RLRR."""
    fixed, _, test = _plain(preset)
    return fixed, [flip()], test


def _sct(preset: Preprocessing) -> _Parts:
    """Square, flip, RandAugment: SCT, and V-PETL Bench after it. Training is bicubic.

    V-PETL Bench resizes its test pictures bilinearly, which is what ``interpolation``
    then says.
    """
    test = [_square(preset.size, preset.interpolation)]
    return [_square(preset.size, 'bicubic')], [flip(), rand_augment()], test


def _fgvc(preset: Preprocessing) -> _Parts:
    """Short side 256, random crop, flip; test: centre crop. VPT, V-PETL Bench."""
    resize = [_short_side(_scaled(256, preset), preset.interpolation)]
    crop = {'type': 'RandomCrop', 'crop_size': preset.size}
    return resize, [crop, flip()], [*resize, _centre(preset)]


def _crops(preset: Preprocessing) -> _Parts:
    """Random resized crop, flip; test: short side 248, centre. GPS.

    As timm does by default, each crop draws its interpolation.
    """
    resize = _short_side(_scaled(248, preset), preset.interpolation)
    crops = [
        [_random_resized_crop(preset.size, kind)] for kind in get_args(Interpolation)
    ]
    crop = {'type': 'RandomChoice', 'transforms': crops}
    return [], [crop, flip()], [resize, _centre(preset)]


def _crops_erased(preset: Preprocessing) -> _Parts:
    """As ``crops``, with erasing by noise of the statistics' spread: SSF, HST."""
    fixed, drawn, test = _crops(preset)
    noise = statistics(preset.normalisation or 'half')
    erase = _erase(fill_color=noise['mean'], fill_std=noise['std'])
    return fixed, [*drawn, erase], test


def _study(preset: Preprocessing) -> _Parts:
    """Random resized crop, flip; test: short side 256. Lessons Learned, CIFAR-100."""
    resize = _short_side(_scaled(256, preset), preset.interpolation)
    crop = _random_resized_crop(preset.size, preset.interpolation)
    return [], [crop, flip()], [resize, _centre(preset)]


def _study_aerial(preset: Preprocessing) -> _Parts:
    """As ``study``, with vertical flips too: Lessons Learned, RESISC45."""
    fixed, drawn, test = _study(preset)
    return fixed, [*drawn, flip('vertical')], test


def _study_clip(preset: Preprocessing) -> _Parts:
    """RandAugment and erasing; test: 256 x 256, centre crop. Lessons Learned, CLIP."""
    crop = _random_resized_crop(preset.size, preset.interpolation)
    drawn = [crop, flip(), rand_augment(), _erase()]
    test = [_square(_scaled(256, preset), preset.interpolation), _centre(preset)]
    return [], drawn, test


def _centre(preset: Preprocessing) -> dict[str, Any]:
    return {'type': 'CenterCrop', 'crop_size': preset.size}


AUGMENTATIONS: Mapping[str, Callable[[Preprocessing], _Parts]] = {
    'plain': _plain,
    'flip': _flipped,
    'sct': _sct,
    'fgvc': _fgvc,
    'crops': _crops,
    'crops_erased': _crops_erased,
    'study': _study,
    'study_aerial': _study_aerial,
    'study_clip': _study_clip,
}
"""Train and test geometry by name; each function says what it does and whose it is."""
