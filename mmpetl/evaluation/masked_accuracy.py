"""Accuracy on a test set that holds some of the classes that the model tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from mmpetl.core import PETLError
from mmpetl.registry import METRICS


def restrict(scores: torch.Tensor, subset: Sequence[int]) -> torch.Tensor:
    """Scores of the classes of ``subset`` only, in its order: (..., C) to (..., S)."""
    return scores[..., torch.as_tensor(subset, device=scores.device)]


def reindex(labels: torch.Tensor, subset: Sequence[int]) -> torch.Tensor:
    """Labels as positions within ``subset``.

    Raises:
        PETLError: A label that the subset does not hold.
    """
    order = torch.as_tensor(subset, device=labels.device)
    hits = labels[..., None] == order
    if not bool(hits.any(-1).all()):
        missing = labels[~hits.any(-1)].flatten()[0].item()
        raise PETLError(f'label {missing} is none of the {len(order)} classes kept.')
    return hits.int().argmax(-1)


@METRICS.register_module()
class MaskedAccuracy(BaseMetric):
    """Top-k accuracy, percent, among the classes that the test set holds.

    ImageNet-R and -A hold 200 of 1,000 classes. The scores of the others are left out
    before the largest is taken, and labels count within the 200.

    Args:
        topk: How many of the best classes may hold the label.
        subset: The classes, in any order; by default ``subset`` of the data set's
            metainfo, as :class:`mmpetl.ImageList` gives it.
        prefix: In front of the names, ``accuracy`` by default.
        collect_device: Where results of several processes meet, ``cpu`` or ``gpu``.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: Sequence[int] = (1,),
        subset: Sequence[int] | None = None,
        prefix: str | None = None,
        collect_device: str = 'cpu',
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)
        self.subset = None if subset is None else tuple(subset)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Add pictures; ``pred_score`` is (C,), ``gt_label`` one label."""
        subset = self._subset()
        for sample in data_samples:
            scores = sample['pred_score'].detach().cpu()
            if max(subset) >= len(scores):
                raise PETLError(
                    f'MaskedAccuracy keeps class {max(subset)}, the model has '
                    f'{len(scores)} outputs.'
                )
            label = reindex(sample['gt_label'].detach().cpu().flatten()[0], subset)
            best = restrict(scores, subset).topk(max(self.topk)).indices
            self.results.append([bool((best[:k] == label).any()) for k in self.topk])

    def compute_metrics(self, results: list[list[bool]]) -> dict[str, float]:
        """``top1`` and so on, in percent."""
        columns = zip(*results, strict=True)
        return {
            f'top{k}': 100 * sum(column) / len(results)
            for k, column in zip(self.topk, columns, strict=True)
        }

    def _subset(self) -> tuple[int, ...]:
        subset = self.subset or (self.dataset_meta or {}).get('subset')
        if not subset:
            raise PETLError(
                "MaskedAccuracy needs 'subset', the classes that the test set holds: "
                'give it, or read the set with subset=<how many>.'
            )
        if max(self.topk) > len(subset):
            raise PETLError(
                f'MaskedAccuracy takes the best {max(self.topk)} of {len(subset)} '
                'classes.'
            )
        return tuple(subset)
