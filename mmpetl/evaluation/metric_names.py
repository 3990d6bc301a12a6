"""Which metrics tables rank by, and in which unit upstream reports them."""

from __future__ import annotations

PRIMARY = (
    'accuracy/top1',
    'single-label/top1',
    'acc/top1',
    'mIoU',
    'pascal_voc/mAP',
    'coco/bbox_mAP',
    'coco/segm_mAP',
)
"""Metrics, in percent or as fractions, of which PPT is computed."""

FRACTIONS = ('pascal_voc/mAP', 'coco/bbox_mAP', 'coco/segm_mAP', 'acc/top1')
"""Those of them that upstream reports in [0, 1]."""

OF_ONE_UNIT = {
    'mIoU': 'mIoU',
    'bbox_mAP': 'coco/bbox_mAP',
    'segm_mAP': 'coco/segm_mAP',
}
"""Names that say the unit under any prefix; ``top1`` and ``mAP`` do not."""


def meant(name: str) -> str:
    """The metric of :data:`PRIMARY` that a name with a config's prefix means.

    ``segmentation/mIoU`` is ``mIoU``. A name that means none of them stays.
    """
    return name if name in PRIMARY else OF_ONE_UNIT.get(last_of(name), name)


def last_of(name: str) -> str:
    """The name of a metric behind its prefix."""
    return name.rpartition('/')[2]
