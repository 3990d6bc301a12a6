"""VTAB-1k: nineteen tasks of 1,000 labelled images each.

Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", https://arxiv.org/abs/1910.04867. On disk, a task is a folder
with one list per split; a line is ``images/<split>/000000.jpg <label>``, the path
relative to the task folder, the label from 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.checks import missing_folder
from mmpetl.datasets.folders import folder_or_error
from mmpetl.datasets.lines import below, is_file, read_labelled
from mmpetl.registry import DATASETS

VTAB_TASKS: Mapping[str, DatasetFacts] = {
    facts.id: facts for facts in CATALOG.values() if facts.benchmark == 'vtab'
}

VTAB_SPLITS = tuple(split.name for split in VTAB_TASKS['cifar100'].splits)

# Spellings met in other projects; the folder on disk may bear any of them.
VTAB_ALIASES: Mapping[str, str] = {
    alias: facts.id for facts in VTAB_TASKS.values() for alias in facts.aliases
}


def vtab_task(name: str) -> DatasetFacts | None:
    """The benchmark task of that name or alias, or None where it is none of the 19."""
    return VTAB_TASKS.get(VTAB_ALIASES.get(name, name))


@DATASETS.register_module()
class VTAB(BaseDataset):
    """One split of one VTAB-1k task.

    Args:
        task: Name or alias of one of the 19 tasks, or the folder of a set of your own
            in the same layout, which then needs ``num_classes``.
        split: ``train800``, ``val200``, ``train800val200`` or ``test``.
        data_root: The folder ``vtab-1k``, which holds the task folders.
        num_classes: Class count, if it is not the benchmark's (a set of your own).
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.

    Raises:
        PETLError: Unknown split or task, missing folder or list, a list line that is
            malformed, names a missing file or holds a label out of range.
    """

    def __init__(
        self,
        task: str,
        split: str,
        data_root: str | os.PathLike[str],
        num_classes: int | None = None,
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ) -> None:
        known = vtab_task(task)
        if split not in VTAB_SPLITS:
            raise PETLError(
                f"VTAB has no split '{split}'; there are {', '.join(VTAB_SPLITS)}."
            )
        if known is None and num_classes is None:
            raise PETLError(
                f"'{task}' is none of the 19 VTAB-1k tasks ({', '.join(VTAB_TASKS)}); "
                'for a set of your own in the same layout give num_classes.'
            )
        self.task = known.id if known else task
        self.split = split
        self.num_classes = known.num_classes if num_classes is None else num_classes
        self.folder = self._find_folder(Path(data_root).expanduser(), task, known)
        super().__init__(
            ann_file=str(self.folder / f'{split}.txt'),
            metainfo=dict(classes=tuple(str(i) for i in range(self.num_classes))),
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )
        # Not through metainfo=: MMEngine takes a string there for a file's name.
        self._metainfo |= dict(dataset=self.task, split=split)

    @staticmethod
    def _find_folder(root: Path, task: str, known: DatasetFacts | None) -> Path:
        if (root / task).is_dir():
            return root / task
        if known is None:
            raise missing_folder(root / task, f'VTAB {task}')
        return folder_or_error(root, known, f'VTAB {task}')

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per list line: ``img_path`` and ``gt_label``."""
        missing = (
            f"VTAB {self.task} has no list '{self.ann_file}' for split {self.split}."
        )
        samples = []
        for number, name, gt_label in read_labelled(Path(self.ann_file), missing):
            where = f'{self.ann_file}:{number}'
            if not 0 <= gt_label < self.num_classes:
                raise PETLError(
                    f'{where}: label {gt_label} is out of range, {self.task} has '
                    f'classes 0 to {self.num_classes - 1}.'
                )
            img_path = below(self.folder, name)
            if not is_file(img_path):
                raise PETLError(f"{where}: there is no file '{img_path}'.")
            samples.append(dict(img_path=str(img_path), gt_label=gt_label))
        if not samples:
            raise PETLError(f"The list '{self.ann_file}' is empty.")
        return samples
