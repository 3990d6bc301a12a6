"""A convolution of which only the bias trains."""

from __future__ import annotations

import torch
from torch import nn

from mmpetl.core.host import project


def test_bias_alone_gets_its_gradient_without_that_of_the_weight():
    conv = nn.Conv2d(3, 5, 4, stride=4).double()
    conv.weight.requires_grad_(False)
    x, grad = torch.randn(2, 3, 8, 12).double(), torch.randn(2, 5, 2, 3).double()
    y = project(conv, x)
    assert torch.equal(y, conv(x))
    (got,) = torch.autograd.grad(y, conv.bias, grad)
    (want,) = torch.autograd.grad(conv(x), conv.bias, grad)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_what_trains_otherwise_is_the_convolution_itself():
    conv, x = nn.Conv2d(3, 5, 4, stride=4), torch.randn(2, 3, 8, 8)
    assert type(project(conv, x).grad_fn).__name__ == 'ConvolutionBackward0'
    conv.requires_grad_(False)
    assert project(conv, x).grad_fn is None
