"""Pictures by a list or by class folders, and the extra image sets of the catalogue.

A list line is ``<path> <label>``, split at its last blank, since paths may hold blanks.
Without a list the folders are the classes, as ImageNet and its shifted test sets come:
called by WordNet id, or by the number of the class.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError, suggest
from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.checks import missing_folder
from mmpetl.datasets.lines import as_label, below, is_file, read_labelled
from mmpetl.datasets.walk import is_hidden, pictures_in
from mmpetl.registry import DATASETS

STUDY_SETS = {
    facts.id: facts for facts in CATALOG.values() if facts.benchmark == 'study'
}
"""Sets that :class:`StudyImages` reads."""


@lru_cache
def imagenet_wnids() -> dict[str, int]:
    """WordNet id to class of ImageNet-1k: the ids in alphabetical order."""
    from timm.data import ImageNetInfo

    names = ImageNetInfo('imagenet1k').label_names()
    return {wnid: label for label, wnid in enumerate(names)}


@lru_cache
def subset_of(id: str) -> tuple[int, ...]:
    """Classes of ImageNet-R or -A within ImageNet's thousand, in order."""
    text = (resources.files('timm') / 'data' / '_info' / f'{id}_synsets.txt').read_text(
        'utf-8'
    )
    return tuple(sorted(imagenet_wnids()[wnid] for wnid in text.split()))


def read_classes(folder: Path, num_classes: int = 1000) -> list[tuple[str, int]]:
    """Path below ``folder`` and label of every picture in its class folders, sorted.

    Raises:
        PETLError: The folder is missing, or holds a folder that is no class.
    """
    if not folder.is_dir():
        raise missing_folder(folder, 'A set with class folders')
    labels = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_hidden(entry.name):
            labels[entry.name] = _label_of_folder(entry, num_classes)
    return [
        (f'{name}/{file}', label)
        for name, label in sorted(labels.items(), key=lambda item: item[1])
        for file in pictures_in(folder / name)
    ]


def _label_of_folder(folder: Path, num_classes: int) -> int:
    # Folders of ImageNet-V2 bear the number, '10' before '2' in alphabetical order.
    label = as_label(folder.name)
    if label is None:
        label = imagenet_wnids().get(folder.name)
    if label is None or not 0 <= label < num_classes:
        raise PETLError(
            f"'{folder}' is no class folder: neither a WordNet id of ImageNet-1k nor a "
            f'number below {num_classes}.'
        )
    return label


@DATASETS.register_module()
class ImageList(BaseDataset):
    """Pictures of a list, or of class folders.

    Args:
        data_root: The folder that paths are relative to.
        num_classes: Classes that labels may name, 0 to ``num_classes - 1``.
        ann_file: The list below ``data_root``; empty to read its class folders.
        subset: How many of the classes occur. ``metainfo['subset']`` then holds them in
            order, for :class:`mmpetl.MaskedAccuracy`; labels stay those of all classes.
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.

    Raises:
        PETLError: A missing folder, list or picture, a malformed line, a label out of
            range, or another number of classes than ``subset``.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        num_classes: int,
        ann_file: str = '',
        subset: int | None = None,
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ) -> None:
        self.folder = Path(data_root).expanduser()
        self.num_classes = num_classes
        self.subset = subset
        if not self.folder.is_dir():
            raise missing_folder(self.folder, type(self).__name__)
        super().__init__(
            ann_file=str(self.folder / ann_file) if ann_file else '',
            metainfo=dict(classes=tuple(map(str, range(num_classes)))),
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per picture: ``img_path`` and ``gt_label``."""
        if self.ann_file:
            samples = [
                self._sample(*entry) for entry in read_labelled(Path(self.ann_file))
            ]
        else:
            found = read_classes(self.folder, self.num_classes)
            samples = [
                dict(img_path=str(self.folder / name), gt_label=label)
                for name, label in found
            ]
        if not samples:
            raise PETLError(
                f"{type(self).__name__}: '{self.ann_file or self.folder}' is empty."
            )
        if self.subset is not None:
            present = tuple(sorted({sample['gt_label'] for sample in samples}))
            if len(present) != self.subset:
                raise PETLError(
                    f"'{self.ann_file or self.folder}' holds {len(present)} classes, "
                    f'expected {self.subset}.'
                )
            self._metainfo['subset'] = present
        return samples

    def _sample(self, number: int, name: str, label: int) -> dict[str, Any]:
        where = f'{self.ann_file}:{number}'
        if not 0 <= label < self.num_classes:
            raise PETLError(
                f'{where}: label {label} is out of range, classes are 0 to '
                f'{self.num_classes - 1}.'
            )
        path = below(self.folder, name)
        if not is_file(path):
            raise PETLError(f"{where}: there is no file '{path}'.")
        return dict(img_path=str(path), gt_label=label)


@DATASETS.register_module()
class StudyImages(ImageList):
    """One split of a set of several sizes, or of ImageNet and its shifted test sets.

    Args:
        name: ``cifar100_1k``, ``imagenet_r``, ...: a study set of the catalogue.
        split: ``train``, ``val``, ``trainval`` or ``test``, or ``train_fold2`` and the
            like where the set has folds.
        data_root: The data root.
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.

    Raises:
        PETLError: An unknown set or split; otherwise see :class:`ImageList`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_root: str | os.PathLike[str],
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ) -> None:
        if name not in STUDY_SETS:
            raise PETLError(
                f"There is no study set '{name}'.{suggest(name, STUDY_SETS)} "
                f'There are: {", ".join(STUDY_SETS)}.'
            )
        self.entry = STUDY_SETS[name]
        self.split = split
        super().__init__(
            data_root=Path(data_root).expanduser() / self.entry.path,
            num_classes=self.entry.num_classes,
            ann_file=list_of(self.entry, split),
            subset=self.entry.subset,
            pipeline=pipeline,
            test_mode=test_mode,
            indices=indices,
        )
        # Not through metainfo=: MMEngine takes a string there for a file's name.
        self._metainfo |= dict(dataset=name, split=split)


def list_of(facts: DatasetFacts, split: str) -> str:
    """The list of a split below the set's folder, folds included."""
    kind, _, fold = split.partition('_fold')
    if (
        as_label(fold) is not None
        and 1 <= int(fold) <= facts.folds
        and kind in ('train', 'val')
    ):
        return facts.split(kind).file.replace(f'{kind}.txt', f'{split}.txt')
    return facts.split(split).file
