"""A swapped backbone without any delta agrees with the original, option by option.

``test_every_trunk.py`` holds what every backbone must keep, in its plain form.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from tiny import Everything, Nothing, loss_of, outputs, randomise_
from torch import nn

from mmpetl.core import PETLError, find_injected, inject
from mmpetl.methods.lora import LoRA

IMAGE, VIDEO = (3, 32, 32), (3, 4, 32, 32)

# id: how it is built, its arguments, sizes of the input.
VARIANTS: dict[str, tuple[str, dict[str, Any], list[tuple[int, ...]]]] = {
    'vit': ('mmpretrain_vit', {}, [IMAGE, (3, 64, 64), (3, 40, 72), (3, 37, 50)]),
    'vit-raw': ('mmpretrain_vit', {'out_type': 'raw'}, [IMAGE, (3, 24, 40)]),
    'vit-featmap': (
        'mmpretrain_vit',
        {'out_type': 'featmap', 'out_indices': [0, 1]},
        [IMAGE, (3, 40, 24)],
    ),
    'vit-avg': (
        'mmpretrain_vit',
        {'out_type': 'avg_featmap', 'final_norm': False},
        [IMAGE],
    ),
    'vit-no-class-token': (
        'mmpretrain_vit',
        {'out_type': 'avg_featmap', 'with_cls_token': False},
        [IMAGE],
    ),
    'vit-layer-scale': ('mmpretrain_vit', {'layer_scale_init_value': 0.1}, [IMAGE]),
    'vit-pre-norm-quick-gelu': (
        'mmpretrain_vit',
        {
            'pre_norm': True,
            'norm_cfg': {'type': 'LN', 'eps': 1e-5},
            'layer_cfgs': {'act_cfg': {'type': 'mmpretrain.QuickGELU'}},
        },
        [IMAGE],
    ),
    'vit-no-qkv-bias': ('mmpretrain_vit', {'qkv_bias': False}, [IMAGE]),
    'vit-two-outputs': ('mmpretrain_vit', {'out_indices': [0, 1]}, [IMAGE]),
    'swin': (
        'mmpretrain_swin',
        {},
        # The last map is one window; padded on both axes; larger and odd.
        [IMAGE, (3, 38, 53), (3, 64, 48), (3, 41, 35)],
    ),
    'swin-dense': (
        'mmpretrain_swin_dense',
        {},
        # Smaller than a window in one axis, and in both.
        [IMAGE, (3, 38, 53), (3, 12, 40), (3, 9, 11)],
    ),
    'swin-abs-pos': (
        'mmpretrain_swin',
        {'use_abs_pos_embed': True},
        [IMAGE, (3, 48, 64)],
    ),
    'swin-after-downsample': (
        'mmpretrain_swin_dense',
        {'out_after_downsample': True},
        [IMAGE, (3, 38, 53)],
    ),
    'swin-no-patch-norm': (
        'mmpretrain_swin',
        {'patch_cfg': {'norm_cfg': None}},
        [IMAGE],
    ),
    'swin-layer-scale': (
        'mmpretrain_swin',
        {'stage_cfgs': {'block_cfgs': {'ffn_cfgs': {'layer_scale_init_value': 0.1}}}},
        [IMAGE],
    ),
    'swin-no-qkv-bias': (
        'mmpretrain_swin',
        {'stage_cfgs': {'block_cfgs': {'attn_cfgs': {'qkv_bias': False}}}},
        [IMAGE],
    ),
    'video-vit': ('mmaction_vit', {}, [VIDEO, (3, 4, 24, 40), (3, 4, 64, 64)]),
    'video-vit-features': (
        'mmaction_vit',
        {'return_feat_map': True},
        [VIDEO, (3, 4, 24, 40)],
    ),
    'video-vit-class-token': ('mmaction_vit', {'use_mean_pooling': False}, [VIDEO]),
    'video-vit-layer-scale': ('mmaction_vit', {'init_values': 0.1}, [VIDEO]),
    'video-vit-learnt-positions': (
        'mmaction_vit',
        {'use_learnable_pos_emb': True, 'qkv_bias': False},
        [VIDEO],
    ),
    'video-swin': (
        'mmaction_swin3d',
        {},
        # One window deep; padded on all axes; a map smaller than a window.
        [VIDEO, (3, 5, 38, 53), (3, 8, 64, 48), (3, 2, 12, 40)],
    ),
    'video-swin-two-outputs': (
        'mmaction_swin3d',
        {'out_indices': (0, 1)},
        [VIDEO, (3, 3, 38, 53)],
    ),
    'video-swin-after-downsample': (
        'mmaction_swin3d',
        {'out_indices': (0, 1), 'out_after_downsample': True},
        [VIDEO],
    ),
    'video-swin-no-norms': (
        'mmaction_swin3d',
        {'patch_norm': False, 'qkv_bias': False},
        [VIDEO],
    ),
    'timm': ('timm_vit', {}, [IMAGE]),
    'timm-pooled': ('timm_vit', {'global_pool': 'avg', 'init_values': 0.1}, [IMAGE]),
    'timm-fc-norm': ('timm_vit', {'global_pool': 'avg', 'fc_norm': True}, [IMAGE]),
    'timm-qk-norm': ('timm_vit', {'qk_norm': True}, [IMAGE]),
    'timm-registers': (
        'timm_vit',
        {'reg_tokens': 2, 'no_embed_class': True, 'pre_norm': True},
        [IMAGE],
    ),
    'timm-any-size': ('timm_vit', {'dynamic_img_size': True}, [IMAGE, (3, 40, 64)]),
    'timm-inside-mmpretrain': ('mmpretrain_timm', {}, [IMAGE]),
}
EXACT = ('vit', 'timm')


def _built(variant: str, **more: Any) -> nn.Module:
    build, args, _ = VARIANTS[variant]
    torch.manual_seed(0)
    model = randomise_(getattr(tiny, build)(**args, **more))
    model.eval()
    return model


def _input(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, *size, generator=g, dtype=torch.float64).to(dtype)


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    assert a.shape == b.shape
    return (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize('variant', VARIANTS)
@torch.no_grad()
def test_outputs_agree(variant: str) -> None:
    plain = _built(variant)
    swapped = inject(copy.deepcopy(plain), Nothing())
    assert type(find_injected(swapped)[0][1]).forward is not type(plain).forward or (
        variant.startswith('timm')  # there only forward_features is written anew
    )
    for size in VARIANTS[variant][2]:
        x = _input(size, torch.float32)
        for a, b in zip(outputs(swapped, x), outputs(plain, x), strict=True):
            assert a.dtype == b.dtype
            assert a.is_contiguous() == b.is_contiguous()
            if variant.startswith(EXACT):
                assert torch.equal(a, b), size
            else:
                assert _close(a, b, 1e-5), size


@pytest.mark.parametrize('variant', VARIANTS)
def test_gradients_agree(variant: str) -> None:
    plain = _built(variant).double()
    swapped = inject(copy.deepcopy(plain), Everything())
    for size in VARIANTS[variant][2][:2]:
        grads = []
        for model in (plain, swapped):
            x = _input(size, torch.float64).requires_grad_()
            model.zero_grad()
            loss_of(outputs(model, x)).backward()
            grads.append(
                {n: p.grad for n, p in model.named_parameters()} | {'': x.grad}
            )
        assert grads[0].keys() == grads[1].keys()
        scale = max(g.abs().max() for g in grads[0].values() if g is not None)
        for name, grad in grads[0].items():
            if grad is None:
                assert grads[1][name] is None, name
            else:
                assert (grads[1][name] - grad).abs().max() < 1e-9 * scale, name


@pytest.mark.parametrize(
    'variant', ['vit', 'swin', 'swin-dense', 'video-vit', 'video-swin', 'timm']
)
@torch.no_grad()
def test_stochastic_depth_is_that_of_the_original(variant: str) -> None:
    plain = _built(variant, drop_path_rate=0.5)
    plain.train()
    both = {
        'asked for': inject(copy.deepcopy(plain), Nothing(), frozen_drop_path=True),
        'off': inject(copy.deepcopy(plain), Nothing()),
    }
    x = _input(VARIANTS[variant][2][0], torch.float32)
    results = {}
    for name, model in {'plain': plain, **both}.items():
        model.train()
        torch.manual_seed(6)
        results[name] = outputs(model, x)
    plain.eval()
    results['no drop'] = outputs(plain, x)
    for a, b in (('asked for', 'plain'), ('off', 'no drop')):
        for y, z in zip(results[a], results[b], strict=True):
            assert _close(y, z, 1e-5), a
    assert not _close(results['plain'][-1], results['no drop'][-1], 1e-3)


@pytest.mark.parametrize('variant', ['vit', 'timm'])
@torch.no_grad()
def test_dropout_is_that_of_the_original(variant: str) -> None:
    more = {'drop_rate': 0.2}
    if variant == 'timm':
        more = {'proj_drop_rate': 0.2, 'attn_drop_rate': 0.2, 'pos_drop_rate': 0.2}
    plain = _built(variant, **more)
    swapped = inject(copy.deepcopy(plain), Everything())
    results = []
    for model in (plain, swapped):
        model.train()
        torch.manual_seed(6)
        results.append(outputs(model, _input(IMAGE, torch.float32))[0])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ('build', 'args', 'message'),
    [
        (
            'mmpretrain_vit',
            {'layer_cfgs': {'num_fcs': 3}},
            'layers.0.ffn has 3 linear layers',
        ),
        ('timm_vit', {'patch_drop_rate': 0.5}, 'patch_drop_rate=0'),
    ],
)
def test_variants_without_sites_are_refused(
    build: str, args: dict[str, Any], message: str
) -> None:
    model = getattr(tiny, build)(**args)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(PETLError, match=message):
        inject(model, LoRA(rank=2))
    assert [type(m) for m in model.modules()] == classes


def test_a_small_map_without_padding_is_one_clear_line() -> None:
    model = inject(tiny.mmpretrain_swin(), Nothing())
    with pytest.raises(PETLError, match='pad_small_map=True'):
        model(torch.randn(1, 3, 12, 12))


def test_attention_masks_are_refused_by_timm() -> None:
    model = inject(tiny.timm_vit(), Nothing())
    mask = torch.zeros(17, 17)
    with pytest.raises(PETLError, match='attn_mask'):
        model.forward_features(torch.randn(1, 3, 32, 32), attn_mask=mask)


def test_a_subclass_with_its_own_forward_is_refused() -> None:
    from mmpretrain.models import VisionTransformer

    class Other(VisionTransformer):
        pass

    model = tiny.mmpretrain_vit()
    model.__class__ = Other
    with pytest.raises(PETLError, match='is a subclass of'):
        inject(model, LoRA(rank=2))
