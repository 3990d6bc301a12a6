"""Layers of any model that have no room for a rank, or whose weight is made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpetl.core import PETLError, fold, inject


def gated() -> nn.Module:
    """A convolution and a gate over its channels of one channel."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1)
    )
    return nn.Sequential(model, nn.Flatten(), nn.LazyLinear(2))


def test_layers_too_narrow_for_a_rank_are_left_out_and_told() -> None:
    model = gated()
    model(torch.randn(1, 3, 8, 8))
    said = r'leaves out 2 layers that are too narrow for it \(0.2, 2\)'
    with pytest.warns(UserWarning, match=said):
        inject(model, {'type': 'LoRA', 'rank': 8})
    hosts = [
        n.partition('.petl')[0] for n, p in model.named_modules() if hasattr(p, 'A')
    ]
    assert hosts == ['0.0', '0.1']


def test_a_narrow_layer_that_is_named_is_refused() -> None:
    model = gated()
    model(torch.randn(1, 3, 8, 8))
    with pytest.raises(PETLError, match='narrowest projection'):
        inject(model, {'type': 'LoRA', 'rank': 8}, layers='0.*')


@pytest.mark.parametrize('kernel', [1, 3])
def test_convolutions_with_standardised_weights_take_lora(kernel: int) -> None:
    from mmcv.cnn.bricks.conv_ws import ConvWS2d

    conv = ConvWS2d(4, 6, kernel, stride=2, padding=kernel // 2)
    model = nn.Sequential(conv, nn.ReLU()).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.double)
    plain = conv(x)
    inject(model, {'type': 'LoRA', 'rank': 2})
    assert torch.equal(model[0](x), plain)
    lora = next(part for part in conv.modules() if hasattr(part, 'B'))
    nn.init.normal_(lora.B)
    weight = (lora.B @ lora.A).view(6, 4, kernel, kernel)
    branch = nn.functional.conv2d(x, weight, None, 2, kernel // 2)
    torch.testing.assert_close(model[0](x), plain + branch)
    with pytest.raises(PETLError, match='ConvWS2d with a forward pass of its own'):
        fold(model)
