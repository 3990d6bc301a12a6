"""ConvNeXt of mmpretrain and timm: options against upstream's own forward pass."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from tiny import loss_of, outputs, randomise_, shake_
from torch import nn

from mmpetl.core import PETLError, eject, fold, inject

MM: list[dict[str, Any]] = [
    {'linear_pw_conv': False},
    {'use_grn': True},
    {'use_grn': True, 'linear_pw_conv': False},
    {'with_cp': True},
    {'gap_before_final_norm': True},
    {'out_indices': [0]},
]
TIMM: list[dict[str, Any]] = [
    {'conv_mlp': True},
    {'use_grn': True},
    {'conv_mlp': True, 'use_grn': True},
    {'head_norm_first': True},
    {'head_norm_first': True, 'num_classes': 0},
    {'head_hidden_size': 24},
    {'num_classes': 0},
    {'global_pool': '', 'num_classes': 0},
    {'stem_type': 'overlap_tiered'},
    {'conv_bias': False},
    {'norm_layer': 'rmsnorm'},
    {'output_stride': 16, 'dims': (16, 16, 32, 32)},
]
CASES = [('mmpretrain', args) for args in MM] + [('timm', args) for args in TIMM]


def build(package: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    made = randomise_(
        importlib.import_module(f'trunks.{package}_convnext').build(**args)
    )
    made.eval()
    return made


@pytest.mark.parametrize(('package', 'args'), CASES, ids=str)
def test_options_agree_in_outputs_and_gradients(
    package: str, args: dict[str, Any]
) -> None:
    plain = build(package, **args).double()
    if args.get('output_stride') == 16:
        with pytest.raises(PETLError, match='knows Conv2d there'):
            inject(plain, 'LoRA')
        return
    ours = inject(copy.deepcopy(plain), 'Full')
    x = torch.randn(2, 3, 70, 85, dtype=torch.float64)
    theirs, got = outputs(plain, x), outputs(ours, x)
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-10)
    for ys in (theirs, got):
        loss_of(ys).backward()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        grads = [torch.zeros(()) if t.grad is None else t.grad for t in (p, q)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize('norm', [False, True])
def test_intermediates_are_those_of_upstream(norm: bool) -> None:
    plain = build('timm', head_norm_first=True)
    ours = inject(copy.deepcopy(plain), 'LoRA')
    x = torch.randn(2, 3, 64, 64)
    for args in ({}, {'indices': 2}, {'indices': [0, 1], 'stop_early': True}):
        theirs = plain.forward_intermediates(x, norm=norm, **args)
        got = ours.forward_intermediates(x, norm=norm, **args)
        torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ours.forward_features(x), plain.forward_features(x), rtol=1e-4, atol=1e-4
    )


def test_lora_acts_in_the_feed_forward_network_and_folds_there() -> None:
    model = inject(build('timm').double(), {'type': 'LoRA', 'rank': 2})
    shake_(model)
    block = model.stages[1].blocks[0]
    assert set(block.petl._modules) == {'ffn_fc1', 'ffn_fc2'}
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    tuned = model(x)
    fold(model)
    assert type(model).__name__ == 'ConvNeXt'
    torch.testing.assert_close(model(x), tuned, rtol=1e-9, atol=1e-9)


def test_prompts_are_refused_with_the_reason() -> None:
    model = build('mmpretrain')
    with pytest.raises(PETLError, match='extra tokens have no place'):
        inject(model, 'VPTDeep')
    with pytest.raises(PETLError, match='a convolutional trunk has no attention'):
        inject(model, {'type': 'LoRA', 'targets': ['attn.qkv']})
    assert type(model).__name__ == 'ConvNeXt'
    eject(inject(model, 'LoRA'))
