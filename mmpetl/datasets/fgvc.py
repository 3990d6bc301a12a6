"""The five fine-grained sets, with the splits of the VPT data release.

Jia et al., "Visual Prompt Tuning", https://arxiv.org/abs/2203.12119. Each set is a
folder with ``train.json``, ``val.json`` and ``test.json``, flat objects from image path
to class id. Ids are neither contiguous nor 0-based, and a split may lack a class, so
they are mapped to 0..C-1 through the sorted union of the three files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_bytes
from mmpetl.datasets.annotations import parse_classes
from mmpetl.datasets.catalog import CATALOG, DatasetFacts
from mmpetl.datasets.folders import folder_or_error, pictures_below
from mmpetl.datasets.lines import is_file
from mmpetl.registry import DATASETS

FGVC_SPLITS: Mapping[str, tuple[str, ...]] = {
    'train': ('train',),
    'val': ('val',),
    'trainval': ('train', 'val'),
    'test': ('test',),
}


FGVC_SETS: Mapping[str, DatasetFacts] = {
    facts.id: facts for facts in CATALOG.values() if facts.benchmark == 'fgvc'
}


@DATASETS.register_module()
class FGVC(BaseDataset):
    """One split of one fine-grained set.

    Args:
        name: ``cub_200_2011``, ``nabirds``, ``oxford_flowers``, ``stanford_dogs`` or
            ``stanford_cars``.
        split: ``train``, ``val``, ``trainval`` or ``test``. VPT and V-PETL Bench
            train on ``train``, GPS on ``trainval``; which one it was stands in
            ``metainfo['split']``, for it is part of a result.
        data_root: The folder ``fgvc``, which holds the folders of the sets, in any of
            the spellings that releases have.
        num_classes: Class count the files must have, if not the set's own (small
            stand-ins in the same layout).
        pipeline: Transforms, built in the default scope of the config.
        test_mode: Set it on evaluation splits.
        indices: Only the first few, or these, samples.

    Raises:
        PETLError: Unknown set or split, missing folder or file, malformed JSON, a class
            count other than expected, or an entry that names a missing image.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_root: str | os.PathLike[str],
        num_classes: int | None = None,
        pipeline: list[Any] | tuple[Any, ...] = (),
        test_mode: bool = False,
        indices: int | list[int] | None = None,
    ) -> None:
        if name not in FGVC_SETS:
            raise PETLError(
                f"There is no FGVC set '{name}'; there are {', '.join(FGVC_SETS)}."
            )
        if split not in FGVC_SPLITS:
            raise PETLError(
                f"FGVC has no split '{split}'; there are {', '.join(FGVC_SPLITS)}."
            )
        self.entry = FGVC_SETS[name]
        self.split = split
        self.num_classes = num_classes or self.entry.num_classes
        root = Path(data_root).expanduser()
        self.folder = folder_or_error(root, self.entry, f'FGVC {name}')
        self._files = {part: self._read(part) for part in ('train', 'val', 'test')}
        first = next((key for keys in self._files.values() for key in keys), '')
        self.images = pictures_below(self.folder, self.entry.splits[0].images, first)
        super().__init__(
            ann_file='',
            metainfo=dict(classes=self._class_names()),
            pipeline=list(pipeline),
            test_mode=test_mode,
            indices=indices,
        )
        # Not through metainfo=: MMEngine takes a string there for a file's name.
        self._metainfo |= dict(dataset=name, split=split)
        del self._files

    def _read(self, part: str) -> dict[str, int]:
        """``{image path: class id}`` of one file, ids as integers."""
        path = self.folder / f'{part}.json'
        try:
            return parse_classes(read_bytes(path, 'split file'), f"'{path}'")
        except FileNotFoundError:
            raise PETLError(
                f"FGVC {self.entry.id} has no '{path}'; its class map needs "
                'train.json, val.json and test.json.'
            ) from None

    def _class_names(self) -> tuple[str, ...]:
        """Name of each mapped class: the folder of its images, or its id."""
        folders: dict[int, str] = {}
        for entries in self._files.values():
            for key, value in entries.items():
                folders.setdefault(value, Path(key).parent.name)
        ids = sorted(folders)
        if len(ids) != self.num_classes:
            raise PETLError(
                f"FGVC {self.entry.id} in '{self.folder}' has {len(ids)} classes, "
                f'expected {self.num_classes}; check that the three JSON files belong '
                'together.'
            )
        self._label_of = {value: label for label, value in enumerate(ids)}
        names = [folders[value] for value in ids]
        return tuple(names if len(set(names)) == len(ids) else map(str, ids))

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per entry: ``img_path`` and ``gt_label``."""
        samples = []
        for part in FGVC_SPLITS[self.split]:
            for key, value in self._files[part].items():
                path = self.images / key
                if not is_file(path):
                    raise PETLError(
                        f"{self.folder / part}.json: entry '{key}' names a missing "
                        f"file '{path}'."
                    )
                samples.append(dict(img_path=str(path), gt_label=self._label_of[value]))
        if not samples:
            raise PETLError(f"Split {self.split} of '{self.folder}' is empty.")
        return samples
