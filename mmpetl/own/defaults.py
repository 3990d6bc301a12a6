"""How long, how fast and with what augmentation to train, by the number of pictures.

The values are those of the recipe that the methods of VTAB-1k share (AdamW, cosine,
100 epochs of 1,000 pictures in batches of 64), carried over to other numbers:

- **Epochs.** That recipe takes some 1,600 steps. What a step is worth does not hang on
  how many pictures there are, so about as many steps are taken: fewer pictures are seen
  more often, up to 100 times, and of many each is seen 10 times at least.
- **Batch.** 64; of few pictures an eighth of them, so that an epoch is some steps and
  not one.
- **Rate.** 1e-3 at a batch of 64, and less by the root of the ratio at smaller ones,
  whose gradients are noisier.
- **Augmentation.** A picture that is seen more than 30 times is drawn with a random
  crop, a flip, and two operations of RandAugment, or the model learns it by heart; one
  that is seen less often gets crop and flip. Where left and right or colours make the
  class (letters, signs), take ``none``.

Boxes and masks take as many steps, of fewer pictures: those are larger, and each shows
many things. The rate is lower, as heads that are trained from nothing want it.

Nothing here was tuned on pictures of yours: ``--method auto`` searches rates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mmpetl.core import PETLError, check_range, suggest
from mmpetl.datasets.own.kinds import BOXES, MASKS, PICTURES
from mmpetl.datasets.presets import flip, rand_augment
from mmpetl.own.maps import MapTrunk
from mmpetl.own.trunks import Steps, Trunk

Augmentation = Literal['none', 'crop', 'strong']

STEPS = 1600
BATCH = 64
RATE = 1e-3
BATCHES = {PICTURES: BATCH, BOXES: 8, MASKS: 8}
RATES = {PICTURES: RATE, BOXES: 5e-4, MASKS: 5e-4}
"""At those batches."""
LEAST_BATCH = {PICTURES: 8, BOXES: 2, MASKS: 2}
MOST_EPOCHS, LEAST_EPOCHS = 100, 10
OFTEN = 30
"""Epochs from which on augmentation is strong."""
LEAST_AREA = 0.4
"""Least share of a picture that a random crop keeps. timm's 0.08 is for training from
scratch; a frozen trunk knows already what a part looks like."""


@dataclass(frozen=True)
class Settings:
    """What a training takes.

    Attributes:
        epochs: Passes over the pictures.
        batch_size: Pictures of a step.
        lr: Peak rate.
        augmentation: ``none``, ``crop`` or ``strong``.
    """

    epochs: int
    batch_size: int
    lr: float
    augmentation: Augmentation

    def facts(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def settings_for(
    num_pictures: int,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    augmentation: str | None = None,
    kind: str = PICTURES,
) -> Settings:
    """Settings for so many training pictures; what is given stays.

    Args:
        num_pictures: Of the training.
        epochs: Passes over them.
        batch_size: Pictures of a step.
        lr: Peak rate.
        augmentation: ``none``, ``crop`` or ``strong``.
        kind: ``pictures``, ``boxes`` or ``masks``.

    Raises:
        PETLError: A value is out of range, or no augmentation is called so.
    """
    check_range('training', 'pictures', num_pictures, 1)
    if batch_size is None:
        batch_size = BATCHES[kind]
        while batch_size > LEAST_BATCH[kind] and batch_size * 8 > num_pictures:
            batch_size //= 2
    check_range('training', 'batch_size', batch_size, 1)
    if epochs is None:
        wanted = round(STEPS * batch_size / num_pictures)
        epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
    check_range('training', 'epochs', epochs, 1)
    if lr is None:
        lr = round(RATES[kind] * min(1.0, batch_size / BATCHES[kind]) ** 0.5, 6)
    check_range('training', 'lr', lr, 0)
    if augmentation is None:
        augmentation = 'strong' if epochs > OFTEN else 'crop'
    known = get_args(Augmentation)
    if augmentation not in known:
        raise PETLError(
            f'there is no augmentation {augmentation!r}.{suggest(augmentation, known)} '
            f'There are: {", ".join(known)}'
        )
    return Settings(epochs, batch_size, lr, augmentation)


def pipelines(trunk: Trunk, augmentation: str) -> tuple[Steps, Steps]:
    """Training and test pipeline of a trunk's pictures."""
    load = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
    pack = {'type': 'PackInputs'}
    test = [load, *trunk.test, pack]
    if augmentation == 'none':
        return test, test
    height, width = trunk.size
    crop = {
        'type': 'RandomResizedCrop',
        'scale': (width, height),
        'crop_ratio_range': (LEAST_AREA, 1.0),
        'backend': 'pillow',
        'interpolation': trunk.interpolation,
    }
    drawn = [crop, flip()]
    if augmentation == 'strong':
        drawn.append(rand_augment())
    return [load, *drawn, pack], test


RANGES = {'crop': (0.75, 1.5), 'strong': (0.5, 2.0)}
"""Sizes of pictures with boxes or masks when they are drawn, before the crop."""


def scene_pipelines(
    trunk: MapTrunk, augmentation: str, kind: str
) -> tuple[Steps, Steps]:
    """Training and test pipeline of pictures with boxes or masks.

    A picture fits into the square of the trunk with its form kept; the model fills the
    square up. Training changes its size before (``crop``, ``strong``), cuts what is too
    large, and flips it; ``strong`` changes its colours too.
    """
    side = (trunk.side, trunk.side)
    how = {'backend': 'pillow', 'interpolation': trunk.interpolation}
    load = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
    if kind == BOXES:
        marks: dict[str, Any] = {'type': 'LoadAnnotations', 'with_bbox': True}
        pack, crop = 'PackDetInputs', {'allow_negative_crop': True}
        meta = ['img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor']
        packed: dict[str, Any] = {'type': pack, 'meta_keys': meta}
    else:
        marks = {'type': 'LoadAnnotations', 'imdecode_backend': 'pillow'}
        pack, crop = 'PackSegInputs', {'cat_max_ratio': 0.9}
        packed = {'type': pack}
    fit = {'type': 'Resize', 'scale': side, 'keep_ratio': True, **how}
    test = [load, fit, marks, packed]
    if augmentation == 'none':
        return [load, marks, fit, {'type': pack}], test
    drawn: Steps = [
        {
            'type': 'RandomResize',
            'scale': side,
            'ratio_range': RANGES[augmentation],
            'keep_ratio': True,
            **how,
        },
        {'type': 'RandomCrop', 'crop_size': side, **crop},
        {'type': 'RandomFlip', 'prob': 0.5},
    ]
    if augmentation == 'strong':
        drawn.append({'type': 'PhotoMetricDistortion'})
    return [load, marks, *drawn, {'type': pack}], test
