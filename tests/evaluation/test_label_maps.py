"""Confusions of label maps."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.evaluation.label_maps import LabelMaps, confusion


@pytest.mark.parametrize('count', [256, 300])
def test_labels_are_kept_as_they_were_said(count):
    metric = LabelMaps(ignore_index=count)
    metric.dataset_meta = {'classes': list(map(str, range(count)))}
    said = torch.tensor([[[0, count - 1]]])
    sample = {'pred_sem_seg': {'data': said}, 'gt_sem_seg': {'data': said}}
    metric.process(None, [sample])
    kept = np.asarray(Image.open(io.BytesIO(metric.results[0]['labels'])))
    assert kept.tolist() == said[0].tolist()
    assert metric.compute_metrics(metric.results)['aAcc'] == 100


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
