from __future__ import annotations

import pytest
import tiny
import torch
from full_size import FULL_SIZE, counts
from torch import nn

import mmpetl
from mmpetl.methods.linear_probe import LinearProbe


@pytest.mark.parametrize('size', FULL_SIZE)
def test_no_parameter_of_the_backbone_trains(size: str) -> None:
    assert counts(size, 'LinearProbe').backbone == 0


def test_head_gradient_equals_that_of_cached_features(stem: str) -> None:
    backbone = mmpetl.inject(tiny.base(stem, torch.float64), LinearProbe())
    x = tiny.images(stem, dtype=torch.float64)
    model = tiny.Tuned(backbone, x)
    model.train()
    with torch.no_grad():
        cached = tiny.outputs(backbone, x)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.heads.parameters())))

    live = gradients(tiny.loss_of(model(x)))
    model.backbone = _Constant(cached)
    for a, b in zip(live, gradients(tiny.loss_of(model(x))), strict=True):
        assert torch.equal(a, b)


class _Constant(nn.Module):
    """Features that were computed before."""

    def __init__(self, features: list[torch.Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.features


def test_stochastic_depth_of_the_frozen_trunk_is_off_unless_asked_for() -> None:
    def build(**args: bool) -> nn.Module:
        model = tiny.randomise_(tiny.mmpretrain_swin(drop_path_rate=0.9))
        mmpetl.inject(model, LinearProbe(), **args)
        model.train()
        return model

    x = tiny.images('mmpretrain_swin_cls')
    still, moving = build(), build(frozen_drop_path=True)
    assert torch.equal(still(x)[0], still(x)[0])
    assert not torch.equal(moving(x)[0], moving(x)[0])


def test_a_new_norm_trains_with_the_head() -> None:
    model = tiny.base('mmaction_vit')
    mmpetl.inject(model, LinearProbe(), head=('fc_norm',))
    got = mmpetl.core.count_trainable(model)
    assert (got.backbone, got.head) == (0, 2 * 32)
    assert model.fc_norm.weight.requires_grad
