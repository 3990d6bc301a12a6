"""Swin of timm, Swin V2 of timm and mmpretrain: options and interfaces."""

from __future__ import annotations

import copy
import importlib
import itertools
from typing import Any

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from tiny import (
    Nothing,
    bare,
    count_trainable,
    loss_of,
    outputs,
    randomise_,
    record,
    shake_,
)
from torch import Tensor, nn

from mmpetl.core import PETLError, base_changes, eject, fold, inject

TIMM = ('timm_swin', 'timm_swin_v2')
TIMM_OPTIONS: list[dict[str, Any]] = [
    {'window_size': (2, 4)},
    {'window_size': [(4, 4), (2, 3)]},
    {'window_size': 8, 'always_partition': True},
    {'img_size': (16, 24), 'dynamic_img_size': False},
    {'img_size': (44, 60), 'dynamic_img_size': False, 'window_size': 3},
    {'img_size': 16},
    {'qkv_bias': False},
    {'mlp_ratio': 2.0},
    {'patch_size': 2},
    {'global_pool': 'max'},
    {'global_pool': 'catavgmax', 'num_classes': 0},
    {'global_pool': '', 'num_classes': 0},
    {'drop_path_rate': 0.6},
]
ONLY = {
    'timm_swin': [{'head_dim': 4}, {'head_dim': 12, 'mlp_ratio': (2.0, 3.0)}],
    'timm_swin_v2': [
        {'pretrained_window_sizes': (8, 4)},
        {'act_layer': 'relu', 'drop_path_rate': 0.5},
    ],
}
MM_OPTIONS: list[dict[str, Any]] = [
    {'drop_path_rate': 0.6},
    {'pad_small_map': False},
    {'window_size': [4, 2]},
    {'pretrained_window_sizes': [8, 4]},
    {'use_abs_pos_embed': True},
    {'use_abs_pos_embed': True, 'img_size': 48},
    {'with_cp': True},
    {'out_indices': (1,)},
    {'out_indices': (0,)},
    {'norm_cfg': None},
    {'patch_cfg': {'norm_cfg': None}},
    {'stage_cfgs': {'downsample_cfg': {'bias': True}}},
    {'stage_cfgs': {'downsample_cfg': {'norm_cfg': None, 'use_post_norm': True}}},
    {'stage_cfgs': {'block_cfgs': {'attn_cfgs': {'qkv_bias': False}}}},
    {'stage_cfgs': {'block_cfgs': {'ffn_cfgs': {'layer_scale_init_value': 0.3}}}},
    {'stage_cfgs': {'block_cfgs': {'ffn_ratio': 2, 'ffn_cfgs': {'ffn_drop': 0.0}}}},
]


def build(trunk: str, **args: Any) -> nn.Module:
    """A tiny one with drawn weights, in eval mode."""
    made = randomise_(importlib.import_module(f'trunks.{trunk}').build(**args))
    made.eval()
    return made


def check(plain: nn.Module, x: Tensor) -> None:
    """Outputs and gradients while all of it trains are those of the original."""
    plain.train()  # returns nothing upstream
    ours = inject(copy.deepcopy(plain), 'Full')
    ours.train()
    found = []
    for model in (plain, ours):
        torch.manual_seed(7)
        found.append(outputs(model, x))
        loss_of(found[-1]).backward()
    theirs, got = found
    torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-10)
    some = False
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert (q.grad is None) is (p.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-9, msg=name)
            some = True
    assert some


@pytest.mark.parametrize(
    ('trunk', 'args'),
    [(s, a) for s in TIMM for a in (*TIMM_OPTIONS, *ONLY[s])],
    ids=str,
)
def test_options_of_timm_agree(trunk: str, args: dict[str, Any]) -> None:
    fixed = args.get('dynamic_img_size') is False
    size = args['img_size'] if fixed else (28, 44)
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    check(build(trunk, **args).double(), x)


@pytest.mark.parametrize('args', MM_OPTIONS, ids=str)
def test_options_of_mmpretrain_agree(args: dict[str, Any]) -> None:
    size = (32, 32) if args.get('pad_small_map') is False else (30, 45)
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    check(build('mmpretrain_swin_v2', **args).double(), x)


def test_stochastic_depth_stands_where_upstream_has_it() -> None:
    """A sample whose attention is dropped gets the bias of the norm in mmpretrain."""
    x = torch.randn(64, 3, 16, 16)
    seen = {}
    for trunk in ('mmpretrain_swin_v2', 'timm_swin_v2'):
        model = inject(build(trunk, drop_path_rate=0.9), 'Full')
        model.train()
        block = next(m for n, m in model.named_modules() if n.endswith('1.blocks.1'))
        passed = []
        block.norm1.register_forward_hook(lambda m, a, y, p=passed: p.append(a[0]))
        outputs(model, x)
        seen[trunk] = passed[0].flatten(1).abs().amax(1).eq(0).sum()
    assert seen['mmpretrain_swin_v2'] > 32
    assert seen['timm_swin_v2'] == 0


@pytest.mark.parametrize('trunk', TIMM)
@pytest.mark.parametrize('method', ['LoRA', 'VPTDeep'])
@torch.no_grad()
def test_intermediates_are_those_of_upstream(trunk: str, method: str) -> None:
    x = torch.randn(2, 3, 44, 60)
    plain = build(trunk, depths=(2, 2, 2), num_heads=(2, 2, 4))
    model = inject(copy.deepcopy(plain), method)
    for norm, stop, only, indices in itertools.product(
        (False, True), (False, True), (False, True), (None, 1, [0, -2])
    ):
        args = {'norm': norm, 'stop_early': stop, 'intermediates_only': only}
        found = model.forward_intermediates(x, indices, **args)
        wanted = plain.forward_intermediates(x, indices, **args)
        assert type(found) is type(wanted)
        if not only:
            found, wanted = ([y, *ys] for y, ys in (found, wanted))
        assert [y.shape for y in found] == [y.shape for y in wanted]
        for y, z in zip(found, wanted, strict=True):
            assert y.is_contiguous() == z.is_contiguous()
            close = (y - z).abs().max() < 1e-5 * z.abs().max()
            assert close if method == 'LoRA' else not close


@pytest.mark.parametrize('trunk', TIMM)
def test_deltas_act_on_intermediates_and_learn(trunk: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = inject(build(trunk, num_classes=0), 'LoRA')
    model.set_grad_checkpointing()
    shake_(model)
    found = model.forward_intermediates(x, intermediates_only=True)
    with torch.no_grad():
        plain = build(trunk, num_classes=0).forward_intermediates(x)[1]
    assert all((y - z).abs().max() > 1e-3 for y, z in zip(found, plain, strict=True))
    loss_of(found).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('trunk', TIMM)
@torch.no_grad()
def test_features_and_head_apart(trunk: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    plain, model = bare(trunk), inject(build(trunk), 'LoRA')
    features = model.forward_features(x)
    torch.testing.assert_close(
        features, plain.forward_features(x), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(model.forward_head(features), model(x))
    pre = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.head.fc(pre), model(x))


@pytest.mark.parametrize('trunk', TIMM)
@torch.no_grad()
def test_features_only(trunk: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    wanted = build(trunk, features_only=True, feature_cls='getter', out_indices=(0, 1))
    assert type(wanted) is FeatureGetterNet
    net = copy.deepcopy(wanted)
    inject(net.model, 'LoRA')
    for y, z in zip(net(x), wanted(x), strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    shake_(net)
    assert all(
        (y - z).abs().max() > 1e-3 for y, z in zip(net(x), wanted(x), strict=True)
    )
    eject(net.model)
    assert all(map(torch.equal, net(x), wanted(x)))


@pytest.mark.parametrize('trunk', TIMM)
def test_what_would_move_the_sites_comes_before_injection(trunk: str) -> None:
    model = inject(build(trunk), 'LoRA')
    with pytest.raises(PETLError, match='prune before inject'):
        model.prune_intermediate_layers(1)
    with pytest.raises(PETLError, match='change global_pool before inject'):
        model.reset_classifier(7, 'max')
    with pytest.raises(PETLError, match='output_fmt is NCHW'):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt='NHWC')
    with pytest.raises(PETLError, match=r'patches of \(4, 4\) do not divide'):
        model(torch.randn(1, 3, 33, 32))
    fixed = inject(build(trunk, dynamic_img_size=False), 'LoRA')
    with pytest.raises(PETLError, match=r'takes images of \(32, 32\), got \(36, 32\)'):
        fixed(torch.randn(1, 3, 36, 32))


@pytest.mark.parametrize('trunk', TIMM)
@torch.no_grad()
def test_another_size_in_front_of_the_injection(trunk: str) -> None:
    plain = build(trunk, dynamic_img_size=False)
    plain.set_input_size((48, 64))
    model = inject(copy.deepcopy(plain), 'LoRA')
    windows = {s.window for s in record(model).sites if s.kind == 'attn'}
    assert windows == {b.window_size for s in plain.layers for b in s.blocks}
    x = torch.randn(2, 3, 48, 64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('trunk', TIMM)
def test_another_head_trains(trunk: str) -> None:
    plain = build(trunk, num_classes=0)
    model = inject(copy.deepcopy(plain), 'LoRA')
    model.reset_classifier(7)
    assert count_trainable(model).head == 7 * model.num_features + 7
    assert model.head.fc.weight.requires_grad
    assert base_changes(model) == []
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.head.fc(plain(x)))


@pytest.mark.parametrize('trunk', ['timm_swin_v2', 'mmpretrain_swin_v2'])
@torch.no_grad()
def test_a_shift_of_keys_is_no_fold_and_nothing_is_written(trunk: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = inject(build(trunk), 'SSF')
    shake_(model)
    tuned = outputs(model, x)
    with pytest.raises(PETLError, match='has no bias to fold a shift into'):
        fold(model)
    assert all(map(torch.equal, outputs(model, x), tuned))
    assert base_changes(model) == []


@pytest.mark.parametrize('trunk', ['timm_swin_v2', 'mmpretrain_swin_v2'])
@torch.no_grad()
def test_biases_and_tables_have_their_roles(trunk: str) -> None:
    model = inject(build(trunk), Nothing())
    roles = {role.name: role for role in record(model).site_map.roles(model)}
    ends = {name.rpartition('.')[2]: role for name, role in roles.items()}
    assert (ends['q_bias'].kind, ends['q_bias'].part) == ('projection', 'bias')
    assert ends['logit_scale'].kind == 'other'
    norms = [r for r in roles.values() if r.name.split('.')[-2].startswith('norm')]
    assert {r.kind for r in norms} == {'norm', 'final_norm'}


def test_frozen_stages_stay_frozen_and_deltas_train() -> None:
    model = inject(build('mmpretrain_swin_v2', frozen_stages=0), 'LoRA')
    model.train()
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any(n.startswith('stages.0') for n in trains)
    assert all('petl' in n.split('.') for n in trains)
    assert not model.stages[0].blocks[0].attn.training
    full = inject(build('mmpretrain_swin_v2', frozen_stages=0), 'Full')
    full.train()
    assert not any(p.requires_grad for p in full.stages[0].parameters())
    assert all(p.requires_grad for p in full.stages[1].parameters())


def test_a_builder_of_timm_as_it_comes() -> None:
    model = timm.create_model('swin_s3_tiny_224', num_classes=0).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = model(x)
        found = inject(model, 'LoRA')(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
