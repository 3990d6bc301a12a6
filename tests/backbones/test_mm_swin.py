"""SwinTransformer of mmdet and mmseg: options, and life inside of their models."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from tiny import Nothing, loss_of, randomise_
from torch import nn

from mmpetl.core import PETLError, eject, inject

PACKAGES = ('mmdet', 'mmseg')
OPTIONS: list[dict[str, Any]] = [
    {'patch_norm': False},
    {'qkv_bias': False},
    {'qk_scale': 0.3},
    {'use_abs_pos_embed': True},
    {'with_cp': True},
    {'out_indices': (1,)},
    {'out_indices': (0,)},
    {'act_cfg': {'type': 'ReLU'}, 'mlp_ratio': 2},
    {'patch_size': 2, 'strides': (2, 2)},
]


def build(package: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    made = randomise_(importlib.import_module(f'trunks.{package}_swin').build(**args))
    made.eval()
    return made


@pytest.mark.parametrize('args', OPTIONS, ids=str)
@pytest.mark.parametrize('package', PACKAGES)
def test_options_agree_in_outputs_and_gradients(
    package: str, args: dict[str, Any]
) -> None:
    plain = build(package, **args).double()
    plain.train()  # returns nothing upstream
    ours = inject(copy.deepcopy(plain), 'Full')
    size = (32, 32) if 'use_abs_pos_embed' in args else (30, 45)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    theirs, got = plain(x), ours(x)
    assert type(theirs) is type(got) is list
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-10)
    for outputs in (theirs, got):
        loss_of(outputs).backward()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
        else:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('package', PACKAGES)
def test_a_position_table_of_another_size_is_refused_in_one_line(package: str) -> None:
    model = inject(build(package, use_abs_pos_embed=True), Nothing())
    with pytest.raises(PETLError, match='set pretrain_img_size to the size'):
        model(torch.randn(1, 3, 48, 32))


@pytest.mark.parametrize('package', PACKAGES)
def test_strides_that_are_no_merging_by_two_are_refused(package: str) -> None:
    model = build(package, strides=(4, 1))
    with pytest.raises(PETLError, match='strides of the backbone'):
        inject(model, 'LoRA')


@pytest.mark.parametrize('package', PACKAGES)
def test_classes_keep_their_names_and_come_back(package: str) -> None:
    model = build(package)
    before = {name: type(part) for name, part in model.named_modules()}
    inject(model, 'LoRA')
    assert type(model).__name__ == 'PETLSwinTransformer'
    eject(model)
    assert {n: type(m) for n, m in model.named_modules()} == before
