"""A file that cannot be decoded is named in one line, whatever the task.

The transforms that read files belong to four projects and fail in as many ways, some
silently. ``guard_reading`` wraps the pipeline of a built data set; the pipeline in the
config, and with it upstream's inferencers, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dataset import BaseDataset, Compose

from mmpetl.core import PETLError
from mmpetl.datasets.maps import fault_of_stored, sizes

if TYPE_CHECKING:
    from mmengine.runner import Runner

# The transforms that open files, by the verb their names begin with, and by decoder.
_READERS = ('Load', 'Decord', 'PyAV', 'OpenCV', 'Pillow', 'RawFrame', 'Imdecode')


_MAPS = {'gt_seg_map': 'seg_map_path', 'gt_depth_map': 'depth_map_path'}
"""Where transforms put a map of the whole picture, and where its file's name is."""


class UnreadableFileError(PETLError):
    """A listed file cannot be decoded, or does not hold what it is listed for.

    A worker's exception reaches the main process as its whole traceback in one string;
    its last line, where the message is, is kept.
    """

    def __init__(self, message: str) -> None:
        if 'Original Traceback' in message:
            message = message.rstrip().splitlines()[-1].split(': ', 1)[-1]
        super().__init__(message)


class GuardedPipeline:
    """Runs the transforms of ``pipeline``; a reading one that fails names the file.

    Maps must have the size of their picture and one value a pixel; label maps also
    labels that the reader can keep, and that there are.

    Args:
        pipeline: The data set's own.
        num_labels: Labels that a segmentation map may hold, 0 to ``num_labels - 1``,
            besides ``ignore``; None where maps are not looked at.
        ignore: The label of pixels that do not count.
    """

    def __init__(
        self, pipeline: Compose, num_labels: int | None = None, ignore: int = 255
    ) -> None:
        self.transforms = pipeline.transforms
        self.num_labels = num_labels
        self.ignore = ignore

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """The packed sample, or None where a transform rejects it (drawn anew)."""
        source = _files_of(data)
        for transform in self.transforms:
            name = type(transform).__name__
            if not name.startswith(_READERS):
                data = transform(data)
            else:
                data = _read(transform, data, source, name)
                if data is not None and self.num_labels and name == 'LoadAnnotations':
                    self._check_labels(data)
                elif data is not None:
                    _check_sizes(data)
            if data is None:
                return None
        return data

    def _check_labels(self, data: dict[str, Any]) -> None:
        labels, file = data['gt_seg_map'], Path(data['seg_map_path'])
        problem = fault_of_stored(file) if file.is_file() else None
        if problem:
            raise UnreadableFileError(f"Map '{file}' {problem}.")
        _check_sizes(data)
        top = int(labels.max(where=labels != self.ignore, initial=0))
        if top >= self.num_labels:
            raise UnreadableFileError(
                f"Map '{data['seg_map_path']}' holds label {top} (after any reduction "
                f'of zero), out of range 0 to {self.num_labels - 1}.'
            )

    def __repr__(self) -> str:
        lines = '\n'.join(f'    {transform}' for transform in self.transforms)
        return f'{type(self).__name__}(\n{lines}\n)'


def _files_of(data: Mapping[str, Any]) -> str:
    keys = ('filename', 'frame_dir', 'img_path', 'seg_map_path')
    files = [f"'{data[key]}'" for key in keys if data.get(key)]
    return ' or '.join(files) or 'a sample without a file name'


def _check_sizes(data: Mapping[str, Any]) -> None:
    """Each map is (H, W), as its picture was before any resizing."""
    for key, file in _MAPS.items():
        if data.get(key) is None:
            continue
        where, shape = data.get(file), data[key].shape
        if len(shape) != 2:
            raise UnreadableFileError(
                f"Map '{where}' has {shape[-1]} values a pixel as its transform reads "
                'it, colours for one; keep indices, and read them with '
                "imdecode_backend='pillow'."
            )
        picture = data.get('ori_shape') or shape
        problem = sizes(shape[::-1], tuple(picture[1::-1]))
        if problem:
            raise UnreadableFileError(f"Map '{where}' {problem}.")


def _read(
    transform: Callable[[dict], dict | None],
    data: dict[str, Any],
    source: str,
    name: str,
) -> dict[str, Any] | None:
    try:
        result = transform(data)
    except Exception as error:
        lines = str(error).strip().splitlines()
        why = f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
        raise UnreadableFileError(f'Cannot read {source} ({name}: {why}).') from error
    # OpenCV opens any file and counts no frames in what it does not understand.
    if result is not None and result.get('total_frames') == 0:
        raise UnreadableFileError(f'Cannot read {source} ({name}: no frames in it).')
    return result


def guard_reading(dataset: Any) -> None:
    """Wrap the pipelines of ``dataset`` and of the sets it repeats or joins, once.

    Args:
        dataset: A data set of MMEngine, wrapped or not. Others are left alone.
    """
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            guard_reading(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(dataset, BaseDataset) and isinstance(pipeline, Compose):
        # Segmentation sets are those that know of an ignored label.
        ignore = getattr(dataset, 'ignore_index', None)
        classes = dataset.metainfo.get('classes')
        if ignore is None or not classes:
            dataset.pipeline = GuardedPipeline(pipeline)
        else:
            dataset.pipeline = GuardedPipeline(pipeline, len(classes), ignore)


def guard_runner(runner: Runner) -> None:
    """Guard every data set that ``runner`` is going to build.

    Call it between ``Runner.from_cfg`` and ``train``, ``val`` or ``test``: loaders are
    built lazily, and an iteration-based loop starts their workers at once.
    """
    build = runner.build_dataloader

    def build_guarded(*args: Any, **kwargs: Any) -> Any:
        loader = build(*args, **kwargs)
        guard_reading(loader.dataset)
        return loader

    runner.build_dataloader = build_guarded
