"""VTAB-1k: nineteen tasks of 1,000 labelled images each.

Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", https://arxiv.org/abs/1910.04867. On disk, a task is a folder
with one list per split; a line is ``images/<split>/000000.jpg <label>``, the path
relative to the task folder, the label from 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError
from mmpetl.datasets.checks import missing_folder
from mmpetl.registry import DATASETS

Group = Literal['natural', 'specialised', 'structured']

VTAB_SPLITS = ('train800', 'val200', 'train800val200', 'test')


@dataclass(frozen=True)
class VTABTask:
    """One task: its folder below ``vtab-1k/``, group, class count and test-set size."""

    name: str
    folder: str
    group: Group
    num_classes: int
    num_test: int


def _task(
    name: str, group: Group, num_classes: int, num_test: int, folder: str = ''
) -> VTABTask:
    return VTABTask(name, folder or name, group, num_classes, num_test)


VTAB_TASKS: Mapping[str, VTABTask] = {
    task.name: task
    for task in (
        _task('cifar100', 'natural', 100, 10_000, folder='cifar'),
        _task('caltech101', 'natural', 102, 6_084),
        _task('dtd', 'natural', 47, 1_880),
        _task('oxford_flowers102', 'natural', 102, 6_149),
        _task('oxford_iiit_pet', 'natural', 37, 3_669),
        _task('svhn', 'natural', 10, 26_032),
        _task('sun397', 'natural', 397, 21_750),
        _task('patch_camelyon', 'specialised', 2, 32_768),
        _task('eurosat', 'specialised', 10, 5_400),
        _task('resisc45', 'specialised', 45, 6_300),
        _task('diabetic_retinopathy', 'specialised', 5, 42_670),
        _task('clevr_count', 'structured', 8, 15_000),
        _task('clevr_dist', 'structured', 6, 15_000),
        _task('dmlab', 'structured', 6, 22_735),
        _task('kitti', 'structured', 4, 711),
        _task('dsprites_loc', 'structured', 16, 73_728),
        _task('dsprites_ori', 'structured', 16, 73_728),
        _task('smallnorb_azi', 'structured', 18, 12_150),
        _task('smallnorb_ele', 'structured', 9, 12_150),
    )
}

# Spellings met in other projects; the folder on disk may bear any of them.
VTAB_ALIASES: Mapping[str, str] = {
    'cifar': 'cifar100',
    'cifar_100': 'cifar100',
    'oxford_pet': 'oxford_iiit_pet',
    'pets': 'oxford_iiit_pet',
    'flowers102': 'oxford_flowers102',
}


def vtab_task(name: str) -> VTABTask | None:
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
        self.task = known.name if known else task
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

    @staticmethod
    def _find_folder(root: Path, task: str, known: VTABTask | None) -> Path:
        names = [task]
        if known:
            aliases = [a for a, name in VTAB_ALIASES.items() if name == known.name]
            names += [known.folder, known.name, *aliases]
        for name in names:
            if (root / name).is_dir():
                return root / name
        raise missing_folder(root / (known.folder if known else task), f'VTAB {task}')

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per list line: ``img_path`` and ``gt_label``."""
        try:
            lines = Path(self.ann_file).read_text(encoding='utf-8').splitlines()
        except FileNotFoundError:
            raise PETLError(
                f"VTAB {self.task} has no list '{self.ann_file}' for split "
                f'{self.split}.'
            ) from None
        samples = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f'{self.ann_file}:{number}'
            path, _, label = line.strip().rpartition(' ')
            if not path or not label.lstrip('-').isdigit():
                raise PETLError(f"{where}: '{line}' is not '<image path> <label>'.")
            gt_label = int(label)
            if not 0 <= gt_label < self.num_classes:
                raise PETLError(
                    f'{where}: label {gt_label} is out of range, {self.task} has '
                    f'classes 0 to {self.num_classes - 1}.'
                )
            img_path = self.folder / path
            if not img_path.is_file():
                raise PETLError(f"{where}: there is no file '{img_path}'.")
            samples.append(dict(img_path=str(img_path), gt_label=gt_label))
        if not samples:
            raise PETLError(f"The list '{self.ann_file}' is empty.")
        return samples
