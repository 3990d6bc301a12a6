"""One part of a person's own pictures, as :mod:`.splits` has divided them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.own.find import PARTS
from mmpetl.datasets.own.splits import SCENES, read_splits
from mmpetl.registry import DATASETS

READ = {**{part: (part,) for part in PARTS}, 'trainval': ('train', 'val')}
"""Parts that a split is made of."""


@DATASETS.register_module()
class OwnPictures(BaseDataset):
    """Pictures of a folder or a CSV, by the file that says what is where.

    ``metainfo['classes']`` holds the names of the classes.

    Args:
        data_root: The folder of the pictures.
        splits: The file of :func:`mmpetl.datasets.own.keep_splits`.
        split: ``train``, ``val``, ``test``, or ``trainval``.
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.
        division: Digest of the division that is meant; None takes any.

    Raises:
        PETLError: An unknown split, a file that is missing, was edited or holds another
            division, or a picture that is no longer there.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        splits: str | os.PathLike[str],
        split: str,
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
        division: str | None = None,
    ) -> None:
        if split not in READ:
            raise PETLError(
                f'OwnPictures has no split {split!r}; there are {", ".join(READ)}.'
            )
        self.folder = Path(data_root).expanduser()
        self.split = split
        self.splits = read_splits(splits)
        if self.splits.layout in SCENES:
            raise PETLError(
                f'{splits} divides pictures with {self.splits.layout}; OwnPictures '
                'reads those of one class each.'
            )
        if division not in (None, self.splits.digest):
            raise PETLError(
                f'{splits} was drawn anew since this config was written, and holds '
                'another division; train again, or bring the earlier file back.'
            )
        self.num_classes = len(self.splits.classes)
        super().__init__(
            ann_file=str(splits),
            metainfo=dict(classes=tuple(self.splits.classes)),
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per picture: ``img_path`` and ``gt_label``."""
        if not self.folder.is_dir():
            raise PETLError(f"there is no folder of pictures '{self.folder}'")
        samples = []
        for part in READ[self.split]:
            for entry in self.splits.parts[part]:
                path = self.folder / entry.path
                if not is_file(path):
                    raise PETLError(
                        f"{self.ann_file} names '{path}', which is not there."
                    )
                samples.append(dict(img_path=str(path), gt_label=entry.label))
        return samples
