"""Every variant of a described class computes the same after injection, or is refused.

Variants come from upstream's own builders and from every constructor argument that
changes the forward pass.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.layers import Attention, GatedMlp, RmsNorm, SimpleNorm
from timm.models import vision_transformer as upstream
from tiny import outputs, randomise_
from torch import nn

from mmpetl.core import PETLError, base_changes, fold, inject

SIZES = ('img_size', 'patch_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio')
SMALL = {'img_size': 32, 'patch_size': 16, 'embed_dim': 32, 'depth': 2, 'num_heads': 2}


def refused(model: nn.Module, method: Any = 'LoRA') -> str:
    """The one line that refuses a model; it is as it was."""
    before = [type(part) for part in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(PETLError) as error:
        inject(model, method)
    assert '\n' not in str(error.value)
    assert [type(part) for part in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == flags
    return str(error.value)


@torch.no_grad()
def agrees(plain: nn.Module, x: torch.Tensor, method: Any = 'LoRA') -> None:
    """A method at zero leaves the outputs as they are."""
    randomise_(plain).eval()
    model = inject(copy.deepcopy(plain), method)
    for a, b in zip(outputs(model, x), outputs(plain, x), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-5 * (1 + b.abs().max())


def builders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One builder for each set of options that timm's ViTs are built with."""
    found = {}
    with monkeypatch.context() as patch:
        # Builders then give the options instead of a model.
        patch.setattr(
            upstream,
            '_create_vision_transformer',
            lambda variant, pretrained=False, **args: args,
        )
        for name in timm.list_models(module='vision_transformer'):
            args = timm.models.model_entrypoint(name)()
            options = sorted((k, repr(v)) for k, v in args.items() if k not in SIZES)
            found.setdefault(tuple(options), name)
    return list(found.values())


REFUSED = {
    '_dpwee_': "by name: layers='blocks.*.in_proj'",
    '_dlittle_': "by name: layers='blocks.*.attn.qkv'",
    '_18x2_': "by name: layers='blocks.*.attns.*.attn.qkv'",
}
"""Part of a builder's name, and what is said of it; all others work."""


def test_every_builder_of_timm_works_or_is_refused_in_one_line(monkeypatch) -> None:
    met = set()
    for name in builders(monkeypatch):
        model = timm.create_model(name, **SMALL, num_classes=3)
        why = next((k for k in REFUSED if k in name), None)
        if why is None:
            agrees(model, torch.randn(2, 3, 32, 32))
        else:
            met.add(why)
            assert REFUSED[why] in refused(model), name
    assert met == REFUSED.keys()


class Subclass(upstream.VisionTransformer):
    """A class whose forward pass may be another."""


def test_subclasses_are_refused() -> None:
    assert 'is a subclass of timm.VisionTransformer' in refused(Subclass(**SMALL))


class Gated(Attention):
    """Another attention under a class of its own."""


class Another(upstream.Block):
    """Another block under a class of its own."""


no_affine = partial(nn.LayerNorm, elementwise_affine=False)
TIMM: list[dict[str, Any]] = [
    {'norm_layer': RmsNorm, 'qk_norm': True, 'scale_mlp_norm': True},
    {'norm_layer': SimpleNorm},
    {'norm_layer': nn.RMSNorm},
    {'norm_layer': no_affine},
    {'pos_embed': 'none'},
    {'pos_embed': 'none', 'dynamic_img_size': True},
    {'class_token': False, 'global_pool': 'avg'},
    {'class_token': False, 'global_pool': 'map'},
    {'class_token': False, 'global_pool': 'avg', 'reg_tokens': 3},
    {'global_pool': 'prr'},
    {'global_pool': 'max'},
    {'global_pool': 'avgmax'},
    {'global_pool': 'avg', 'pool_include_prefix': True},
    {'global_pool': ''},
    {'global_pool': '', 'fc_norm': True},
    {'fc_norm': True},
    {'final_norm': False},
    {'final_norm': False, 'global_pool': 'avg'},
    {'reg_tokens': 2, 'no_embed_class': True, 'dynamic_img_size': True},
    {'pre_norm': True, 'qkv_bias': False, 'proj_bias': False},
    {'init_values': 0.1, 'act_layer': 'quick_gelu', 'fix_init': True},
    {'embed_norm_layer': nn.LayerNorm},
    {'embed_norm_layer': nn.LayerNorm, 'dynamic_img_size': True},
    {'num_classes': 0, 'drop_rate': 0.1, 'proj_drop_rate': 0.1},
]
NOT_TIMM: list[tuple[dict[str, Any], str]] = [
    ({'attn_layer': 'diff'}, 'attn is a timm.DiffAttention, which'),
    ({'attn_layer': Gated}, 'attn is a test_variants.Gated;'),
    ({'mlp_layer': GatedMlp}, 'mlp is a timm.GatedMlp;'),
    ({'patch_drop_rate': 0.1}, 'patch_drop_rate=0'),
    ({'block_fn': Another}, 'is a test_variants.Another;'),
]


@pytest.mark.parametrize('args', TIMM, ids=str)
def test_options_of_timm(args: dict[str, Any]) -> None:
    size = (40, 24) if args.get('dynamic_img_size') else (32, 32)
    agrees(tiny.timm_vit(**args), torch.randn(2, 3, *size))


@pytest.mark.parametrize(('args', 'said'), NOT_TIMM, ids=str)
def test_options_of_timm_without_sites(args: dict[str, Any], said: str) -> None:
    assert said in refused(tiny.timm_vit(**args))


@pytest.mark.parametrize('init', ['magnitude', 'random'])
@pytest.mark.parametrize('norm', [RmsNorm, nn.RMSNorm, SimpleNorm])
def test_a_ladder_stands_beside_norms_without_bias(norm: type, init: str) -> None:
    plain = randomise_(tiny.timm_vit(norm_layer=norm))
    method = {'type': 'LST', 'reduction': 2, 'init': init}
    model = inject(copy.deepcopy(plain), method)
    side = model.blocks[0].petl.block['0'].block.norm1
    assert torch.equal(side.bias, torch.zeros(16))
    if init == 'magnitude':
        kept = [w in plain.blocks[0].norm1.weight for w in side.weight]
        assert all(kept)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert side.weight.grad is not None


def test_a_ladder_beside_norms_without_weights_is_refused() -> None:
    said = refused(tiny.timm_vit(norm_layer=no_affine), {'type': 'LST', 'reduction': 2})
    assert 'blocks.0:norm1 is no affine map with weights' in said


def cfg(**args: Any) -> dict[str, Any]:
    """Options of each block of a Swin."""
    return {'stage_cfgs': {'block_cfgs': args}}


def merging(**args: Any) -> dict[str, Any]:
    """Options of the patch mergings of a Swin."""
    return {'stage_cfgs': {'downsample_cfg': args}}


OPENMMLAB: list[tuple[str, dict[str, Any]]] = [
    ('mmpretrain_vit', {'patch_cfg': {'padding': 1}}),
    ('mmpretrain_vit', {'patch_cfg': {'padding': 'same', 'stride': 4}}),
    ('mmpretrain_vit', {'patch_cfg': {'norm_cfg': {'type': 'LN'}, 'bias': False}}),
    ('mmpretrain_vit', {'out_type': 'avg_featmap', 'out_indices': [0, 1]}),
    ('mmpretrain_vit', {'out_type': 'avg_featmap', 'out_indices': [0]}),
    ('mmpretrain_vit', {'out_indices': [1, 2]}),
    ('mmpretrain_vit', {'layer_cfgs': {'act_cfg': {'type': 'ReLU'}}}),
    ('mmpretrain_vit', {'layer_cfgs': {'ffn_type': 'swiglu_fused'}}),
    ('mmpretrain_swin', merging(bias=True, out_channels=48)),
    ('mmpretrain_swin', merging(padding='same')),
    ('mmpretrain_swin', merging(padding=0)),
    ('mmpretrain_swin', cfg(window_size=2)),
    ('mmpretrain_swin', cfg(shift=True, attn_cfgs={'shift_size': 1})),
    ('mmpretrain_swin', {'norm_cfg': None, 'patch_cfg': {'stride': 2}}),
    ('mmpretrain_swin', merging(norm_cfg=None)),
    ('mmpretrain_swin', cfg(attn_cfgs={'qk_scale': 0.5})),
    ('mmaction_vit', {'qk_scale': 0.5}),
    ('mmaction_swin3d', {'qk_scale': 0.5}),
    ('mmaction_vit', {'tubelet_size': 1, 'patch_size': 16}),
    ('mmaction_vit', {'use_mean_pooling': False, 'return_feat_map': True}),
    ('mmaction_swin3d', {'window_size': (4, 2, 2), 'act_cfg': {'type': 'ReLU'}}),
]
NOT_OPENMMLAB: list[tuple[str, dict[str, Any], str]] = [
    ('mmpretrain_vit', {'layer_cfgs': {'num_fcs': 3}}, 'ffn has 3 linear layers'),
    ('mmpretrain_vit', {'patch_cfg': {'dilation': 2}}, 'projection is dilated'),
    (
        'mmpretrain_vit',
        {'patch_cfg': {'conv_type': 'ConvWS'}},
        'projection is a mmcv.ConvWS2d;',
    ),
    ('mmpretrain_swin', {'patch_cfg': {'dilation': 2}}, 'projection is dilated'),
    ('mmpretrain_swin', cfg(ffn_cfgs={'num_fcs': 3}), 'ffn has 3 linear layers'),
    ('mmpretrain_swin', cfg(ffn_cfgs={'add_identity': False}), 'add_identity=False'),
    ('mmpretrain_swin', merging(kernel_size=3, stride=2), 'merging of 2 x 2'),
    ('mmpretrain_swin', merging(dilation=2), 'merging of 2 x 2'),
    ('mmpretrain_swin', merging(padding=1), 'merging of 2 x 2'),
]


@pytest.mark.parametrize(('build', 'args'), OPENMMLAB, ids=str)
def test_options_of_openmmlab(build: str, args: dict[str, Any]) -> None:
    agrees(getattr(tiny, build)(**args), tiny.images(build))


@pytest.mark.parametrize(('build', 'args', 'said'), NOT_OPENMMLAB, ids=str)
def test_options_of_openmmlab_without_sites(
    build: str, args: dict[str, Any], said: str
) -> None:
    assert said in refused(getattr(tiny, build)(**args))


@pytest.mark.parametrize(
    'trunk',
    [
        'mmaction_swin3d',
        'mmdet_pvt',
        'mmdet_swin',
        'mmpretrain_svt',
        'mmpretrain_swin',
        'mmpretrain_swin_v2',
        'mmseg_mit',
        'mmseg_svt',
        'mmseg_swin',
    ],
)
def test_outputs_that_count_from_the_end_are_refused(trunk: str) -> None:
    """Upstream compares stages with these numbers, and leaves out such an output."""
    model = tiny.TINY[trunk].build(out_indices=(0, -1))
    assert 'out_indices (0, -1) count from the end' in refused(model)


def test_a_shortcut_of_values_is_refused() -> None:
    model = tiny.mmpretrain_vit()
    model.layers[1].attn.v_shortcut = True
    assert 'layers.1.attn has a shortcut of values' in refused(model)


@pytest.mark.parametrize(
    'args', [{'qkv_bias': False}, {'norm_layer': RmsNorm}, {'pre_norm': True}], ids=str
)
def test_a_fold_that_fails_changes_nothing(args: dict[str, Any]) -> None:
    model = inject(tiny.timm_vit(**args), 'SSF')
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(PETLError, match='has no bias to fold a shift into'):
        fold(model)
    assert base_changes(model) == []
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
