"""What is made of a model's scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmpetl.apis import predict


class Sample(dict):
    """Has ``get`` and ``keys``, as samples do."""


@pytest.mark.parametrize('average', [None, 'score', 'prob'])
def test_views_of_a_video_are_one_prediction(monkeypatch, tmp_path, average):
    """By hand: the mean of (0.9, 0.1) and (0.2, 0.8), given as logits of views."""
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    scores = {
        None: probabilities.log(),  # a row for each view
        'score': torch.tensor([0.55, 0.45]).log(),
        'prob': torch.tensor([0.55, 0.45]),
    }[average]
    monkeypatch.setattr(
        predict, '_predict', lambda model, data: Sample(pred_score=scores)
    )
    video = tmp_path / 'a.mp4'
    video.write_bytes(b'')
    model = SimpleNamespace(
        cls_head=SimpleNamespace(average_clips=average),
        dataset_meta={'classes': ['walk', 'run']},
        cfg=Config({}),
    )
    found = predict.predict_video(model, video)
    assert [item.name for item in found] == ['walk', 'run']
    assert [item.score for item in found] == pytest.approx([0.55, 0.45])
