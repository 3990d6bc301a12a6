"""Accuracy within the classes that a test set holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpetl.core import PETLError
from mmpetl.evaluation import MaskedAccuracy
from mmpetl.evaluation.masked_accuracy import reindex, restrict


def evaluate(scores, labels, **kwargs):
    metric = MaskedAccuracy(**kwargs)
    for score, label in zip(scores, labels, strict=True):
        sample = dict(pred_score=score, gt_label=torch.tensor([label]))
        metric.process(None, [sample])
    return metric.evaluate(len(labels))


def test_other_classes_do_not_count():
    scores = torch.tensor([[9.0, 1.0, 8.0, 2.0], [0.0, 5.0, 9.0, 7.0]])
    # among 1 and 3: the first is taken for 3, the second too
    assert evaluate(scores, [3, 1], subset=(1, 3)) == {'accuracy/top1': 50.0}
    assert evaluate(scores, [3, 1], subset=(1, 3), topk=(1, 2)) == {
        'accuracy/top1': 50.0,
        'accuracy/top2': 100.0,
    }


def test_agrees_with_numpy_on_random_scores():
    rng = np.random.default_rng(0)
    scores, subset = rng.normal(size=(300, 50)), np.sort(rng.permutation(50)[:12])
    labels = rng.choice(subset, 300)
    expected = 100 * np.mean(subset[scores[:, subset].argmax(1)] == labels)
    found = evaluate(torch.from_numpy(scores), labels.tolist(), subset=subset.tolist())
    assert found['accuracy/top1'] == pytest.approx(expected)


def test_all_classes_are_plain_accuracy():
    scores = torch.eye(5)[[0, 1, 2, 2]]
    assert evaluate(scores, [0, 1, 2, 3], subset=range(5))['accuracy/top1'] == 75


def test_the_subset_comes_from_the_data_set():
    metric = MaskedAccuracy()
    metric.dataset_meta = dict(subset=(1, 2))
    score = torch.tensor([9.0, 1.0, 2.0])
    metric.process(None, [dict(pred_score=score, gt_label=torch.tensor([2]))])
    assert metric.evaluate(1) == {'accuracy/top1': 100.0}


@pytest.mark.parametrize(
    ('kwargs', 'label', 'message'),
    [
        (dict(), 0, "needs 'subset'"),
        (dict(subset=(0, 2)), 1, 'label 1 is none of the 2 classes kept'),
        (dict(subset=(0, 7)), 0, 'keeps class 7, the model has 3 outputs'),
        (dict(subset=(0, 2), topk=(5,)), 0, 'takes the best 5 of 2 classes'),
    ],
)
def test_what_does_not_fit_is_named(kwargs, label, message):
    with pytest.raises(PETLError, match=message):
        evaluate(torch.zeros(1, 3), [label], **kwargs)


def test_parts():
    scores = torch.arange(6.0).reshape(2, 3)
    assert restrict(scores, (2, 0)).tolist() == [[2, 0], [5, 3]]
    assert reindex(torch.tensor([4, 1]), (1, 4)).tolist() == [1, 0]


def test_reads_what_mmpretrains_classifiers_give():
    from mmengine.evaluator import Evaluator
    from mmpretrain import structures

    samples = [
        structures.DataSample().set_gt_label(label).set_pred_score(torch.tensor(score))
        for label, score in ((2, [0.5, 0.1, 0.4]), (1, [0.6, 0.3, 0.1]))
    ]
    evaluator = Evaluator(dict(type='mmpetl.MaskedAccuracy'))
    evaluator.dataset_meta = dict(subset=(1, 2))
    evaluator.process(samples)
    assert evaluator.evaluate(2) == {'accuracy/top1': 100.0}
