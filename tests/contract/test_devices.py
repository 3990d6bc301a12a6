"""Every tensor of a pass lies where the features do, by a GPU that is made up.

Its tensors have a device and a shape and no numbers, so that no card is needed, and an
operation on two devices is refused as on a card.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from tiny import Pair, images, outputs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

slow = pytest.mark.slow


@contextmanager
def made_up() -> Iterator[FakeTensorMode]:
    """Where tensors of a GPU can be had without one."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def to_gpu(mode: FakeTensorMode, model: nn.Module) -> nn.Module:
    """What ``model.to('cuda')`` does."""

    def moved(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device='cuda')

    mode.allow_non_fake_inputs = True
    model = model._apply(moved)
    mode.allow_non_fake_inputs = False
    return model


def _cases() -> list:
    """Every method as it comes, on the plain trunk; the others are slow.

    Without ConvLoRA: how many maps an expert gets is a matter of numbers.
    """

    def is_brief(pair: Pair) -> bool:
        return pair.stem == tiny.HOSTS['plain'] and ':' not in pair.method.id

    return [
        pytest.param(pair, id=pair.id, marks=() if is_brief(pair) else slow)
        for pair in tiny.pairs()
        if pair.method.id != 'conv_lora'
    ]


@pytest.mark.parametrize('met', _cases())
def test_a_pass_stays_on_its_device(met: Pair) -> None:
    model, x = met.inject().train(), images(met.stem)
    shapes = [y.shape for y in outputs(model, x)]
    with made_up() as mode:
        ys = outputs(to_gpu(mode, model), torch.empty(x.shape, device='cuda'))
    assert [y.shape for y in ys] == shapes
    assert {y.device.type for y in ys} == {'cuda'}


def test_what_lies_elsewhere_is_refused() -> None:
    """The made-up GPU does what a card does."""
    with made_up(), pytest.raises(RuntimeError, match='two different devices'):
        torch.empty(2, device='cuda') + torch.empty(2)
