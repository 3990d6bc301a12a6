"""Predictions for one file, in plain types."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpetl.apis.building import class_names, scope_of
from mmpetl.config.nodes import test_pipeline
from mmpetl.core import PETLError


@dataclass(frozen=True)
class Prediction:
    """A class with its probability in [0, 1]."""

    label: int
    name: str
    score: float


@dataclass(frozen=True)
class Segmentation:
    """Labels by pixel, (H, W) of the input picture, int64; names and colours by label.

    ``palette`` is None where the data have none.
    """

    labels: np.ndarray
    classes: list[str]
    palette: list[list[int]] | None

    def shares(self) -> dict[int, float]:
        """Share of the pixels by label, in [0, 1], the largest first."""
        found, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind='stable')
        return {int(found[i]): float(counts[i] / self.labels.size) for i in order}


@dataclass(frozen=True)
class Box:
    """A detected thing: corners in pixels of the input picture, mask (H, W) or None.

    The score lies in [0, 1]; it is NaN of a thing that is known to be there.
    """

    label: int
    name: str
    score: float
    corners: tuple[float, float, float, float]
    mask: np.ndarray | None = None


def predict_image(
    model: nn.Module, image: str | os.PathLike, topk: int = 5
) -> list[Prediction]:
    """The ``topk`` most probable classes of an image, best first.

    Args:
        model: What :func:`mmpetl.apis.init_model` gives for an image classifier.
        image: File.
        topk: At least 1; no more than there are classes are given.

    Raises:
        FileNotFoundError: No such file.
        PETLError: It cannot be read, or the model is no classifier of images.
    """
    sample = _predict(model, _image_input(image))
    return _ranked(model, _part(model, sample, 'pred_score', 'an image'), topk)


def predict_video(
    model: nn.Module, video: str | os.PathLike, topk: int = 5
) -> list[Prediction]:
    """The ``topk`` most probable classes of a video, best first; see `predict_image`.

    Views are averaged as the config says; logits become probabilities at the end. Where
    it does not say, the probabilities of views are averaged.
    """
    path = _existing(video)
    data = {'filename': str(path), 'start_index': 0, 'modality': 'RGB', 'label': -1}
    scores = _part(model, _predict(model, data), 'pred_score', 'a video')
    if getattr(model.cls_head, 'average_clips', None) != 'prob':
        scores = scores.softmax(-1)
    if scores.ndim > 1:
        scores = scores.flatten(0, -2).mean(0)
    return _ranked(model, scores, topk)


def predict_segmentation(model: nn.Module, image: str | os.PathLike) -> Segmentation:
    """The class of every pixel; see `predict_image` for what it raises."""
    sample = _predict(model, _image_input(image))
    labels = _part(model, sample, 'pred_sem_seg', 'a segmentation').data[0]
    return Segmentation(
        labels.cpu().numpy().astype(np.int64),
        class_names(model, model.decode_head.num_classes),
        getattr(model, 'dataset_meta', {}).get('palette'),
    )


def predict_detection(
    model: nn.Module, image: str | os.PathLike, threshold: float = 0.3
) -> list[Box]:
    """Boxes with a score of at least ``threshold``, best first; see `predict_image`."""
    sample = _predict(model, _image_input(image))
    found = _part(model, sample, 'pred_instances', 'a detection').cpu()
    masks = found.masks.numpy() if 'masks' in found else [None] * len(found)
    names = class_names(model, int(found.labels.max()) + 1 if len(found) else 0)
    boxes = [
        Box(int(label), names[label], float(score), tuple(box.tolist()), mask)
        for label, score, box, mask in zip(
            found.labels.tolist(), found.scores, found.bboxes, masks, strict=True
        )
        if score >= threshold
    ]
    return sorted(boxes, key=lambda box: -box.score)


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        kind = 'is a folder; name a file' if path.is_dir() else 'is not there'
        raise FileNotFoundError(f'the input {path} {kind}')
    return path


def _image_input(image: str | os.PathLike) -> dict[str, Any]:
    path = _existing(image)
    return {'img_path': str(path), 'img_id': 0}


def _predict(model: nn.Module, data: dict[str, Any]) -> Any:
    """Run one input through the test pipeline and the model."""
    from mmengine.dataset import Compose, pseudo_collate

    from mmpetl.datasets.reading import GuardedPipeline

    steps = [s for s in test_pipeline(model.cfg) if 'Annotations' not in str(s['type'])]
    if not steps:
        raise PETLError('the config has no test pipeline, so no input can be prepared')
    reads = 'filename' if str(steps[0]['type']).endswith('Init') else 'img_path'
    if reads not in data:
        raise PETLError(
            f'the config is for {"videos" if reads == "filename" else "images"}; '
            'use the demo of that task'
        )
    with scope_of(model.cfg), torch.no_grad():
        packed = GuardedPipeline(Compose(steps))(data)
        return model.test_step(pseudo_collate([packed]))[0]


def _part(model: nn.Module, sample: Any, key: str, task: str) -> Any:
    if key not in sample:
        raise PETLError(
            f'{type(model).__name__} gives {", ".join(sorted(sample.keys()))}, not '
            f'{key}; {task} config is needed here'
        )
    return sample.get(key)


def _ranked(model: nn.Module, scores: Tensor, topk: int) -> list[Prediction]:
    if topk < 1:
        raise PETLError(f'topk is at least 1, got {topk}')
    scores = scores.flatten().cpu()
    names = class_names(model, len(scores))
    best = scores.topk(min(topk, len(scores)))
    return [
        Prediction(label, names[label], float(score))
        for score, label in zip(best.values, best.indices.tolist(), strict=True)
    ]
