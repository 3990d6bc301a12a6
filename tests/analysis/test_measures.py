"""Calibration, detection and costs against values that others compute."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmpetl.analysis import costs, measures
from mmpetl.core import PETLError


def logits_for(confidences, classes=3):
    """Logits whose largest probability is as given, at class 0."""
    rows = []
    for top in confidences:
        rest = (1 - top) / (classes - 1)
        rows.append([math.log(top), *[math.log(rest)] * (classes - 1)])
    return np.array(rows)


def test_ece_by_hand():
    # Two bins of five: (0.6, 0.8] holds 0.7, 0.8 with one right; (0.8, 1] holds 0.9,
    # 0.95 with both right. ECE = 2/4 |0.5 - 0.75| + 2/4 |1 - 0.925| = 0.1625.
    logits = logits_for([0.7, 0.8 - 1e-9, 0.9, 0.95])
    labels = np.array([0, 1, 0, 0])
    found = measures.reliability(logits, labels, 5)
    assert found.count.tolist() == [0, 0, 0, 2, 2]
    assert found.ece == pytest.approx(0.1625, abs=1e-8)
    assert found.accuracy[3] == 0.5
    assert np.isnan(found.accuracy[0])


def test_ece_as_a_loop_over_bins_has_it():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(500, 7)) * 3
    labels = draw.integers(0, 7, 500)
    scores = torch.softmax(torch.from_numpy(logits), 1)
    top, guess = scores.max(1)
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        there = (top > low) & (top <= high)
        if there.any():
            right = (guess[there] == torch.from_numpy(labels)[there]).double().mean()
            gap = (right - top[there].mean()).abs()
            total += float(gap * there.double().mean())
    found = measures.reliability(logits, labels)
    assert found.ece == pytest.approx(total, abs=1e-9)
    assert found.count.sum() == 500
    assert measures.reliability(logits, labels, 1).ece == pytest.approx(
        abs(float((guess.numpy() == labels).mean() - top.mean())), abs=1e-9
    )


def test_the_temperature_that_made_the_labels_is_found():
    draw = np.random.default_rng(1)
    logits = draw.normal(size=(20_000, 4)) * 2
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (scores.cumsum(1) < draw.random((len(scores), 1))).sum(1)
    assert measures.fit_temperature(logits * 2.5, labels) == pytest.approx(
        2.5, rel=0.05
    )
    before = measures.reliability(logits * 2.5, labels).ece
    assert measures.reliability(logits, labels).ece < before / 5


def test_likelihood_and_brier_are_those_of_torch_and_sklearn():
    from sklearn.metrics import brier_score_loss, log_loss

    draw = np.random.default_rng(2)
    logits = draw.normal(size=(50, 2))
    labels = draw.integers(0, 2, 50)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = measures.negative_log_likelihood(logits, labels)
    assert found == pytest.approx(log_loss(labels, scores))
    one = brier_score_loss(labels, scores[:, 1])
    assert measures.brier(logits, labels) == pytest.approx(2 * one)


def test_auroc_counts_pairs_and_halves_ties():
    known, strange = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    # Six pairs: 3>2, 3>0, 2=2, 2>0, 1<2, 1>0 make 4.5 of 6.
    assert measures.auroc(known, strange) == pytest.approx(0.75)
    assert measures.auroc(strange, known) == pytest.approx(0.25)


def test_the_rate_at_95_is_that_of_the_curve_of_sklearn():
    from sklearn.metrics import roc_curve

    draw = np.random.default_rng(3)
    known, strange = draw.normal(1, 1, 400), draw.normal(0, 1, 300)
    truth = np.r_[np.ones(400), np.zeros(300)]
    false, true, _ = roc_curve(truth, np.r_[known, strange], drop_intermediate=False)
    wanted = false[np.argmax(true >= 0.95)]
    assert measures.false_positive_rate(known, strange) == pytest.approx(wanted)
    # Twenty known: one may fail, so the threshold is the second lowest.
    known = np.arange(20.0)
    assert measures.false_positive_rate(known, np.array([0.5, 1.0, 2.0])) == (
        pytest.approx(2 / 3)
    )


def test_scores_are_high_where_the_model_knows():
    logits = np.array([[10.0, 0.0], [0.1, 0.0]])
    assert measures.max_softmax(logits)[0] > measures.max_softmax(logits)[1]
    assert measures.energy(logits) == pytest.approx(
        torch.logsumexp(torch.from_numpy(logits), 1).numpy()
    )


def test_no_sample_has_no_reliability():
    with pytest.raises(PETLError, match='0 samples'):
        measures.reliability(np.zeros((0, 3)), np.zeros(0, np.int64))


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_operations_of_attention_are_counted(device):
    """4 d^2 products of projections, 2 N d of scores and values, two FLOPs each."""
    n, d, heads, batch = 9, 16, 4, 2
    with torch.device(device):
        layer = nn.Linear(d, 3 * d)
        out = nn.Linear(d, d)
        x = torch.zeros(batch, n, d)

    def attend():
        q, k, v = layer(x).unflatten(-1, (3, heads, d // heads)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return out(y.transpose(1, 2).flatten(2))

    with torch.no_grad():
        found = costs.flops_of(attend)
    assert found == 2 * batch * n * (4 * d * d + 2 * n * d)


def test_operations_of_the_backward_pass_follow_what_trains():
    x = torch.zeros(5, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    forward = 2 * 2 * 5 * 8 * 8
    step = costs.flops_of(lambda: model(x).sum().backward())
    # Weights of both, and the input of the second.
    assert step == forward + 3 * 2 * 5 * 8 * 8
    model[0].requires_grad_(False)
    assert costs.flops_of(lambda: model(x).sum().backward()) == (
        forward + 2 * 5 * 8 * 8
    )


def test_the_fast_path_of_torch_is_counted_as_the_slow_one():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.zeros(1, 4, 16)
    with torch.no_grad():
        found = costs.flops_of(lambda: layer(x))
    assert found == 2 * 4 * (4 * 16 * 16 + 2 * 4 * 16 + 2 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()


def test_energy_is_that_of_the_meter(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, 'RAPL', str(tmp_path))
    assert costs.energy_of(lambda: None, 0.01) is None
    meter = tmp_path / 'intel-rapl:0' / 'energy_uj'
    meter.parent.mkdir()
    meter.write_text('0')
    part = tmp_path / 'intel-rapl:0:1' / 'energy_uj'
    part.parent.mkdir()
    part.write_text('999')
    count = 0

    def compute():
        nonlocal count
        count += 1
        meter.write_text(str(count * 3_000_000))

    assert costs.energy_of(compute, 0.01) == pytest.approx(3.0)


def test_latencies_are_medians_by_turns():
    order = []
    found = costs.latencies([lambda: order.append(0), lambda: order.append(1)], 3, 1)
    assert order == [0, 1] * 4
    assert len(found) == 2
    assert all(t >= 0 for t in found)
