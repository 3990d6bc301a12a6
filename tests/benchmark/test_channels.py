"""In which order a run's model has got the channels of pictures."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmpetl.benchmark.run_facts import preprocessing_of
from mmpetl.benchmark.verify.checks import _preprocessing

STATS = {'mean': [1.0, 2.0, 3.0], 'std': [4.0, 5.0, 6.0]}


@pytest.mark.parametrize(
    ('scope', 'stats', 'order'),
    [
        ('mmpretrain', {'to_rgb': True}, 'RGB'),
        ('mmpretrain', {'to_rgb': False}, 'BGR'),
        ('mmdet', {'bgr_to_rgb': True}, 'RGB'),
        ('mmseg', {'rgb_to_bgr': True}, 'RGB'),  # of what is read as BGR
        ('mmdet', {}, 'BGR'),
        ('mmaction', {}, 'RGB'),  # decoders of clips give RGB
        ('mmaction', {'to_rgb': True}, 'BGR'),
    ],
)
@pytest.mark.parametrize('inside', [True, False])
def test_a_record_says_the_order(scope, stats, order, inside) -> None:
    node = {'data_preprocessor': {**STATS, **stats}}
    config = Config({'default_scope': scope, 'model': {}, 'train_dataloader': None})
    config.merge_from_dict({'model': node} if inside else node)
    found = preprocessing_of(config)
    assert found['channels'] == order
    assert found['normalisation'] == STATS


def test_a_record_that_says_no_order_is_not_falsified() -> None:
    config = Config({'model': {'data_preprocessor': {**STATS, 'to_rgb': True}}})
    new = preprocessing_of(config)
    old = {key: value for key, value in new.items() if key != 'channels'}
    for said in (old, new):
        record = SimpleNamespace(preprocessing=copy.copy(said))
        assert _preprocessing(record, config) == said
    wrong = SimpleNamespace(preprocessing={**new, 'channels': 'BGR'})
    assert _preprocessing(wrong, config) != wrong.preprocessing


def test_a_preset_has_its_own_order() -> None:
    config = Config({'model': {}, 'preprocessing': {'normalisation': 'half'}})
    assert preprocessing_of(config) == {'normalisation': 'half'}
