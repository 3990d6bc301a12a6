"""What ``tools/test.py`` adds to a config: views, predictions, pictures."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.config.nodes import datasets_of, test_pipeline
from mmpetl.core import PETLError, check_range
from mmpetl.engine.hooks.drawing import check_visualizer

FLIPPED: Mapping[str, dict[str, Any]] = {
    'mmpretrain': {'type': 'mmpretrain.AverageClsScoreTTA'},
    'mmseg': {'type': 'mmseg.SegTTAModel'},
    'mmdet': {
        'type': 'DetTTAModel',  # which mmdet registers in MMEngine's own registry
        'tta_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100},
    },
}
"""By scope, what merges the predictions of a picture and of its mirror image."""


def set_test_options(
    config: Any,
    *,
    tta: str | None = None,
    dump: str | os.PathLike | None = None,
    show_dir: str | os.PathLike | None = None,
    show: bool = False,
    interval: int = 1,
    wait_time: float = 2.0,
) -> None:
    """Write into a config, in place, what a test is to do beside its metrics.

    Args:
        config: A config with a test phase.
        tta: ``config`` tests with the config's ``tta_model`` and ``tta_pipeline``;
            ``flip`` with every picture and its mirror image.
        dump: File, ``.pkl``, that the predictions are pickled into.
        show_dir: Folder of drawn pictures.
        show: Whether to show them in windows.
        interval: Draw every ``interval``-th sample.
        wait_time: Seconds for which a window stays.

    Raises:
        PETLError: The config, the task or this machine has not what is needed.
    """
    if tta:
        _add_views(config, tta)
    if dump is not None:
        _add_dump(config, Path(dump))
    if show_dir is not None or show:
        check_range('test', '--interval', interval, 1)
        if show:
            _check_display()
        _add_pictures(config, show_dir, show, interval, wait_time)


def _add_views(config: Any, tta: str) -> None:
    model, pipeline = config.get('tta_model'), config.get('tta_pipeline')
    if tta == 'flip':
        scope = config.get('default_scope')
        if scope not in FLIPPED:
            raise PETLError(
                f'--tta flip is for {", ".join(FLIPPED)}, and the config is of '
                f'{scope}; write tta_model and tta_pipeline into it'
            )
        if scope == 'mmseg' and not config.model.get('decode_head'):
            raise PETLError(
                '--tta flip averages maps of classes, and the model of the config has '
                'no decode_head that makes one'
            )
        if (config.model.get('roi_head') or {}).get('mask_head'):
            raise PETLError(
                '--tta flip merges boxes, and the model predicts masks too, which '
                'mmdet cannot merge; test without it'
            )
        model, pipeline = FLIPPED[scope], _with_mirror(test_pipeline(config))
    elif not model or not pipeline:
        lacks = ' and '.join(
            key for key in ('tta_model', 'tta_pipeline') if not config.get(key)
        )
        raise PETLError(
            f'--tta needs tta_model and tta_pipeline, and the config has no {lacks}; '
            'add them, or take --tta flip, which adds the mirror image'
        )
    for node in datasets_of(config, 'test'):
        node['pipeline'] = copy.deepcopy(pipeline)
    # The hook wraps the model once its weights are in.
    hooks = list(config.get('custom_hooks') or ())
    hook = {'type': 'mmengine.PrepareTTAHook', 'tta_cfg': copy.deepcopy(model)}
    config.custom_hooks = [*hooks, hook]


def _with_mirror(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A test pipeline whose samples are the picture and its mirror image.

    It is mirrored in front of the first step that reads or packs annotations, which
    stay as they are.
    """
    kinds = [str(step['type']).rpartition('.')[2] for step in steps]
    at = [i for i, k in enumerate(kinds) if 'Annotations' in k or k.startswith('Pack')]
    if not at:
        raise PETLError('--tta flip: no step of the test pipeline packs its samples')
    rest = [dict(step) for step in steps[at[0] :]]
    for step in rest:
        if 'meta_keys' in step:
            known = tuple(step['meta_keys'])
            added = (k for k in ('flip', 'flip_direction') if k not in known)
            step['meta_keys'] = (*known, *added)
    flips = [{'type': 'RandomFlip', 'prob': prob} for prob in (0.0, 1.0)]
    views = {'type': 'TestTimeAug', 'transforms': [flips, *([step] for step in rest)]}
    return [*steps[: at[0]], views]


def _add_dump(config: Any, path: Path) -> None:
    if path.suffix not in ('.pkl', '.pickle'):
        raise PETLError(f'predictions are written as .pkl, and {path} is none')
    detects = config.get('default_scope') == 'mmdet'
    kind = 'mmdet.DumpDetResults' if detects else 'mmengine.DumpResults'
    metrics = config.get('test_evaluator') or []
    if isinstance(metrics, Mapping) and 'metrics' in metrics:
        metrics = metrics['metrics']
    metrics = [metrics] if isinstance(metrics, Mapping) else list(metrics)
    config.test_evaluator = [*metrics, {'type': kind, 'out_file_path': str(path)}]


def _check_display() -> None:
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == 'agg':
        raise PETLError(
            '--show needs a display, and matplotlib finds none; write pictures with '
            '--show-dir FOLDER'
        )


def _add_pictures(
    config: Any, folder: Any, show: bool, interval: int, wait_time: float
) -> None:
    check_visualizer(config)
    if config.get('default_scope') == 'mmaction':
        for node in datasets_of(config, 'test'):
            _tell_file(node['pipeline'])
    hook = {
        'type': 'mmpetl.DrawingHook',
        'out_dir': None if folder is None else str(Path(folder).absolute()),
        'interval': interval,
        'show': show,
        'wait_time': wait_time,
    }
    config.custom_hooks = [*(config.get('custom_hooks') or ()), hook]


def _tell_file(steps: list[dict[str, Any]]) -> None:
    """Let packed clips say which file they are of."""
    for step in steps:
        if str(step['type']).rpartition('.')[2] == 'PackActionInputs':
            known = step.get('meta_keys', ('img_shape', 'img_key', 'video_id'))
            step['meta_keys'] = (*known, 'filename')
