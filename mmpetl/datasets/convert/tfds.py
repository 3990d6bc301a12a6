"""VTAB-1k's draw from TensorFlow Datasets.

Splits and labels are those of the VTAB task definitions: the first 800 of the training
part, and the first 200 of the validation part or, where there is none, of what follows
the first 90, 80 or 60 per cent. Versions are VTAB's, and those that took their place in
TensorFlow Datasets with the same pictures in the same order: their notes tell of new
addresses and features, and of a few damaged pictures of pets that were encoded anew.

TensorFlow Datasets is no dependency: ``pip install tensorflow-datasets array_record``
reads sets in the array-record format. Other formats, and preparing a set, need
``tensorflow importlib_resources``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.convert.vtab import Examples

Example = Mapping[str, Any]
Label = Callable[[Example], int]


def _plain(example: Example) -> int:
    return int(example['label'])


def _column(example: Example, group: str, name: str) -> np.ndarray:
    """One feature of a sequence, which readers hand out in either of two shapes."""
    rows = example[group]
    if isinstance(rows, Mapping):
        return np.asarray(rows[name])
    return np.asarray([row[name] for row in rows])


def _count_objects(example: Example) -> int:
    """CLEVR: three to ten objects are classes 0 to 7."""
    return len(_column(example, 'objects', 'size')) - 3


CLEVR_EDGES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_EDGES = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0
VEHICLES = 3
"""KITTI's types 0 to 2 are car, van and truck."""


def _interval(value: float, edges: Sequence[float]) -> int:
    """Index of the last edge that lies below ``value``."""
    return int(np.flatnonzero(np.asarray(edges) < value).max())


def _closest_object(example: Example) -> int:
    coords = _column(example, 'objects', 'pixel_coords').reshape(-1, 3)
    return _interval(float(coords[:, 2].min()), CLEVR_EDGES)


def _closest_vehicle(example: Example) -> int:
    kinds = _column(example, 'objects', 'type')
    depth = _column(example, 'objects', 'location').reshape(-1, 3)[:, 2]
    vehicles = depth[kinds < VEHICLES]
    return _interval(float(min([*vehicles, NO_VEHICLE])), KITTI_EDGES)


def _binned(attribute: str, values: int, bins: int) -> Label:
    return lambda example: int(example[attribute]) * bins // values


def _attribute(name: str) -> Label:
    return lambda example: int(example[name])


@dataclass(frozen=True)
class TFDSTask:
    """How a task is drawn.

    Attributes:
        builder: Name in TensorFlow Datasets, with config.
        versions: VTAB's own first, then others that draw the same pictures.
        label: From an example to its class.
        val: Split that the 200 come from, if it is not cut off ``train``.
        test: Split to test on, if it is not cut off ``train``.
        train_share: Per cent of ``train`` before the 200, where they are cut off.
        trainval_share: Per cent of ``train`` before the test part, likewise.
        test_start_share: Per cent of ``test`` that is left out, for it validates.
        scale: Factor on pixel values; dSprites stores 0 and 1.
    """

    builder: str
    versions: tuple[str, ...]
    label: Label = field(default=_plain)
    val: str | None = None
    test: str | None = 'test'
    train_share: int = 100
    trainval_share: int = 100
    test_start_share: int = 0
    scale: int = 1


def _split_90(builder: str, *versions: str, **kwargs: Any) -> TFDSTask:
    return TFDSTask(builder, versions, train_share=90, **kwargs)


def _split_60(builder: str, *versions: str) -> TFDSTask:
    return TFDSTask(builder, versions, test=None, train_share=60, trainval_share=80)


def _own(builder: str, *versions: str, **kwargs: Any) -> TFDSTask:
    """A set with a validation split of its own."""
    return TFDSTask(builder, versions, val='validation', **kwargs)


def _dsprites(attribute: str, values: int) -> TFDSTask:
    label = _binned(attribute, values, 16)
    return TFDSTask(
        'dsprites', ('2.0.0',), label, None, None, 80, trainval_share=90, scale=255
    )


def _smallnorb(attribute: str) -> TFDSTask:
    """The official test set serves for both: its first half validates."""
    label = _attribute(attribute)
    return TFDSTask('smallnorb', ('2.0.0',), label, 'test', 'test', test_start_share=50)


TFDS_TASKS: Mapping[str, TFDSTask] = {
    'cifar100': _split_90('cifar100', '3.0.2'),
    'caltech101': _split_90('caltech101', '3.0.1', '3.0.2'),
    'dtd': _own('dtd', '3.0.1'),
    'oxford_flowers102': _own('oxford_flowers102', '2.1.1'),
    'oxford_iiit_pet': TFDSTask('oxford_iiit_pet', ('3.2.0', '4.0.0'), train_share=80),
    'svhn': _split_90('svhn_cropped', '3.0.0', '3.1.0'),
    'sun397': _own('sun397/tfds', '4.0.0'),
    'patch_camelyon': _own('patch_camelyon', '2.0.0'),
    'eurosat': _split_60('eurosat/rgb', '2.0.0'),
    'resisc45': _split_60('resisc45', '3.0.0'),
    'diabetic_retinopathy': _own(
        'diabetic_retinopathy_detection/btgraham-300', '3.0.0'
    ),
    'clevr_count': _split_90('clevr', '3.1.0', label=_count_objects, test='validation'),
    'clevr_dist': _split_90('clevr', '3.1.0', label=_closest_object, test='validation'),
    'dmlab': _own('dmlab', '2.0.1'),
    'kitti': _own('kitti', '3.2.0', '3.3.0', label=_closest_vehicle),
    'dsprites_loc': _dsprites('label_x_position', 32),
    'dsprites_ori': _dsprites('label_orientation', 40),
    'smallnorb_azi': _smallnorb('label_azimuth'),
    'smallnorb_ele': _smallnorb('label_elevation'),
}


def instruction(task: TFDSTask, name: str, sizes: Mapping[str, int]) -> str:
    """The slice that a split is, in TensorFlow Datasets' language.

    Args:
        task: How the task is drawn.
        name: ``train800``, ``val200``, ``test``, or ``trainval`` for the whole pool.
        sizes: Examples of each official split.
    """
    total = sizes['train']
    # Shares are cut one by one, as the task definitions do.
    train = total * task.train_share // 100
    trainval = train + total * (task.trainval_share - task.train_share) // 100
    if task.train_share == 100 or task.trainval_share == 100:
        trainval = total
    if name == 'train800':
        return 'train[:800]'
    if name == 'val200':
        return f'{task.val}[:200]' if task.val else f'train[{train}:{train + 200}]'
    if name == 'trainval':
        return f'train[:{trainval}]' + (f'+{task.val}' if task.val else '')
    if task.test is None:
        return f'train[{trainval}:]'
    start = sizes[task.test] * task.test_start_share // 100
    return f'{task.test}[{start}:]' if start else task.test


@dataclass(frozen=True)
class _Labelled:
    """A source of raw examples, read as pictures and labels."""

    source: Sequence[Example]
    task: TFDSTask

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example = self.source[index]
        picture = np.asarray(example['image'])
        if picture.dtype != np.uint8:
            raise PETLError(
                f'{self.task.builder}: picture {index} is {picture.dtype}, not uint8'
            )
        return picture * np.uint8(self.task.scale), self.task.label(example)


@dataclass(frozen=True)
class TFDSExport:
    """Tasks as TensorFlow Datasets has prepared them.

    Args:
        data_dir: Its folder; None for its own default.
    """

    data_dir: Path | None = None

    def split(self, facts: DatasetFacts, name: str) -> Examples:
        """One split; PETLError where the package or the prepared set is missing."""
        task = TFDS_TASKS[facts.id]
        builder = _builder(task, self.data_dir)
        sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
        return _Labelled(_read(builder, instruction(task, name, sizes)), task)

    def origin(self, facts: DatasetFacts) -> str:
        """Name and version of the prepared set that a task is drawn from."""
        return _builder(TFDS_TASKS[facts.id], self.data_dir).info.full_name


def _builder(task: TFDSTask, data_dir: Path | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise PETLError(
            'reading TensorFlow Datasets needs a package that is not installed; '
            'pip install tensorflow-datasets array_record, or give an export '
            '(--npz, --folders) or a processed archive'
        ) from None
    offered, why = [], ''
    for version in task.versions:
        name = f'{task.builder}:{version}'
        try:
            builder = tfds.builder(name, data_dir=data_dir and str(data_dir))
        except (AssertionError, ValueError, LookupError, OSError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        if builder.info.splits:
            return builder
        offered.append(name)
    raise _not_prepared(task, data_dir, offered, why)


def _not_prepared(
    task: TFDSTask, data_dir: Path | None, offered: Sequence[str], why: str
) -> PETLError:
    """What is asked for, what is there, and the command that prepares it."""
    where = data_dir or "TensorFlow Datasets' default folder"
    message = f'{task.builder} is not prepared in {where}'
    if data_dir is not None:
        folder = data_dir / task.builder
        there = sorted(path.name for path in folder.glob('*.*.*') if path.is_dir())
        message += f' (versions there: {", ".join(there) or "none"})'
    message += f'; VTAB-1k is drawn from version {" or ".join(task.versions)}'
    if not offered:
        return PETLError(f'{message}, which is not offered by what is installed: {why}')
    options = '--file_format=array_record'
    if data_dir is not None:
        options += f' --data_dir={data_dir}'
    return PETLError(f'{message}: tfds build {offered[0]} {options}')


def _read(builder: Any, split: str) -> Sequence[Example]:
    kind = getattr(builder.info.file_format, 'value', str(builder.info.file_format))
    if kind == 'array_record':
        try:
            return builder.as_data_source(split=split)
        except (ValueError, KeyError) as error:
            raise PETLError(
                f'{builder.info.full_name} has no {split}, so it is not the official '
                f'set: {error}'
            ) from None
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise PETLError(
            f'{builder.info.full_name} is stored as {kind}, which needs TensorFlow; '
            'pip install tensorflow, or prepare it with --file_format=array_record'
        ) from None
    # One file after the other, as array records are read: by default they take turns.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    return list(tfds.as_numpy(dataset))
