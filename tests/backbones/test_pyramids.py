"""Pyramids: options against upstream, extra tokens, and life inside of a segmentor."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from tiny import loss_of, outputs, randomise_
from torch import nn

from mmpetl.core import Method, Role, eject, inject


class Everything(Method):
    """Trains the whole base, so that gradients can be compared."""

    def selects(self, role: Role) -> bool:
        return True


SIZES = [(32, 32), (38, 53)]

# What is built, and the options that change the algebra.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    'mmseg_mit:build': [
        {},
        {'qkv_bias': False},
        {'sr_ratios': (1, 1), 'out_indices': (1,)},
        {'sr_ratios': (3, 2), 'with_cp': True},
        {
            'patch_sizes': (4, 2),
            'norm_cfg': {'type': 'LN'},
            'act_cfg': {'type': 'ReLU'},
        },
    ],
    'mmdet_pvt:build': [
        {},
        {'use_abs_pos_embed': False, 'qkv_bias': False},
        {'pretrain_img_size': 64, 'norm_after_stage': True, 'sr_ratios': (3, 1)},
        {'use_conv_ffn': True, 'patch_sizes': (5, 3), 'paddings': (2, 1)},
        {'out_indices': (0,)},
    ],
    'mmdet_pvt:build_v2': [{}],
    'timm_pvt_v2:build': [
        {},
        {'num_classes': 0, 'qkv_bias': False},
        {'linear': True},
        {'global_pool': '', 'num_classes': 0, 'sr_ratios': (1, 3)},
    ],
    'mmseg_twins:build': [
        {},
        {'norm_after_stage': False, 'qkv_bias': False, 'windiow_sizes': [2, 5]},
        {'depths': [3, 1], 'out_indices': (1, 2)},
    ],
    'mmseg_twins:build_pcpvt': [{}, {'norm_after_stage': True, 'sr_ratios': [1, 3]}],
    'mmpretrain_twins:build': [
        {},
        {'out_indices': (0, 1), 'qkv_bias': False, 'norm_after_stage': True},
    ],
    'mmpretrain_twins:build_pcpvt': [{}, {'norm_after_stage': True}],
    'mmseg_mscan:build': [
        {},
        {'act_cfg': {'type': 'ReLU'}, 'mlp_ratios': [3, 1]},
    ],
}
CASES = [
    pytest.param(name, args, id=f'{name}-{"-".join(args) or "plain"}')
    for name, options in OPTIONS.items()
    for args in options
]


def build(name: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in float64 and eval mode."""
    stem, _, maker = name.partition(':')
    model = getattr(importlib.import_module(f'trunks.{stem}'), maker)(**args)
    randomise_(model).double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def drawn(size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, *size, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(('name', 'args'), CASES)
def test_options_agree_in_outputs_and_gradients(
    name: str, args: dict[str, Any]
) -> None:
    plain = build(name, **args)
    ours = inject(copy.deepcopy(plain), Everything())
    assert isinstance(ours, type(plain))
    assert type(ours).__name__ == f'PETL{type(plain).__name__}'
    for size in [(64, 64), (70, 85)] if 'v2' in name else SIZES:
        grads = []
        results = []
        for model in (plain, ours):
            x = drawn(size).requires_grad_()
            model.zero_grad()
            results.append(model(x))
            loss_of(outputs(lambda _, y=results[-1]: y, x)).backward()
            params = dict(model.named_parameters())
            grads.append({n: p.grad for n, p in params.items()} | {'': x.grad})
        assert type(results[0]) is type(results[1])
        ys, zs = (outputs(lambda _, y=y: y, None) for y in results)
        for y, z in zip(ys, zs, strict=True):
            assert y.is_contiguous() == z.is_contiguous()
            torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-10)
        assert grads[0].keys() == grads[1].keys()
        for key, grad in grads[0].items():
            if grad is None:
                assert grads[1][key] is None, key
            else:
                torch.testing.assert_close(
                    grads[1][key], grad, rtol=1e-8, atol=1e-9, msg=key
                )


@pytest.mark.parametrize('name', OPTIONS)
def test_stochastic_depth_is_that_of_the_original(name: str) -> None:
    """Both of those that stand one inside the other in Twins; batch statistics too."""
    plain = build(name, drop_path_rate=0.5)
    ours = inject(copy.deepcopy(plain), Everything(), frozen_drop_path=True)
    results = []
    for model in (plain, ours):
        model.train()
        torch.manual_seed(5)
        results.append(outputs(model, drawn((64, 64) if 'v2' in name else (32, 32))))
    for y, z in zip(*results, strict=True):
        torch.testing.assert_close(z, y, rtol=1e-9, atol=1e-9)
    plain.eval()
    still = outputs(plain, drawn((64, 64) if 'v2' in name else (32, 32)))
    assert not torch.allclose(still[-1], results[0][-1], atol=1e-3)


@pytest.mark.parametrize('name', OPTIONS)
def test_classes_come_back(name: str) -> None:
    model = build(name)
    before = {path: type(part) for path, part in model.named_modules()}
    inject(model, 'AdaptFormer')
    eject(model)
    assert {path: type(part) for path, part in model.named_modules()} == before
