"""Pictures of what a model says of the test data, drawn by the toolbox's visualizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.registry import HOOKS

SHOWN_SIDE = 360
"""Shorter side, in pixels, that a classified picture is drawn with: text is read."""


VISUALIZERS = {
    'mmpretrain': 'UniversalVisualizer',
    'mmaction': 'ActionVisualizer',
    'mmseg': 'SegLocalVisualizer',
    'mmdet': 'DetLocalVisualizer',
}
"""That of each toolbox, by scope."""


@HOOKS.register_module()
class DrawingHook(Hook):
    """Draws samples of the test set with their labels and predictions.

    Each is drawn on the file that it was read from, a video's middle frame, so that
    normalisation, views and flips of the pipeline do not show. The hooks of mmpretrain
    and mmaction2 draw what the model is given instead, in the order of channels of
    OpenCV. Of a run of several processes the first one draws its share.

    Args:
        out_dir: Folder of the pictures, ``00007_<name>.png``; None writes none.
        interval: Draw every ``interval``-th sample.
        show: Whether to open a window for each.
        wait_time: Seconds for which a window stays.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        interval: int = 1,
        show: bool = False,
        wait_time: float = 2.0,
    ) -> None:
        self.out_dir = out_dir
        self.interval = interval
        self.show = show
        self.wait_time = wait_time
        self.seen = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw those of a batch whose turn it is."""
        for sample in outputs or ():
            if self.seen % self.interval == 0:
                self._draw(runner.visualizer, sample)
            self.seen += 1

    def _draw(self, visualizer: Any, sample: Any) -> None:
        read = _of_package(visualizer)[0]
        source = sample.get('img_path') or sample.get('filename')
        if not source or not Path(source).is_file():
            raise PETLError(
                f'a sample of the test set names no file to draw on (got {source!r})'
            )
        name = f'{self.seen:05d}_{Path(source).stem}'
        out = None if self.out_dir is None else str(Path(self.out_dir, f'{name}.png'))
        show = {'show': self.show, 'wait_time': self.wait_time}
        draw_sample(visualizer, name, read(str(source)), sample, out, **show)


def check_visualizer(config: Any) -> None:
    """Raise PETLError where a config names no visualizer."""
    if not (config.get('visualizer') or {}).get('type'):
        known = VISUALIZERS.get(config.get('default_scope'), 'UniversalVisualizer')
        raise PETLError(
            'the config names no visualizer, so nothing can be drawn; add one: '
            f'--cfg-options visualizer.type={known}'
        )


def draw_sample(
    visualizer: Any,
    name: str,
    picture: Any,
    sample: Any,
    out: str | None,
    show: bool = False,
    wait_time: float = 0.0,
) -> None:
    """Draw what a sample says of a picture, as its toolbox does.

    Args:
        visualizer: That of the toolbox, with the ``dataset_meta`` of the data.
        name: Of the picture.
        picture: (H, W, 3), uint8, RGB.
        sample: Labels, predictions or both.
        out: File; None writes none.
        show: Whether to open a window.
        wait_time: Seconds for which it stays.

    Raises:
        PETLError: The visualizer is of no toolbox.
    """
    draw = _of_package(visualizer)[1]
    draw(visualizer, name, picture, sample, out, {'show': show, 'wait_time': wait_time})


def _of_package(visualizer: Any) -> tuple[Callable[..., Any], Callable[..., None]]:
    package = type(visualizer).__module__.partition('.')[0]
    if package not in _DRAW:
        raise PETLError(
            f'{type(visualizer).__name__} draws no samples; name a visualizer of '
            f'{", ".join(_DRAW)} in the config'
        )
    return _DRAW[package]


def _picture(source: str) -> Any:
    """The pixels of a file, (H, W, 3), uint8, RGB."""
    import mmcv

    return mmcv.imread(source, channel_order='rgb')


def _middle_frame(source: str) -> Any:
    """The same of the frame in the middle of a video."""
    import decord

    reader = decord.VideoReader(source, num_threads=1)
    return reader[len(reader) // 2].asnumpy()


def _classes(
    visualizer: Any,
    name: str,
    picture: Any,
    sample: Any,
    out: str | None,
    show: dict[str, Any],
) -> None:
    visualizer.visualize_cls(
        picture,
        sample,
        classes=(visualizer.dataset_meta or {}).get('classes'),
        resize=max(SHOWN_SIDE, min(picture.shape[:2])),
        out_file=out,
        name=name,
        **show,
    )


@cache
def _classifier_drawer() -> Any:
    from mmpretrain.visualization import UniversalVisualizer

    return UniversalVisualizer()


def _clip(visualizer: Any, *args: Any) -> None:
    # mmaction2's own asks samples for the labels of its last version, and writes none.
    drawer = _classifier_drawer()
    drawer.dataset_meta = visualizer.dataset_meta
    _classes(drawer, *args)


def _pixels(
    visualizer: Any,
    name: str,
    picture: Any,
    sample: Any,
    out: str | None,
    show: dict[str, Any],
) -> None:
    meta = visualizer.dataset_meta or {}
    if 'gt_sem_seg' in sample and not (meta.get('classes') and meta.get('palette')):
        raise PETLError(
            'the data say no classes and palette, so maps cannot be drawn; say both in '
            'metainfo of their dataset'
        )
    visualizer.add_datasample(name, picture, sample, out_file=out, **show)


_DRAW = {
    'mmpretrain': (_picture, _classes),
    'mmseg': (_picture, _pixels),
    'mmdet': (_picture, _pixels),
    'mmaction': (_middle_frame, _clip),
}
"""By the package of the visualizer: what reads a file, and what draws on it."""
