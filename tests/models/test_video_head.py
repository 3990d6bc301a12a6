"""The video head of AdaptFormer against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpetl.core import PETLError
from mmpetl.registry import MODELS


@pytest.fixture
def head():
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmaction'):
        built = MODELS.build(
            dict(type='mmpetl.BatchNormHead', num_classes=3, in_channels=4)
        )
    built.init_weights()
    return built


def test_features_are_whitened_per_channel_in_front_of_the_linear_layer(head):
    x = torch.randn(6, 4) * 5 + 2
    weight, bias = (p.detach().double().numpy() for p in head.fc_cls.parameters())
    features = x.double().numpy()
    mean, variance = features.mean(0), features.var(0)
    wanted = (features - mean) / np.sqrt(variance + 1e-6) @ weight.T + bias
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, atol=1e-5)
    # In testing, by the running statistics: a tenth of one step, unbiased variance.
    head.eval()
    mean, variance = 0.1 * mean, 0.9 + 0.1 * features.var(0, ddof=1)
    wanted = (features - mean) / np.sqrt(variance + 1e-6) @ weight.T + bias
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, atol=1e-5)


def test_the_norm_has_statistics_and_no_parameters(head):
    assert {n for n, _ in head.named_parameters()} == {'fc_cls.weight', 'fc_cls.bias'}
    assert {'norm.running_mean', 'norm.running_var'} <= set(head.state_dict())
    assert float(head.fc_cls.weight.detach().abs().max()) < 0.2
    assert not head.fc_cls.bias.any()


def test_one_clip_is_tested_and_not_trained_on(head):
    with pytest.raises(PETLError, match='two clips or more .* drop_last=True'):
        head(torch.randn(1, 4))
    assert head.eval()(torch.randn(1, 4)).shape == (1, 3)
