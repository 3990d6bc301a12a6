"""Detectors of a person's own things: the task, and what the test pictures say."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmpetl.apis.draw import colours, with_boxes
from mmpetl.apis.predict import Box
from mmpetl.benchmark.resampling import Interval
from mmpetl.core import PETLError
from mmpetl.datasets.annotations import read_coco
from mmpetl.datasets.own import Boxes
from mmpetl.datasets.own.kinds import BOXES
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.results import read_results, unpack
from mmpetl.own.defaults import scene_pipelines
from mmpetl.own.resampled import RESAMPLES, ap_interval, with_interval
from mmpetl.own.results import Share, share
from mmpetl.own.task import Task

FINEST = 8
"""Least stride of the maps that RetinaNet reads."""
FPN_WIDTH = 128
EXTRA = 2
"""Levels beyond the coarsest map, each half as fine."""
SURE = 0.3
"""Score from which on a thing counts as found in the counts by picture, as what
``mmpetl predict`` draws; mAP is over all scores."""
OVERLAP = 0.5
"""Intersection over union from which on a found thing is the one that is there."""


class BoxTask(Task):
    """What is trained on: pictures with boxes, see :class:`mmpetl.own.task.Task`."""

    kind: ClassVar[str] = BOXES
    recipe: ClassVar[str] = 'own/boxes'
    channels: ClassVar[str] = 'bgr_to_rgb'

    def ann_file(self, part: str) -> Path:
        """COCO file of what is trained on (``train``) or of the test (``test``)."""
        return self.data_folder / f'{part}.json'

    def write_data(self, read: Boxes) -> None:
        """Write both files; what is there already is not written again."""
        parts = self.splits.parts
        for part, entries in (
            ('train', [*parts['train'], *parts['val']]),
            ('test', parts['test']),
        ):
            text = json.dumps(read.as_coco(entry.path for entry in entries))
            path = self.ann_file(part)
            if not path.is_file() or path.read_text(encoding='utf-8') != text:
                AtomicLocalBackend().put_text(text, path)

    def base_options(self, stage: str = 'final') -> dict[str, Any]:
        taken, levels, scales = self.trunk.levels(FINEST)
        neck: list[dict[str, Any]] = []
        if scales:
            neck.append(
                {
                    'type': 'mmpetl.SimplePyramid',
                    'in_channels': self.trunk.maps[-1].width,
                    'scales': scales,
                }
            )
        neck.append(
            {
                'type': 'FPN',
                'in_channels': [one.width for one in levels],
                'out_channels': FPN_WIDTH,
                'start_level': 0,
                'add_extra_convs': 'on_input',
                'num_outs': len(levels) + EXTRA,
            }
        )
        if not scales and len(levels) < len(self.trunk.maps):
            # The finer maps are made, and left out.
            neck[-1]['in_channels'] = [one.width for one in self.trunk.maps]
            neck[-1]['start_level'] = taken[0]
        strides = [one.stride for one in levels]
        strides += [strides[-1] * 2**i for i in range(1, EXTRA + 1)]
        train, test = scene_pipelines(self.trunk, self.settings.augmentation, self.kind)
        names = self.splits.classes
        meta = {'classes': names, 'palette': colours(len(names))}
        options = {
            **self.common_options(),
            'model.data_preprocessor.pad_size_divisor': self.trunk.side,
            'model.neck': neck if len(neck) > 1 else {'_delete_': True, **neck[0]},
            'model.bbox_head.num_classes': len(names),
            'model.bbox_head.anchor_generator.strides': strides,
            'test_evaluator.ann_file': str(self.ann_file('test').resolve()),
        }
        for part, steps in (('train', train), ('test', test)):
            data = {
                'ann_file': str(self.ann_file(part).resolve()),
                'data_prefix.img': f'{self.root.resolve()}/',
                'metainfo': meta,
                'pipeline': steps,
            }
            options |= self.loader_options(part, data)
        return {**options, **self.options}

    def results_of_run(self, folder: Path) -> BoxResults:
        (kept,) = read_results(folder / 'results.json.gz').metrics
        found = (unpack(item)[1] for item in kept.results)
        return box_results(self, [box for picture in found for box in _said(picture)])


@dataclass(frozen=True)
class Said:
    """A box that was found, by the numbers of the test's COCO file.

    Attributes:
        image_id: Of its picture.
        category_id: Of its class.
        bbox: x and y of its upper left corner, width and height, px.
        score: In [0, 1].
    """

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def _said(picture: Mapping[str, Any]) -> Iterator[Said]:
    """Boxes of a picture, as mmdet's ``CocoMetric`` keeps them."""
    for label, (x0, y0, x1, y1), score in zip(
        picture['labels'].tolist(),
        picture['bboxes'].tolist(),
        picture['scores'].tolist(),
        strict=True,
    ):
        box = (x0, y0, x1 - x0, y1 - y0)
        yield Said(picture['img_id'], label + 1, box, score)


@dataclass(frozen=True)
class BoxClass:
    """What became of one class.

    Attributes:
        name: Of the class.
        trained: Boxes that were trained on.
        tested: Boxes of the test pictures.
        ap: Average precision over the overlaps 0.5 to 0.95, in [0, 1]; None where no
            test picture has such a box.
        ap50: At an overlap of 0.5.
        found: Of its test boxes, those that were found at a score of 0.3 or more.
        right: Of what was found so, those that are.
    """

    name: str
    trained: int
    tested: int
    ap: float | None
    ap50: float | None
    found: Share | None
    right: Share | None

    @property
    def value(self) -> float | None:
        """What the class is ranked by."""
        return self.ap


@dataclass(frozen=True)
class BoxPicture:
    """What was found in one test picture.

    Attributes:
        path: Below the folder of the pictures.
        truth: Boxes that are there; their score is NaN.
        said: Boxes that were found at a score of 0.3 or more, the surest first.
        missed: How many of the first have no counterpart among the second.
        extra: And the other way round.
    """

    path: str
    truth: list[Box]
    said: list[Box]
    missed: int
    extra: int

    @property
    def words(self) -> str:
        """What is wrong with it."""
        return f'{self.missed} of {len(self.truth)} missed, {self.extra} too many'


@dataclass(frozen=True)
class BoxResults:
    """What the test pictures say.

    Attributes:
        score: Mean of the classes' average precision (COCO's mAP), in [0, 1].
        ap50: The same at an overlap of 0.5.
        classes: By label.
        pictures: In the order of the test pictures.
        interval: Of the score, over pictures; None of one picture.
    """

    score: float
    ap50: float
    classes: list[BoxClass]
    pictures: list[BoxPicture]
    interval: Interval | None

    metric: ClassVar[str] = 'mAP'

    @property
    def boxes(self) -> int:
        """Boxes of the test pictures."""
        return sum(one.tested for one in self.classes)

    @property
    def worst(self) -> list[BoxPicture]:
        """Pictures with mistakes, the most first."""
        wrong = [one for one in self.pictures if one.missed + one.extra]
        return sorted(wrong, key=lambda one: -(one.missed + one.extra))

    def in_words(self) -> str:
        """The score in a line."""
        return (
            f'mAP on {len(self.pictures):,} test pictures with {self.boxes:,} boxes: '
            f'{with_interval(self.score, self.interval)}, {100 * self.ap50:.1f} % at '
            'an overlap of 0.5'
        )

    def as_csv(self) -> str:
        """A line for each picture: path, boxes there, found, missed, too many."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('path', 'boxes', 'found', 'missed', 'extra'))
        for one in self.pictures:
            writer.writerow(
                (one.path, len(one.truth), len(one.said), one.missed, one.extra)
            )
        return text.getvalue()

    @property
    def palette(self) -> list[list[int]]:
        """A colour for each class."""
        return colours(len(self.classes))

    def drawn(
        self, root: Path, picture: BoxPicture, side: int
    ) -> tuple[Image.Image, Image.Image]:
        """A picture with what is there, and with what was found.

        Args:
            root: The folder that paths are below.
            picture: One of these.
            side: Longer side of what is drawn, px.
        """
        path = root / picture.path
        truth, said = (
            with_boxes(path, boxes, self.palette, side)
            for boxes in (picture.truth, picture.said)
        )
        return truth, said


def box_results(task: BoxTask, said: list[Said]) -> BoxResults:
    """Score what was found in the test pictures.

    Raises:
        PETLError: It is of other pictures or classes.
    """
    truth = read_coco(task.ann_file('test'))
    trained = read_coco(task.ann_file('train'))
    names = task.splits.classes
    ids = {image.id for image in truth.images}
    if any(s.image_id not in ids or not 0 < s.category_id <= len(names) for s in said):
        raise PETLError(
            'the boxes that were found are of other pictures or classes than those of '
            'this work folder'
        )
    ap, ap50, spread = _average_precision(task.ann_file('test'), said, len(names))
    pictures, hits, called = [], np.zeros(len(names), int), np.zeros(len(names), int)
    marked, sures = defaultdict(list), defaultdict(list)
    for a in truth.annotations:
        marked[a.image_id].append((a.category_id - 1, a.bbox, bool(a.iscrowd)))
    for one in sorted(said, key=lambda s: -s.score):
        if one.score >= SURE:
            sures[one.image_id].append(one)
    for image in truth.images:
        there, sure = marked[image.id], sures[image.id]
        matched, counted = _matched(there, sure)
        for label, *_ in (there[i] for i in matched):
            hits[label] += 1
        for one in counted:
            called[one.category_id - 1] += 1
        real = [(label, box) for label, box, crowd in there if not crowd]
        pictures.append(
            BoxPicture(
                image.file_name,
                [_box(names, label, math.nan, box) for label, box in real],
                [_box(names, s.category_id - 1, s.score, s.bbox) for s in sure],
                len(real) - len(matched),
                len(counted) - len(matched),
            )
        )

    counts = [
        Counter(a.category_id for a in coco.annotations if not a.iscrowd)
        for coco in (trained, truth)
    ]
    classes = []
    for label, name in enumerate(names):
        seen, tested = (count[label + 1] for count in counts)
        hit = int(hits[label])
        classes.append(
            BoxClass(
                name,
                seen,
                tested,
                ap[label],
                ap50[label],
                share(hit, tested) if tested else None,
                share(hit, int(called[label])) if called[label] else None,
            )
        )
    return BoxResults(_mean(ap), _mean(ap50), classes, pictures, spread)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def _box(names: list[str], label: int, score: float, box: Any) -> Box:
    x, y, width, height = box
    return Box(label, names[label], score, (x, y, x + width, y + height))


def _average_precision(
    path: Path, said: list[Said], count: int
) -> tuple[list[float | None], list[float | None], Interval | None]:
    """Of each class over the overlaps 0.5 to 0.95, and at 0.5, as COCO counts it.

    And the interval of the mean of the first.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth = COCO(str(path))
        if not said:
            there = {a['category_id'] for a in truth.dataset['annotations']}
            none = [0.0 if i + 1 in there else None for i in range(count)]
            pictures = len(truth.imgs)
            nothing = Interval(0.0, 0.0, RESAMPLES) if pictures > 1 else None
            return none, none, nothing
        found = truth.loadRes([{**asdict(s), 'bbox': list(s.bbox)} for s in said])
        judged = COCOeval(truth, found, 'bbox')
        judged.evaluate()
        judged.accumulate()
    # (overlaps, recalls, classes, areas, most boxes); -1 where there is nothing.
    precision = judged.eval['precision'][:, :, :, 0, -1]

    def mean(values: np.ndarray) -> float | None:
        known = values[values > -1]
        return float(known.mean()) if known.size else None

    classes = range(count)
    return (
        [mean(precision[:, :, i]) for i in classes],
        [mean(precision[0, :, i]) for i in classes],
        ap_interval(judged),
    )


def _matched(
    there: list[tuple[int, tuple[float, ...], bool]], sure: list[Said]
) -> tuple[list[int], list[Said]]:
    """Places of the boxes that were found, and what was found and counts.

    The surest takes the box of its class that it overlaps most with, of those that are
    left. What lies in a crowd of its class counts neither way.
    """
    taken: list[int] = []
    counted = []
    for one in sure:
        overlaps = [
            (_overlap(box, one.bbox, crowd), not crowd, i)
            for i, (label, box, crowd) in enumerate(there)
            if label == one.category_id - 1 and i not in taken
        ]
        best = max((o for o in overlaps if o[1]), default=(0.0, True, -1))
        if best[0] >= OVERLAP:
            taken.append(best[2])
        elif any(value >= OVERLAP and not real for value, real, _ in overlaps):
            continue
        counted.append(one)
    return taken, counted


def _overlap(box: Any, other: Any, crowd: bool) -> float:
    """Intersection over union; with a crowd over the found box alone."""
    wide = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    high = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    common = max(0.0, wide) * max(0.0, high)
    area = other[2] * other[3]
    union = area if crowd else area + box[2] * box[3] - common
    return common / union if union > 0 else 0.0
