"""Videos, or folders of frames, by a list with blanks or commas.

MMAction2's lists hold blanks, those of other projects commas, and both write the label
last. Samples carry what MMAction2's transforms ask for, so that its pipelines run on
them unchanged.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError
from mmpetl.datasets.checks import missing_folder
from mmpetl.datasets.lines import below, is_file, read_lines
from mmpetl.registry import DATASETS

_GAP = r'[ \t]*[, \t][ \t]*'
VIDEO_LINE = re.compile(rf'(?P<path>.+?){_GAP}(?P<label>-?[0-9]{{1,18}})')
FRAMES_LINE = re.compile(
    rf'(?P<path>.+?){_GAP}(?P<frames>[0-9]{{1,9}}){_GAP}(?P<label>-?[0-9]{{1,18}})'
)


def read_video_list(
    path: Path, frames: bool = False
) -> list[tuple[int, str, int | None, int]]:
    """Line number, path, frame count (None for videos) and label of each line.

    The label is what follows the last blank or comma, so that paths may hold either.

    Raises:
        PETLError: The list is missing, or a line is not of that form.
    """
    pattern = FRAMES_LINE if frames else VIDEO_LINE
    wanted = '<folder> <frames> <label>' if frames else '<video path> <label>'
    entries = []
    for number, line in read_lines(path):
        match = pattern.fullmatch(line)
        if match is None:
            raise PETLError(
                f"{path}:{number}: '{line}' is not '{wanted}' (or with commas)."
            )
        count = int(match['frames']) if frames else None
        entries.append((number, match['path'], count, int(match['label'])))
    return entries


@DATASETS.register_module()
class VideoList(BaseDataset):
    """Videos of a list, or folders of frames.

    Args:
        ann_file: The list, lines ``<path> <label>`` or ``<folder> <frames> <label>``,
            with blanks or commas.
        data_root: The folder that paths are relative to; absolute paths stay.
        num_classes: Classes that labels may name, 0 to ``num_classes - 1``.
        frames: The list names folders of frames.
        filename_tmpl: Name of a frame.
        start_index: Number of the first frame of a folder.
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.

    Raises:
        PETLError: A missing folder, list or file, a malformed line, or a label out of
            range.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike[str],
        data_root: str | os.PathLike[str],
        num_classes: int,
        frames: bool = False,
        filename_tmpl: str = 'img_{:05}.jpg',
        start_index: int = 1,
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ) -> None:
        self.folder = Path(data_root).expanduser()
        self.num_classes = num_classes
        self.frames = frames
        self.filename_tmpl = filename_tmpl
        self.start_index = start_index if frames else 0
        if not self.folder.is_dir():
            raise missing_folder(self.folder, 'VideoList')
        super().__init__(
            ann_file=str(Path(ann_file).expanduser()),
            metainfo=dict(classes=tuple(map(str, range(num_classes)))),
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per line, with the keys of MMAction2's own data sets."""
        entries = read_video_list(Path(self.ann_file), self.frames)
        if not entries:
            raise PETLError(f"The list '{self.ann_file}' is empty.")
        return [self._sample(*entry) for entry in entries]

    def _sample(
        self, number: int, name: str, count: int | None, label: int
    ) -> dict[str, Any]:
        where, path = f'{self.ann_file}:{number}', below(self.folder, name)
        if not 0 <= label < self.num_classes:
            raise PETLError(
                f'{where}: label {label} is out of range, classes are 0 to '
                f'{self.num_classes - 1}.'
            )
        if not (os.path.isdir(path) if self.frames else is_file(path)):
            what = 'folder' if self.frames else 'file'
            raise PETLError(f"{where}: there is no {what} '{path}'.")
        common = dict(label=label, modality='RGB', start_index=self.start_index)
        if not self.frames:
            return dict(filename=str(path), **common)
        return dict(
            frame_dir=str(path),
            total_frames=count,
            filename_tmpl=self.filename_tmpl,
            **common,
        )
