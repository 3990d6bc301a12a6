"""Segmentors of a person's own pictures: the task, and what the test pictures say."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmpetl.apis.draw import colours, with_segments
from mmpetl.apis.predict import Segmentation
from mmpetl.benchmark.resampling import Interval
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.datasets.own import Masks
from mmpetl.datasets.own.kinds import MASKS
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.results import read_results, unpack
from mmpetl.own.defaults import scene_pipelines
from mmpetl.own.resampled import iou_interval, with_interval
from mmpetl.own.task import Task

FINEST = 4
"""Least stride of the maps that the head reads."""


class MaskTask(Task):
    """What is trained on: pictures with masks, see :class:`mmpetl.own.task.Task`."""

    kind: ClassVar[str] = MASKS
    recipe: ClassVar[str] = 'own/masks'
    channels: ClassVar[str] = 'bgr_to_rgb'

    def mask(self, path: str) -> Path:
        """The mask of a picture, as training reads it."""
        return self.data_folder / 'masks' / f'{path}.png'

    def write_data(self, read: Masks) -> None:
        """Write lists, masks of numbers and colours; masks that are there stay."""
        parts = self.splits.parts
        disk = AtomicLocalBackend()
        for part, entries in (
            ('train', [*parts['train'], *parts['val']]),
            ('test', parts['test']),
        ):
            text = ''.join(f'{entry.path}\n' for entry in entries)
            disk.put_text(text, self.data_folder / f'{part}.txt')
            for entry in entries:
                data = io.BytesIO()
                Image.fromarray(read.labels(entry.path)).save(data, 'PNG')
                path = self.mask(entry.path)
                if not path.is_file() or path.read_bytes() != data.getvalue():
                    disk.put(data.getvalue(), path)
        palette = read.palette or colours(len(self.splits.classes))
        disk.put_text(json.dumps(palette), self.data_folder / 'palette.json')

    @property
    def palette(self) -> list[list[int]]:
        """Colours of the classes."""
        return read_json(
            self.data_folder / 'palette.json', list[list[int]], 'list of colours'
        )

    def base_options(self, stage: str = 'final') -> dict[str, Any]:
        taken, levels, scales = self.trunk.levels(FINEST)
        side = [self.trunk.side, self.trunk.side]
        train, test = scene_pipelines(self.trunk, self.settings.augmentation, self.kind)
        names = self.splits.classes
        meta = {'classes': names, 'palette': self.palette}
        options = {
            **self.common_options(),
            'model.data_preprocessor.size': side,
            'model.data_preprocessor.test_cfg.size': side,
            'model.decode_head.in_channels': [one.width for one in levels],
            'model.decode_head.in_index': (
                list(range(len(levels))) if scales else taken
            ),
            'model.decode_head.num_classes': len(names),
        }
        if scales:
            options['model.neck.in_channels'] = self.trunk.maps[-1].width
            options['model.neck.scales'] = scales
        else:
            options['model.neck'] = None
        for part, steps in (('train', train), ('test', test)):
            data = {
                'ann_file': str((self.data_folder / f'{part}.txt').resolve()),
                'data_prefix.img_path': str(self.root.resolve()),
                'data_prefix.seg_map_path': str((self.data_folder / 'masks').resolve()),
                'metainfo': meta,
                'pipeline': steps,
            }
            options |= self.loader_options(part, data)
        return {**options, **self.options}

    def results_of_run(self, folder: Path) -> MaskResults:
        (kept,) = read_results(folder / 'results.json.gz').metrics
        return mask_results(self, [unpack(item) for item in kept.results])


@dataclass(frozen=True)
class MaskClass:
    """What became of one class.

    Attributes:
        name: Of the class.
        tested: Pixels of the test pictures that are of it.
        iou: Intersection over union, in [0, 1]; None where neither is there.
        found: Share of its pixels that were called so; None without any.
        right: Share of the pixels called so that are; None where none was.
        taken_for: The class that its pixels were most often taken for, and their share;
            None where none was mistaken.
    """

    name: str
    tested: int
    iou: float | None
    found: float | None
    right: float | None
    taken_for: tuple[str, float] | None

    @property
    def value(self) -> float | None:
        """What the class is ranked by."""
        return self.iou


@dataclass(frozen=True)
class MaskPicture:
    """What was said of one test picture.

    Attributes:
        path: Below the folder of the pictures.
        mask: File of its labels.
        said: Labels that were said, a PNG.
        pixels: That count.
        right: Of these, those that were called what they are.
    """

    path: str
    mask: Path
    said: bytes
    pixels: int
    right: int

    @property
    def words(self) -> str:
        """What is wrong with it."""
        return f'{100 * self.wrong:.1f} % of its pixels wrong'

    @property
    def wrong(self) -> float:
        """Share of its pixels that were called something else, in [0, 1]."""
        return 1 - self.right / self.pixels if self.pixels else 0.0


@dataclass(frozen=True)
class MaskResults:
    """What the test pictures say.

    Attributes:
        score: Mean of the classes' intersection over union (mIoU), in [0, 1].
        accuracy: Share of the pixels that were called what they are.
        classes: By label.
        pictures: In the order of the test pictures.
        palette: A colour for each class.
        interval: Of the score, over pictures; None of one picture.
    """

    score: float
    accuracy: float
    classes: list[MaskClass]
    pictures: list[MaskPicture]
    palette: list[list[int]]
    interval: Interval | None

    metric: ClassVar[str] = 'mIoU'

    @property
    def worst(self) -> list[MaskPicture]:
        """Pictures with wrong pixels, the most first."""
        wrong = [one for one in self.pictures if one.right < one.pixels]
        return sorted(wrong, key=lambda one: -one.wrong)

    def in_words(self) -> str:
        """The score in a line."""
        return (
            f'mIoU on {len(self.pictures):,} test pictures: '
            f'{with_interval(self.score, self.interval)}, {100 * self.accuracy:.1f} % '
            'of their pixels right'
        )

    def as_csv(self) -> str:
        """A line for each picture: path, pixels that count, and how many are right."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('path', 'pixels', 'right'))
        writer.writerows((one.path, one.pixels, one.right) for one in self.pictures)
        return text.getvalue()

    def drawn(
        self, root: Path, picture: MaskPicture, side: int
    ) -> tuple[Image.Image, Image.Image]:
        """A picture under what is there, and under what was said.

        Args:
            root: The folder that paths are below.
            picture: One of these.
            side: Longer side of what is drawn, px, at most.
        """
        names = [one.name for one in self.classes]
        truth, said = (
            with_segments(
                root / picture.path,
                Segmentation(_labels(file).astype(np.int64), names, self.palette),
            )
            for file in (picture.mask, io.BytesIO(picture.said))
        )
        for one in (truth, said):
            one.thumbnail((side, side))
        return truth, said


def mask_results(task: MaskTask, kept: list[dict[str, Any]]) -> MaskResults:
    """Count what was said of the test pictures.

    Args:
        task: Whose pictures these are.
        kept: What :class:`mmpetl.evaluation.LabelMaps` kept of each.

    Raises:
        PETLError: It is of other pictures or classes.
    """
    names, entries = task.splits.classes, task.splits.parts['test']
    shape = (len(names), len(names))
    if len(kept) != len(entries) or any(k['confusion'].shape != shape for k in kept):
        raise PETLError(
            f'the labels that were said are of {len(kept)} pictures, and the test '
            f'pictures are {len(entries)} in {len(names)} classes: they are not those '
            'of this work folder'
        )
    confusion = sum((one['confusion'] for one in kept), np.zeros(shape, np.int64))
    pictures = [
        MaskPicture(
            entry.path,
            task.mask(entry.path),
            one['labels'],
            int(one['confusion'].sum()),
            int(np.trace(one['confusion'])),
        )
        for entry, one in zip(entries, kept, strict=True)
    ]
    classes = [_of_class(names, label, confusion) for label in range(len(names))]
    known = [one.iou for one in classes if one.iou is not None]
    return MaskResults(
        float(np.mean(known)) if known else 0.0,
        float(np.trace(confusion) / max(1, confusion.sum())),
        classes,
        pictures,
        task.palette,
        iou_interval([one['confusion'] for one in kept]),
    )


def _labels(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def _of_class(names: list[str], label: int, confusion: np.ndarray) -> MaskClass:
    right = int(confusion[label, label])
    there, called = int(confusion[label].sum()), int(confusion[:, label].sum())
    union = there + called - right
    others = confusion[label].copy()
    others[label] = 0
    most = int(others.argmax())
    return MaskClass(
        names[label],
        there,
        right / union if union else None,
        right / there if there else None,
        right / called if called else None,
        (names[most], int(others[most]) / there) if others[most] else None,
    )
