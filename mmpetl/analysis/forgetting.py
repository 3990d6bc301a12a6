"""What a tuned backbone has forgotten of the task that its base was trained for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpetl.analysis import robustness
from mmpetl.analysis.sources import bare_copy
from mmpetl.core import PETLError

HEADS = ('head.layers.head', 'head.fc', 'head', 'fc', 'classifier')
"""What the classifier of a base is called in its file, in front of ``weight``."""


def base_head(path: str | os.PathLike) -> tuple[Tensor, Tensor] | None:
    """Weight (C, D) and bias (C,) of the classifier in a file of base weights.

    Returns:
        None where the file has none, as those of backbones alone.
    """
    from mmpetl.apis.folding import read_base

    state = read_base(path)
    for name in HEADS:
        weight = state.get(f'{name}.weight')
        if weight is not None and weight.ndim == 2:
            bias = state.get(f'{name}.bias')
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            return weight.float(), bias.float()
    return None


def forgetting(
    model: nn.Module, upstream: Any, limit: int | None = None, device: str = 'auto'
) -> float | str:
    """Points of accuracy that the base's own head loses on features of a tuned model.

    Args:
        model: The whole tuned model, with its config in ``cfg``.
        upstream: Config whose test set is the task of the base: path or ``Config``.
        limit: Most samples.
        device: Where the head runs.

    Returns:
        Accuracy on the base's features less that on the tuned ones, in points; or why
        it cannot be measured.
    """
    from mmpetl.apis.building import pick_device

    path = model.cfg.model.backbone.get('checkpoint')
    head = None if not path else base_head(path)
    if head is None:
        return f'the base file {Path(path or "(none)").name} has no head'
    samples = robustness.samples_of(upstream, limit=limit)
    place = pick_device(device)
    head = tuple(part.to(place) for part in head)
    scores = [accuracy(m, head, samples) for m in (bare_copy(model), model)]
    return scores[0] - scores[1]


@torch.no_grad()
def accuracy(
    model: nn.Module, head: tuple[Tensor, ...], samples: robustness.Samples
) -> float:
    """Top-1 in per cent of a head on a model's features.

    Raises:
        PETLError: The features are none that the head takes, or a label none of its
            classes.
    """
    weight, bias = head
    right = []
    for batch in samples:
        labels = np.array([robustness.label_of(s) for s in batch['data_samples']])
        if labels.max() >= len(weight):
            raise PETLError(
                f'a picture has label {labels.max()}, the head of the base has '
                f'{len(weight)} classes; the upstream config is of another task'
            )
        x = model.data_preprocessor(robustness.copied(batch), False)['inputs']
        features = model.extract_feat(x)
        if isinstance(features, tuple | list):
            features = features[-1]
        if features.ndim == 4:
            features = features.mean((2, 3))
        if features.ndim != 2 or features.shape[1] != weight.shape[1]:
            raise PETLError(
                f'features of shape {tuple(features.shape)} do not fit the head of the '
                f'base, which takes {weight.shape[1]}'
            )
        guess = (features.float() @ weight.T + bias).argmax(1).cpu().numpy()
        right.append(guess == labels)
    return 100.0 * float(np.concatenate(right).mean())
