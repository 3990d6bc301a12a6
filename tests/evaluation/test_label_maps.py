"""Confusions of label maps."""

from __future__ import annotations

import numpy as np
import pytest

from mmpetl.core import PETLError
from mmpetl.evaluation.label_maps import confusion


def test_pixels_that_do_not_count_may_be_called_anything():
    truth = np.array([[0, 1], [255, 1]], np.uint8)
    said = np.array([[0, 0], [7, 1]])
    assert confusion(truth, said, 2).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    ('truth', 'said', 'line'),
    [
        ([0, 2], [0, 0], 'a label map holds the label 2, and the 2 classes are 0 to 1'),
        ([0, -1], [0, 0], 'a label map holds the label -1'),
        (
            [0, 0],
            [0, 2],
            'a prediction holds the label 2, and the 2 classes are 0 to 1',
        ),
        ([0, 1], [0, -1], 'a prediction holds the label -1'),
    ],
)
def test_a_label_of_no_class_is_named(truth, said, line):
    """Counted, it would be a pixel of another class."""
    with pytest.raises(PETLError, match=line):
        confusion(np.array(truth), np.array(said), 2)
