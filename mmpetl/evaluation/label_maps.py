"""mIoU that keeps what was said of each picture, so that mistakes can be looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.registry import METRICS


@METRICS.register_module()
class LabelMaps(BaseMetric):
    """Intersection over union of classes, from the confusions of all pictures.

    ``mIoU``, ``mAcc`` and ``aAcc`` are those of mmseg's ``IoUMetric``, in percent:
    means over the classes of ``hit / (there + said - hit)`` and ``hit / there``, where
    their denominators are not 0, and the share of all pixels. Of each picture the
    confusions and the labels that were said are kept, the latter as PNG.

    Args:
        ignore_index: Label of pixels that do not count.
        collect_device: As in every metric of MMEngine.
        prefix: As in every metric of MMEngine.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep confusions and labels of some pictures."""
        count = len(self.dataset_meta['classes'])
        for sample in data_samples:
            said = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy()
            truth = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            data = io.BytesIO()
            kind = np.uint8 if count <= 256 else np.uint16
            Image.fromarray(said.astype(kind)).save(data, 'PNG')
            cells = confusion(truth, said, count, self.ignore_index)
            self.results.append({'confusion': cells, 'labels': data.getvalue()})

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """The metrics of all pictures, in percent."""
        cells = sum(one['confusion'] for one in results)
        hits, there, said = np.diag(cells), cells.sum(1), cells.sum(0)
        return {
            'aAcc': 100 * float(hits.sum() / max(1, cells.sum())),
            'mIoU': _mean(hits, there + said - hits),
            'mAcc': _mean(hits, there),
        }


def confusion(
    truth: np.ndarray, said: np.ndarray, count: int, ignore_index: int = 255
) -> np.ndarray:
    """Pixels by what they are (rows) and what they were called, (count, count).

    Args:
        truth: Labels, of any shape.
        said: What was said, of the same shape.
        count: Classes.
        ignore_index: Label of pixels that do not count.

    Raises:
        PETLError: A pixel that counts is of no class, or was called none.
    """
    counts = truth != ignore_index
    truth, said = truth[counts].astype(np.int64), said[counts].astype(np.int64)
    for what, labels in (('a label map holds', truth), ('a prediction holds', said)):
        strange = labels[(labels < 0) | (labels >= count)]
        if strange.size:
            raise PETLError(
                f'{what} the label {strange[0]}, and the {count} classes are 0 to '
                f'{count - 1}; pixels that do not count are {ignore_index}'
            )
    pairs = truth * count + said
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def _mean(hits: np.ndarray, of: np.ndarray) -> float:
    known = of > 0
    return 100 * float((hits[known] / of[known]).mean()) if known.any() else 0.0
