"""What the test pictures say of a run: shares with intervals, confusions, mistakes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from mmpetl.core import PETLError
from mmpetl.datasets.own import Splits

LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """A share of so many pictures, with an interval.

    Attributes:
        right: Pictures that count.
        of: All of them.
        low: Lower end of the 95 % interval of Wilson, in [0, 1].
        high: Its upper end.
    """

    right: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.of


@dataclass(frozen=True)
class ClassResult:
    """What became of one class.

    Attributes:
        name: Of the class.
        trained: Pictures that were trained on.
        found: Of its test pictures, those that were called so; None without any.
        sure: Of the test pictures that were called so, those that are; None where none
            was.
        taken_for: The class that its pictures were most often taken for, and how often;
            None where none was mistaken.
    """

    name: str
    trained: int
    found: Share | None
    sure: Share | None
    taken_for: tuple[str, int] | None


@dataclass(frozen=True)
class Said:
    """What was said of one test picture.

    Attributes:
        path: Below the folder of the pictures.
        name: Its class.
        called: What it was called.
        score: Probability of that, in [0, 1].
    """

    path: str
    name: str
    called: str
    score: float


@dataclass(frozen=True)
class Results:
    """What the test pictures say.

    Attributes:
        accuracy: Over all test pictures.
        commonest: Share that always naming the commonest class of the training pictures
            would have.
        classes: By label.
        confusion: (C, C) counts: rows are classes, columns what they were called.
        pictures: What was said of each, in the order of the test pictures.
    """

    accuracy: Share
    commonest: float
    classes: list[ClassResult]
    confusion: np.ndarray
    pictures: list[Said]

    def in_words(self) -> str:
        """The accuracy in a line."""
        found = self.accuracy
        return (
            f'accuracy on {found.of:,} test pictures: {100 * found.value:.1f} % '
            f'({100 * found.low:.1f} to {100 * found.high:.1f})'
        )

    @property
    def mistakes(self) -> list[Said]:
        """The pictures that were called something else, the surest first."""
        wrong = [one for one in self.pictures if one.called != one.name]
        return sorted(wrong, key=lambda one: -one.score)

    def as_csv(self) -> str:
        """A line for each picture: path, label, called, score."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('path', 'label', 'called', 'score'))
        writer.writerows(
            (one.path, one.name, one.called, f'{one.score:.4f}')
            for one in self.pictures
        )
        return text.getvalue()


def results_of(splits: Splits, logits: np.ndarray, labels: np.ndarray) -> Results:
    """Count what a run has said of the test pictures.

    Args:
        splits: Which pictures these are.
        logits: (N, C), in the order of the test pictures.
        labels: (N,)

    Raises:
        PETLError: The predictions are of other pictures.
    """
    entries, names = splits.parts['test'], splits.classes
    if [entry.label for entry in entries] != labels.tolist() or (
        logits.shape != (len(labels), len(names))
    ):
        raise PETLError(
            f'the predictions are of {len(labels)} pictures in {logits.shape[1]} '
            f'classes, and the test pictures are {len(entries)} in {len(names)}: they '
            'are not those of this work folder'
        )
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    said = scores.argmax(1)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, said), 1)
    counts = splits.counts()
    trained = np.add(counts['train'], counts['val'])
    return Results(
        accuracy=share(int(np.trace(confusion)), len(labels)),
        commonest=float((labels == trained.argmax()).mean()),
        classes=[
            _of_class(names, label, int(trained[label]), confusion)
            for label in range(len(names))
        ],
        confusion=confusion,
        pictures=[
            Said(entry.path, names[entry.label], names[label], float(row[label]))
            for entry, label, row in zip(entries, said, scores, strict=True)
        ],
    )


def share(right: int, of: int) -> Share:
    """A share with the interval of Wilson (JASA 22, 1927, 209-212)."""
    found = binomtest(right, of).proportion_ci(LEVEL, method='wilson')
    return Share(right, of, float(found.low), float(found.high))


def _of_class(
    names: list[str], label: int, trained: int, confusion: np.ndarray
) -> ClassResult:
    right = int(confusion[label, label])
    there, called = int(confusion[label].sum()), int(confusion[:, label].sum())
    others = confusion[label].copy()
    others[label] = 0
    most = int(others.argmax())
    return ClassResult(
        names[label],
        trained,
        share(right, there) if there else None,
        share(right, called) if called else None,
        (names[most], int(others[most])) if others[most] else None,
    )
