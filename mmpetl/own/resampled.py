"""Intervals of mIoU and mAP by the bootstrap over test pictures.

Percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13) of resamples in which a picture counts as often as it is drawn. The model
stays, so they say how much the choice of test pictures matters, and nothing of other
seeds. Of few pictures they are too narrow (ibid., section 14.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpetl.benchmark.resampling import SEED, Interval, interval

RESAMPLES = 1_000
CHUNK = 1 << 21
"""Numbers that are held at a time."""


def with_interval(score: float, found: Interval | None) -> str:
    """A score in [0, 1] in percent: ``81.5 % (78.0 to 84.9)``."""
    text = f'{100 * score:.1f} %'
    if found is None:
        return text
    return f'{text} ({100 * found.low:.1f} to {100 * found.high:.1f})'


def draws(pictures: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each picture is drawn: (resamples, pictures)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)


def iou_interval(confusions: Sequence[np.ndarray]) -> Interval | None:
    """Of the mean of the classes' intersection over union; None of one picture.

    Args:
        confusions: Per picture (C, C), pixels by true (row) and said (column) class.
    """
    if len(confusions) < 2:
        return None
    parts = np.array([(np.diag(c), c.sum(0) + c.sum(1)) for c in confusions], float)
    found = []
    for drawn in draws(len(confusions)):
        right, sides = np.tensordot(drawn, parts, 1)
        union = sides - right
        known = union > 0
        if known.any():
            found.append((right[known] / union[known]).mean())
    return interval(np.array(found)) if found else None


@dataclass(frozen=True)
class Matched:
    """What was found of one class, the surest first, as COCO has matched it.

    Attributes:
        picture: (D,) number of the picture of each box.
        right: (T, D) whether it is one that is there, by overlap.
        counts: (T, D) whether it counts at all: one in a crowd does not.
        there: (pictures,) boxes that are there.
    """

    picture: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    there: np.ndarray


def matched(judged: Any) -> Iterator[Matched]:
    """Of each class of a ``COCOeval`` whose ``evaluate()`` has run, of any size."""
    pictures, areas = len(judged.params.imgIds), len(judged.params.areaRng)
    overlaps = len(judged.params.iouThrs)
    for k in range(len(judged.params.catIds)):
        start = k * areas * pictures  # the first of the areas is all of them
        rows = judged.evalImgs[start : start + pictures]
        there = np.array(
            [0 if r is None else int((r['gtIgnore'] == 0).sum()) for r in rows]
        )
        found = [(i, r) for i, r in enumerate(rows) if r is not None]
        empty = np.zeros((overlaps, 0), bool)
        right = [np.asarray(r['dtMatches']) > 0 for _, r in found]
        ignored = [np.asarray(r['dtIgnore']).astype(bool) for _, r in found]
        scores = np.concatenate([[], *(r['dtScores'] for _, r in found)])
        number = [np.full(len(r['dtScores']), i) for i, r in found]
        order = np.argsort(-scores, kind='mergesort')
        counts = ~np.concatenate([empty, *ignored], 1)[:, order]
        yield Matched(
            np.concatenate([np.zeros(0, int), *number])[order],
            np.concatenate([empty, *right], 1)[:, order] & counts,
            counts,
            there,
        )


def average_precisions(
    found: Matched, drawn: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """Average precision over overlaps, of a class, for each resample; NaN of no box.

    A picture that is drawn twice gives each of its boxes twice, at the same score, so
    that what COCO's 101 points read off is the same as of a set with copies (but for
    boxes of one picture with one score, whose order COCO leaves open).

    Args:
        found: Of the class.
        drawn: (R, pictures), how often each counts.
        recalls: Points that precision is read at, ascending.
    """
    there = drawn @ found.there
    result = np.zeros(len(drawn))
    size = max(1, CHUNK // max(1, len(found.picture)))
    for start in range(0, len(drawn), size):
        part = slice(start, start + size)
        weights = drawn[part][:, found.picture].astype(float)
        alike = bool(found.counts.all())
        called = weights.cumsum(1) if alike else None
        for right, counts in zip(found.right, found.counts, strict=True):
            (at,) = np.nonzero(right)
            if not len(at):
                continue
            whole = (weights * counts).cumsum(1) if called is None else called
            hits = weights[:, at].cumsum(1)
            precision = hits / np.maximum(whole[:, at], 1)
            # The best at this recall or a higher one.
            precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            for row, n in enumerate(there[part]):
                if not n:
                    continue
                place = np.searchsorted(hits[row] / n, recalls)
                reached = place[place < len(at)]
                result[start + row] += precision[row, reached].sum()
    result /= len(found.right) * len(recalls)
    return np.where(there > 0, result, np.nan)


def ap_interval(judged: Any) -> Interval | None:
    """Of the mean of the classes' average precision; None of one picture.

    Args:
        judged: A ``COCOeval`` whose ``evaluate()`` has run.
    """
    pictures = len(judged.params.imgIds)
    if pictures < 2:
        return None
    drawn, recalls = draws(pictures), np.asarray(judged.params.recThrs)
    found = np.array(
        [average_precisions(one, drawn, recalls) for one in matched(judged)]
    )
    some = ~np.isnan(found).all(0)
    return interval(np.nanmean(found[:, some], 0)) if some.any() else None
