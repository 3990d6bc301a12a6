"""Images with several dense annotations: a label map, a depth map.

On disk ``images/<id>.jpg``, one folder per task, and lists of ids in ``splits``:
``segmentation/<id>.png`` holds labels from 0, 255 where a pixel does not count;
``depth/<id>.png`` holds millimetres in 16 bits, 0 where there is no reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError, suggest
from mmpetl.datasets.checks import missing_folder
from mmpetl.datasets.lines import is_file, read_lines
from mmpetl.registry import DATASETS

NYU_CLASSES = (
    *('wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window'),
    *('bookshelf', 'picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain'),
    *('dresser', 'pillow', 'mirror', 'floor mat', 'clothes', 'ceiling', 'books'),
    *('refrigerator', 'television', 'paper', 'towel', 'shower curtain', 'box'),
    *('whiteboard', 'person', 'night stand', 'toilet', 'sink', 'lamp', 'bathtub'),
    *('bag', 'other structure', 'other furniture', 'other prop'),
)
"""The forty classes of NYU Depth v2."""

TASK_FILES = {
    'segmentation': ('seg_map_path', 'segmentation'),
    'depth': ('depth_map_path', 'depth'),
}
"""Per task: the key under which transforms look for its file, and its folder."""


@DATASETS.register_module()
class DenseTasks(BaseDataset):
    """Images with a map per task.

    Args:
        split: Name of a list in ``splits``, without its suffix.
        data_root: Folder of the set.
        tasks: Which maps to name, of ``segmentation`` and ``depth``.
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        metainfo: ``classes`` of a set of your own; NYU Depth v2 by default.
        indices: Only the first few, or these, samples.
        img_suffix: Suffix of the images.

    Raises:
        PETLError: Unknown task, missing folder or list, an empty list, or one that
            names a missing file.
    """

    METAINFO = dict(classes=NYU_CLASSES)
    ignore_index = 255

    def __init__(
        self,
        split: str,
        data_root: str | os.PathLike[str],
        tasks: Iterable[str] = ('segmentation', 'depth'),
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        metainfo: dict[str, Any] | None = None,
        indices: int | list[int] | None = None,
        img_suffix: str = '.jpg',
    ) -> None:
        self.tasks = tuple(tasks)
        for task in self.tasks:
            if task not in TASK_FILES:
                raise PETLError(
                    f'DenseTasks has no task {task!r}.{suggest(str(task), TASK_FILES)} '
                    f'There are: {", ".join(TASK_FILES)}'
                )
        self.split = split
        self.folder = Path(data_root).expanduser()
        self.img_suffix = img_suffix
        for name in ('images', *(TASK_FILES[task][1] for task in self.tasks)):
            if not (self.folder / name).is_dir():
                raise missing_folder(self.folder / name, 'DenseTasks')
        super().__init__(
            ann_file=str(self.folder / 'splits' / f'{split}.txt'),
            metainfo=metainfo,
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )

    @property
    def num_classes(self) -> int:
        """Classes of the label maps."""
        return len(self.metainfo['classes'])

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per listed id: the paths of its image and of its maps."""
        path = Path(self.ann_file)
        missing = f"DenseTasks has no list '{path}' for split {self.split}."
        samples = [
            self._sample(stem, f'{path}:{number}')
            for number, stem in read_lines(path, missing)
        ]
        if not samples:
            raise PETLError(f"The list '{path}' is empty.")
        return samples

    def _sample(self, stem: str, where: str) -> dict[str, Any]:
        images = self.folder / 'images'
        if not is_file(images / f'{stem}{self.img_suffix}'):
            stem = stem.strip(' \t')  # an indent, unless it is of the name
        files = {'img_path': images / f'{stem}{self.img_suffix}'}
        for task in self.tasks:
            key, folder = TASK_FILES[task]
            files[key] = self.folder / folder / f'{stem}.png'
        for file in files.values():
            if not is_file(file):
                raise PETLError(f"{where}: there is no file '{file}'.")
        # What mmseg's loading transforms ask for.
        extra = {'seg_fields': [], 'label_map': None, 'reduce_zero_label': False}
        return {key: str(file) for key, file in files.items()} | extra
