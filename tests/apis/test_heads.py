"""A recipe's head gets the width of the feature that a method hands over."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.apis import load_config
from mmpetl.config.heads import check_metrics
from mmpetl.core import PETLError

DIGITS = Path(__file__).parents[2] / 'configs/mini/digits.py'
HMDB51 = Path(__file__).parents[2] / 'configs/mini/hmdb51.py'


@pytest.mark.parametrize(
    ('method', 'width'),
    [
        ({'type': 'LoRA'}, 96),
        ({'type': 'VQT', 'num_tokens': 3}, 96 * (1 + 6 * 3)),
        ({'type': 'mmpetl.HST', 'dims': [12, 20], 'num_heads': [2, 4]}, 20),
    ],
)
def test_one_override_changes_the_method_and_its_head(method, width):
    config = load_config(DIGITS, {'model.backbone.method': method})
    assert config.model.head.in_channels == width


def test_heads_of_videos_follow_too():
    plain = load_config(HMDB51)
    depth, width = plain.model.backbone.backbone.depth, plain.model.cls_head.in_channels
    config = load_config(HMDB51, {'model.backbone.method': {'type': 'VQT'}})
    assert config.model.cls_head.in_channels == width * (1 + depth)


def test_what_the_backbone_cannot_serve_is_one_line():
    options = {'model.backbone.method': {'type': 'HST'}}
    with pytest.raises(PETLError, match='4 do not divide 6 blocks') as error:
        load_config(DIGITS, options)
    assert '\n' not in str(error.value)


def test_an_accuracy_of_more_places_than_classes_is_named_before_the_first_step():
    metric = {'type': 'Accuracy', 'topk': (1, 5)}
    config = Config(
        {
            'model': {'head': {'num_classes': 3}},
            'val_evaluator': [{'type': 'A'}, metric],
        }
    )
    check_metrics(config, ('test',))
    with pytest.raises(PETLError, match='first 5 places, and model.head has 3 classes'):
        check_metrics(config, ('test', 'val'))
    config.model.head.num_classes = 5
    check_metrics(config, ('val',))
