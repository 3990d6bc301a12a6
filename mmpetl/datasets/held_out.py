"""A part of a training set held out, where a data set has no validation set.

Video and dense sets publish two splits, and papers report on the second. To choose
settings without it, a part of the first is kept from training.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)

from mmpetl.core import PETLError, check_range
from mmpetl.registry import DATASETS

_KEYS = ('img_path', 'filename', 'frame_dir')

_TRIES = 1000
"""Samples that are drawn in place of one that the transforms leave out."""


@DATASETS.register_module()
class HeldOut:
    """The training part or the held-out part of a data set.

    A sample belongs to the held-out part if a digest of its file's name is below the
    share, so that both parts stay apart whatever else filters the set, on any machine.
    The share is therefore kept on average only.

    Args:
        dataset: A data set or its config.
        part: ``train`` or ``val``.
        share: Share that ``val`` gets, between 0 and 1.
        part_of: Pattern of what is left out of a name before its digest is taken, so
            that samples which were cut from one source stay together.

    Raises:
        PETLError: A part would be empty, samples do not say their file, or the data
            set is one that mixes samples, which would mix both parts: hold out first.
    """

    def __init__(
        self,
        dataset: BaseDataset | Mapping[str, Any],
        part: Literal['train', 'val'],
        share: float = 0.1,
        part_of: str = '',
        lazy_init: bool = False,
    ) -> None:
        check_range('HeldOut', 'share', share, 0, 1)
        if part not in ('train', 'val'):
            raise PETLError(f"HeldOut has the parts train and val, not '{part}'.")
        self.dataset = (
            DATASETS.build(dict(dataset)) if isinstance(dataset, Mapping) else dataset
        )
        self.part = part
        self.share = share
        self.part_of = re.compile(part_of) if part_of else None
        self._indices: list[int] = []
        self._ready = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """That of the data set."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Read the data set and divide it."""
        if self._ready:
            return
        self.dataset.full_init()
        leaf = _leaf(self.dataset, 0)[0] if len(self.dataset) else None
        if not hasattr(leaf, 'prepare_data') and hasattr(leaf, 'dataset'):
            raise PETLError(
                f'HeldOut cannot divide a {type(leaf).__name__}, which draws from all '
                'of its samples; put HeldOut inside of it.'
            )
        wanted = self.part == 'val'
        self._indices = [
            index
            for index in range(len(self.dataset))
            if self._held(self.dataset.get_data_info(index)) == wanted
        ]
        if not self._indices:
            raise PETLError(
                f'HeldOut leaves no sample in part {self.part}: {len(self.dataset)} '
                f'samples, share {self.share}.'
            )
        self._ready = True

    def _held(self, info: Mapping[str, Any]) -> bool:
        path = next((str(info[key]) for key in _KEYS if info.get(key)), None)
        if path is None:
            raise PETLError('HeldOut needs samples that say their file.')
        # Without the folders above, which differ between machines.
        name = '/'.join(path.replace('\\', '/').split('/')[-2:])
        if self.part_of is not None:
            name = self.part_of.sub('', name)
        return zlib.crc32(name.encode()) < self.share * 2**32

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Annotations of a sample, which samplers ask for."""
        self.full_init()
        return self.dataset.get_data_info(self._indices[idx])

    def get_cat_ids(self, idx: int) -> list[int]:
        """Classes of a sample, which balanced samplers ask for."""
        self.full_init()
        return self.dataset.get_cat_ids(self._indices[idx])

    def prepare_data(self, idx: int) -> Any:
        """A sample, or None where the transforms leave it out."""
        self.full_init()
        leaf, index = _leaf(self.dataset, self._indices[idx])
        if hasattr(leaf, 'prepare_data'):
            return leaf.prepare_data(index)
        return leaf[index]

    def __getitem__(self, idx: int) -> Any:
        # Not by the data set's own __getitem__, which draws anew among all of its
        # samples, those of the other part included.
        self.full_init()
        for _ in range(_TRIES):
            sample = self.prepare_data(idx)
            if sample is not None:
                return sample
            if self.part == 'val':
                raise PETLError(
                    f'the transforms leave out sample {idx} of the held-out part, and '
                    'an evaluation may not leave out a sample'
                )
            idx = np.random.randint(0, len(self))
        raise PETLError(f'the transforms leave out {_TRIES:,} samples in a row')

    def __len__(self) -> int:
        self.full_init()
        return len(self._indices)


def _leaf(dataset: Any, index: int) -> tuple[Any, int]:
    """The innermost data set with transforms of its own, and an index in it."""
    while not hasattr(dataset, 'prepare_data'):
        if isinstance(dataset, ConcatDataset):
            part, index = dataset._get_ori_dataset_idx(index)
            dataset = dataset.datasets[part]
        elif isinstance(dataset, RepeatDataset | ClassBalancedDataset):
            index = dataset._get_ori_dataset_idx(index)
            dataset = dataset.dataset
        else:
            break
    return dataset, index
