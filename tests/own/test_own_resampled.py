"""Intervals over pictures: pycocotools judges sets with copies, sums judge IoU."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmpetl.own.resampled import (
    ap_interval,
    average_precisions,
    draws,
    iou_interval,
    matched,
    with_interval,
)

CLASSES = (1, 2, 3)
"""The third is in no picture."""


def scenes() -> tuple[dict, list[dict]]:
    """Six pictures with boxes, a crowd among them, and what was found in them."""
    rng = np.random.default_rng(4)
    truth, said = [], []
    for image in range(1, 7):
        for n in range(3):
            x, y = rng.integers(0, 60, 2).tolist()
            box = [x, y, 20, 20]
            mark = {'id': len(truth) + 1, 'image_id': image, 'bbox': box, 'area': 400}
            crowd = int(image == 2 and n == 0)
            truth.append({**mark, 'category_id': 1 + n % 2, 'iscrowd': crowd})
            for shift in rng.integers(0, 9, 2).tolist():
                moved = [x + shift, y, 20, 20]
                kind = int(rng.integers(1, 3))
                said.append({'image_id': image, 'category_id': kind, 'bbox': moved})
    for one, place in zip(said, rng.permutation(len(said)), strict=True):
        one['score'] = float(place + 1) / 99  # no two are alike
    images = [{'id': i, 'width': 80, 'height': 80} for i in range(1, 7)]
    kinds = [{'id': i, 'name': str(i)} for i in CLASSES]
    return {'images': images, 'annotations': truth, 'categories': kinds}, said


def copies(truth: dict, said: list[dict], drawn: list[int]) -> tuple[dict, list[dict]]:
    """The set in which picture i stands ``drawn[i]`` times."""
    whole, found = {**truth, 'images': [], 'annotations': []}, []
    for place, times in enumerate(drawn):
        for _ in range(times):
            number = len(whole['images']) + 1
            whole['images'].append({**truth['images'][place], 'id': number})
            for rows, into in (
                (truth['annotations'], whole['annotations']),
                (said, found),
            ):
                into += [
                    {**row, 'image_id': number}
                    for row in rows
                    if row['image_id'] == place + 1
                ]
    for number, row in enumerate(whole['annotations'], 1):
        row['id'] = number
    return whole, found


def judged(truth: dict, said: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes([dict(row) for row in said]), 'bbox')
        judge.evaluate()
        judge.accumulate()
    return judge


def by_class(judge: COCOeval) -> list[float]:
    values = judge.eval['precision'][:, :, :, 0, -1]
    return [
        float(v[v > -1].mean()) if (v > -1).any() else np.nan
        for v in np.moveaxis(values, 2, 0)
    ]


@pytest.mark.parametrize(
    'drawn', [[1] * 6, [2, 0, 1, 3, 0, 0], [0, 3, 0, 0, 0, 3], [1, 1, 2, 0, 2, 0]]
)
def test_a_picture_that_is_drawn_twice_is_two_pictures_to_coco(drawn):
    truth, said = scenes()
    judge = judged(truth, said)
    found = [
        average_precisions(one, np.array([drawn]), judge.params.recThrs)[0]
        for one in matched(judge)
    ]
    expected = by_class(judged(*copies(truth, said, drawn)))
    assert np.isnan(expected[2])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0.02 < np.nanmean(found) < 0.98


def test_an_interval_of_boxes_is_of_these_means():
    truth, said = scenes()
    judge = judged(truth, said)
    found = ap_interval(judge)
    means = [
        np.nanmean(by_class(judged(*copies(truth, said, drawn.tolist()))))
        for drawn in draws(6, 40)
    ]
    inside = np.mean([found.low <= mean <= found.high for mean in means])
    assert found.low < np.nanmean(by_class(judge)) < found.high
    assert found.resamples == 1_000
    assert inside >= 0.85


def test_an_interval_of_two_pictures_lies_between_them():
    """Each is drawn twice in a quarter of the resamples, so the ends are theirs."""
    one = np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]])  # 8/10 and 10/12
    other = np.array([[3, 7, 0], [0, 10, 0], [0, 0, 0]])  # 3/10 and 10/17
    found = iou_interval([one, other])
    assert found.low == pytest.approx((3 / 10 + 10 / 17) / 2)
    assert found.high == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert iou_interval([one]) is None
    assert with_interval(0.5, found) == '50.0 % (44.4 to 81.7)'
    assert with_interval(0.5, None) == '50.0 %'
