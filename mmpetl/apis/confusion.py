"""Which classes a classifier takes for which."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.analysis import charts
from mmpetl.apis.building import dataset_meta
from mmpetl.apis.run import test
from mmpetl.core import PETLError

SCOPES = ('mmpretrain', 'mmaction')
"""Toolboxes with a ``ConfusionMatrix`` of their own, which counts and draws."""

READABLE = 30
"""Classes up to which every field has its number written in it."""


def confusion_matrix(
    config: Any, checkpoint: str | os.PathLike
) -> tuple[np.ndarray, list[str] | None]:
    """Samples of the test set by true (row) and predicted (column) class.

    Args:
        config: A loaded ``Config``, whose evaluator is replaced.
        checkpoint: A run's checkpoint or a delta.

    Returns:
        (classes, classes) of counts, and the names of the classes where they are known.

    Raises:
        PETLError: The config is of no classifier, or as of :func:`mmpetl.apis.test`.
    """
    scope = config.get('default_scope')
    if scope not in SCOPES:
        raise PETLError(
            f'a confusion matrix is of classifiers ({", ".join(SCOPES)}), and the '
            f'config is of {scope}'
        )
    config.test_evaluator = {'type': f'{scope}.ConfusionMatrix'}
    found = test(config, checkpoint)['confusion_matrix/result']
    matrix = np.asarray(found)
    classes = dataset_meta(config).get('classes')
    whole = classes is not None and len(classes) == len(matrix)
    return matrix, [str(name) for name in classes] if whole else None


def check_out(out: str | os.PathLike) -> None:
    """Look at the name of a picture, before anything is counted.

    Raises:
        PETLError: It is none of a ``.png``.
    """
    if Path(out).suffix != '.png':
        raise PETLError(f'a confusion matrix is drawn as .png, and {out} is none')


def draw_confusion(
    matrix: np.ndarray,
    classes: list[str] | None,
    out: str | os.PathLike,
    scope: str = 'mmpretrain',
) -> Path:
    """The matrix as the toolbox draws it; the words beside it name the worst pair."""
    import matplotlib
    import torch

    check_out(out)
    matplotlib.use('Agg')
    drawer = importlib.import_module(f'{scope}.evaluation').ConfusionMatrix
    figure = drawer.plot(
        torch.as_tensor(matrix),
        include_values=len(matrix) <= READABLE,
        classes=classes,
        show=False,
    )
    right = np.trace(matrix)
    wrong = matrix - np.diag(np.diag(matrix))
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    names = classes or [f'class {i}' for i in range(len(matrix))]
    most = ''
    if wrong.any():
        most = f'; most often {names[row]} is taken for {names[column]}'
    return charts.save_figure(
        figure,
        out,
        title='Confusion matrix',
        caption='Samples of the test set by true (row) and predicted (column) class.',
        alt=f'{right} of {matrix.sum()} samples are right{most}.',
        section='Confusion',
    )
