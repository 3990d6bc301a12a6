"""Samples of a data set as a model is given them, drawn."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.config.load import as_config
from mmpetl.config.nodes import PHASES
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError, check_range
from mmpetl.engine.hooks.drawing import check_visualizer, draw_sample


def browse_dataset(
    config: Any, out: Path, phase: str = 'train', number: int = 20
) -> list[Path]:
    """Draw the first samples of a phase behind its pipeline, with their labels.

    Args:
        config: Path or ``Config``.
        out: Folder of ``<phase>_00003.png``.
        phase: ``train``, ``val`` or ``test``.
        number: Samples at most. Of a clip the middle frame of its first view is drawn.

    Returns:
        The files.

    Raises:
        PETLError: The config has no such data or no visualizer of a toolbox.
    """
    from mmengine.registry import DATASETS, VISUALIZERS

    config = as_config(config)
    check_range('browse', '--number', number, 1)
    loader = config.get(f'{phase}_dataloader') or {}
    if not loader.get('dataset'):
        there = [p for p in PHASES if config.get(f'{p}_dataloader')]
        raise PETLError(
            f'the config has no {phase}_dataloader; it has {", ".join(there) or "none"}'
        )
    check_visualizer(config)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    with scope_of(config):
        dataset = DATASETS.build(copy.deepcopy(loader['dataset']))
        visualizer = VISUALIZERS.build(
            {'type': config.visualizer.type, 'name': f'browse {out} {phase}'}
        )
        visualizer.dataset_meta = dataset.metainfo
        for index in range(min(number, len(dataset))):
            packed = dataset[index]
            files.append(out / f'{phase}_{index:05d}.png')
            draw_sample(
                visualizer,
                files[-1].stem,
                _picture(packed['inputs'], config),
                _plain_boxes(packed['data_samples']),
                str(files[-1]),
            )
    return files


def _picture(inputs: Any, config: Any) -> np.ndarray:
    """(H, W, 3), uint8, RGB, of (3, H, W), (views, 3, T, H, W) or (frames, 3, H, W)."""
    pixels = inputs.numpy()
    if pixels.ndim == 5:
        pixels = pixels[0, :, pixels.shape[2] // 2]
    elif pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.clip(0, 255)
    # MMCV reads blue first, and decord, which reads clips, red first.
    clips = config.get('default_scope') == 'mmaction'
    return pixels.astype(np.uint8)[..., :: 1 if clips else -1].copy()


def _plain_boxes(sample: Any) -> Any:
    """A sample of mmdet with boxes and masks as its visualizer reads them."""
    truth = sample.get('gt_instances')
    if truth is not None:
        if hasattr(truth.get('bboxes'), 'tensor'):
            truth.bboxes = truth.bboxes.tensor
        if hasattr(truth.get('masks'), 'to_ndarray'):
            truth.masks = truth.masks.to_ndarray().astype(bool)
    return sample
