"""Official files of every class that has a converter, against the other library.

Features are compared with timm's model of the same architecture, and states with what
the converters that upstream ships make of the same file.
"""

from __future__ import annotations

import re

import pytest
import timm
import torch
from official_files import (
    ARCH,
    MM,
    SEG,
    TIMM,
    eva02,
    grid,
    load,
    official_eva02,
    one_epsilon,
    randomised,
    renamed,
)
from small_weights import image, positions, timm_vit
from torch import nn

from mmpetl import compat

compat.install()

import mmdet.models.backbones as mmdet_backbones  # noqa: E402
import mmpretrain.models.backbones as mmpretrain_backbones  # noqa: E402
import mmseg.models.backbones as mmseg_backbones  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.pvt_v2 import PyramidVisionTransformerV2  # noqa: E402
from timm.models.resnet import Bottleneck, ResNet  # noqa: E402
from timm.models.swin_transformer_v2 import SwinTransformerV2  # noqa: E402
from timm.models.twins import Twins  # noqa: E402
from timm.models.vision_transformer_sam import VisionTransformerSAM  # noqa: E402

from mmpetl.models.weights import WeightsError, load_base_weights  # noqa: E402

# --- plain transformers -------------------------------------------------------------


def mmseg_vit(**kwargs):
    options = {**SEG, 'patch_bias': True, **kwargs}
    return mmseg_backbones.VisionTransformer(final_norm=True, **options)


def test_timm_vit_in_mmseg(tmp_path, same_features):
    reference = randomised(timm.models.VisionTransformer(**{**TIMM, 'num_classes': 5}))
    model = mmseg_vit()
    report = load(model, reference.state_dict(), tmp_path)
    assert report.layout == 'timm ViT'
    assert report.head_classes == 5
    expected = grid(reference.forward_features(image()), 1)
    same_features(model(image()), expected, 1e-5, 'timm ViT | mmseg ViT | timm')


def test_two_vits_for_mmseg(tmp_path):
    state = timm.models.VisionTransformer(**TIMM).state_dict()
    pair = {f'{side}.{k}': t for side in ('one', 'two') for k, t in state.items()}
    with pytest.raises(WeightsError, match="2 trunks .below 'one.' and 'two.'."):
        load(mmseg_vit(), pair, tmp_path)
    with pytest.raises(WeightsError, match="below '' and 'two.'.*as in 'two'"):
        load(mmseg_vit(), state | {f'two.{k}': state[k] for k in state}, tmp_path)


def test_google_npz_in_mmseg(tmp_path, same_features):
    import numpy as np
    from small_weights import google_arrays

    path = tmp_path / 'vit.npz'
    np.savez(path, **google_arrays())
    model = randomised(mmseg_vit(embed_dims=48, num_heads=4), 99)
    report = load_base_weights(model, path)
    assert report.layout == 'Google npz'
    other = timm_vit()
    load_base_weights(other, path)
    expected = grid(other.forward_features(image()), 1)
    same_features(model(image()), expected, 1e-5, 'npz | mmseg ViT | timm')


def test_deit_with_distillation(tmp_path, same_features):
    reference = randomised(VisionTransformerDistilled(**TIMM))
    model = mmpretrain_backbones.DistilledVisionTransformer(**MM)
    state = reference.state_dict()
    load(model, state, tmp_path)
    both = torch.stack(model(image())[-1], 1)
    expected = reference.forward_features(image())[:, :2]
    same_features(both, expected, 1e-5, 'DeiT 2 | mmpretrain | timm')
    other = VisionTransformerDistilled(**TIMM)
    report = load(other, renamed(state, (r'^norm\.', 'norm.')), tmp_path)
    assert report.layout == 'own names'
    same_features(
        other.forward_features(image())[:, :2],
        expected,
        0,
        'DeiT 2 | timm | timm',
    )


def test_deit3(tmp_path, same_features):
    vit = timm.models.VisionTransformer
    reference = randomised(vit(no_embed_class=True, init_values=1.0, **TIMM))
    for block in reference.blocks:
        # mmpretrain's class sends both sub-layers through one norm.
        block.norm2.load_state_dict(block.norm1.state_dict())
    state = renamed(reference.state_dict(), (r'\.ls([12])\.gamma', r'.gamma_\1'))
    expected = reference.forward_features(image())[:, 0]
    for names in (state, reference.state_dict()):
        model = mmpretrain_backbones.DeiT3(**MM)
        load(model, names, tmp_path)
        same_features(model(image()), expected, 1e-5, 'DeiT3 | mmpretrain | timm')
    other = vit(no_embed_class=True, init_values=1.0, **TIMM)
    load(other, state, tmp_path)
    same_features(
        other.forward_features(image())[:, 0], expected, 0, 'DeiT3 | timm | timm'
    )


def timm_beit(**kwargs):
    defaults = dict(TIMM, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)
    return randomised(Beit(**{**defaults, **kwargs}))


@pytest.mark.parametrize('shared', [False, True])
def test_beit(tmp_path, same_features, shared):
    kinds = dict(use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    reference = timm_beit(**kinds)
    state = reference.state_dict()
    tokens = reference.forward_features(image())

    model = mmseg_backbones.BEiT(qv_bias=True, init_values=0.1, **SEG)
    load(model, state, tmp_path)
    same_features(model(image()), grid(tokens, 1), 1e-5, 'BEiT | mmseg | timm')

    model = mmpretrain_backbones.BEiTViT(final_norm=False, **MM)
    report = load(model, state, tmp_path)
    assert report.layout == 'official BEiT or MAE'
    expected = reference.fc_norm(tokens[:, 1:].mean(1))
    same_features(model(image()), expected, 1e-5, 'BEiT | mmpretrain | timm')

    other = timm_beit()
    load(other, state, tmp_path)
    same_features(
        other.forward_features(image()), tokens, 1e-6, 'BEiT | timm Beit | timm'
    )


def test_mae_in_mmseg(tmp_path, same_features):
    """A file of pre-training has no layer scale and no relative positions."""
    reference = timm_vit(embed_dim=16, num_heads=2, mlp_ratio=2)
    model = one_epsilon(mmseg_backbones.MAE(init_values=1.0, **SEG))
    state = reference.state_dict() | {'mask_token': torch.zeros(1, 1, 16)}
    path = tmp_path / 'mae.pth'
    torch.save({'model': state}, path)
    model.eval()
    report = load_base_weights(model, path)
    reasons = dict(report.fresh)
    assert len(reasons) == 6
    assert 'starts at 0' in reasons['layers.0.attn.relative_position_bias_table']
    assert ('mask_token', 'mask token of pre-training') in report.dropped
    features = reference.blocks(reference._pos_embed(reference.patch_embed(image())))
    same_features(model(image()), grid(features, 1), 1e-5, 'MAE | mmseg | timm')


def test_eva02(tmp_path, same_features):
    reference = randomised(eva02())
    state = reference.state_dict()
    tokens = reference.forward_features(image())
    expected = reference.fc_norm(tokens[:, 1:].mean(1))
    official = official_eva02(state)
    assert 'blocks.0.attn.q_bias' in official
    for names in (state, official):
        model = mmpretrain_backbones.ViTEVA02(
            sub_ln=True,
            final_norm=False,
            out_type='avg_featmap',
            **MM,
        )
        load(model, names, tmp_path)
        # mmpretrain repeats the frequencies, the authors (and timm) interleave them.
        model.rope.freqs_sin, model.rope.freqs_cos = reference.rope.get_embed().chunk(
            2, dim=-1
        )
        same_features(model(image()), expected, 1e-5, 'EVA-02 | mmpretrain | timm')
    other = eva02()
    report = load(other, official, tmp_path)
    assert 'timm' in report.layout
    same_features(
        other.forward_features(image()), tokens, 0, 'EVA-02 | timm Eva | timm'
    )


def test_what_the_filter_of_timm_resamples(tmp_path):
    """Tables are reported; another patch size is refused, as it is everywhere."""
    state = official_eva02(randomised(eva02(img_size=64)).state_dict())
    report = load(eva02(), state, tmp_path)
    assert report.resized == (('pos_embed', (1, 65, 16), (1, 17, 16)),)
    state['pos_embed'][:, 1:] = positions((8, 8), 16)
    report = load(eva02(img_size=(32, 128)), state, tmp_path)
    assert report.resized == (('pos_embed', (1, 65, 16), (1, 65, 16)),)
    state = official_eva02(eva02(img_size=64, patch_size=16).state_dict())
    with pytest.raises(WeightsError, match='patch size 16 x 16 in the file, 8 x 8 in'):
        load(eva02(), state, tmp_path)
    distilled = VisionTransformerDistilled(**{**TIMM, 'img_size': 64, 'patch_size': 16})
    with pytest.raises(WeightsError, match='patch size 16 x 16 in the file, 8 x 8 in'):
        load(VisionTransformerDistilled(**TIMM), distilled.state_dict(), tmp_path)


def test_dinov3(tmp_path, same_features):
    def eva():
        return Eva(
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type='dinov3',
            num_reg_tokens=2,
            init_values=1.0,
            use_fc_norm=False,
            qkv_bias=True,
            **TIMM,
        )

    reference = randomised(eva())
    state = renamed(
        reference.state_dict(),
        (r'^reg_token$', 'storage_tokens'),
        (r'\.gamma_([12])$', r'.ls\1.gamma'),
    )
    for block in ('blocks.0.attn.', 'blocks.1.attn.'):
        query, value = state.pop(f'{block}q_bias'), state.pop(f'{block}v_bias')
        state[f'{block}qkv.bias'] = torch.cat([query, torch.zeros(16), value])
        state[f'{block}qkv.bias_mask'] = torch.ones(48)
    state['rope_embed.periods'] = torch.ones(2)
    state['mask_token'] = torch.zeros(1, 16)
    expected = reference.forward_features(image())
    for prefix in ('', 'teacher.backbone.'):
        model = eva()
        report = load(model, {prefix + k: t for k, t in state.items()}, tmp_path)
        assert not report.fresh
        same_features(
            model.forward_features(image()), expected, 1e-6, 'DINOv3 | timm Eva | timm'
        )


def test_sam(tmp_path, same_features):
    sizes = dict(img_size=64, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    options = dict(mlp_ratio=2, num_classes=0, use_rel_pos=True, window_size=4)
    options |= dict(global_attn_indexes=(1,), neck_chans=8, **sizes)
    reference = randomised(VisionTransformerSAM(**options))
    official = renamed(
        reference.state_dict(), (r'\.mlp\.fc', '.mlp.lin'), (r'^', 'image_encoder.')
    )
    official['prompt_encoder.not_a_point_embed.weight'] = torch.zeros(1, 8)
    arch = dict(ARCH, global_attn_indexes=[1])
    model = mmpretrain_backbones.ViTSAM(
        arch=arch,
        img_size=64,
        patch_size=8,
        window_size=4,
        use_rel_pos=True,
        out_channels=8,
    )
    load(model, official, tmp_path)
    expected = reference.forward_features(image(64))
    same_features(model(image(64)), expected, 1e-4, 'SAM | mmpretrain | timm')
    other = VisionTransformerSAM(**options)
    load(other, official, tmp_path)
    same_features(
        other.forward_features(image(64)), expected, 0, 'SAM | timm SAM | timm'
    )


def test_swin_v2(tmp_path, same_features):
    sizes = dict(embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 2))
    reference = randomised(
        SwinTransformerV2(img_size=64, window_size=4, num_classes=0, **sizes)
    )
    arch = dict(
        embed_dims=8,
        depths=[2, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        extra_norm_every_n_blocks=0,
    )
    state = reference.state_dict()
    official = {}
    for name, tensor in state.items():
        stage = re.match(r'layers\.(\d)\.downsample', name)
        if stage:
            name = name.replace(stage[0], f'layers.{int(stage[1]) - 1}.downsample')
        official[name] = tensor
        if name.endswith('attn.logit_scale'):
            stem = name.removesuffix('logit_scale')
            official[f'{stem}relative_coords_table'] = torch.zeros(1, 7, 7, 2)
            official[f'{stem}relative_position_index'] = torch.zeros(16, 16).long()
    expected = reference.forward_features(image(64)).permute(0, 3, 1, 2)
    for names in (state, official):
        model = mmpretrain_backbones.SwinTransformerV2(
            arch=arch, img_size=64, window_size=[4, 4, 4, 2]
        )
        load(model, names, tmp_path)
        same_features(model(image(64)), expected, 1e-4, 'Swin v2 | mmpretrain | timm')
    other = SwinTransformerV2(img_size=64, window_size=4, num_classes=0, **sizes)
    load(other, official, tmp_path)
    ours = other.eval().forward_features(image(64)).permute(0, 3, 1, 2)
    same_features(ours, expected, 0, 'Swin v2 | timm | timm')


# --- pyramids -----------------------------------------------------------------------


def test_pvt_v2(tmp_path, same_features):
    reference = randomised(
        PyramidVisionTransformerV2(
            embed_dims=(8, 16, 16, 16),
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 2, 2),
            mlp_ratios=(2, 2, 2, 2),
            num_classes=0,
        )
    )
    state = reference.state_dict()
    official = {}
    for name, tensor in renamed(state, (r'\.dwconv\.', '.dwconv.dwconv.')).items():
        if match := re.match(r'stages\.(\d)\.(blocks|downsample|norm)', name):
            kind = dict(blocks='block', downsample='patch_embed', norm='norm')
            name = name.replace(match[0], f'{kind[match[2]]}{int(match[1]) + 1}')
        official[name.replace('patch_embed.', 'patch_embed1.')] = tensor
    expected = reference.forward_features(image(64))
    for names in (state, official):
        model = mmdet_pvt_v2()
        load(model, names, tmp_path)
        same_features(model(image(64))[-1], expected, 1e-5, 'PVTv2 | mmdet | timm')
    other = PyramidVisionTransformerV2(
        embed_dims=(8, 16, 16, 16),
        depths=(1, 2, 1, 1),
        num_heads=(1, 2, 2, 2),
        mlp_ratios=(2, 2, 2, 2),
        num_classes=0,
    )
    load(other, official, tmp_path)
    same_features(other.forward_features(image(64)), expected, 0, 'PVTv2 | timm | timm')


def mmdet_pvt_v2():
    return mmdet_backbones.PyramidVisionTransformerV2(
        embed_dims=8,
        num_layers=[1, 2, 1, 1],
        num_heads=[1, 2, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    )


@pytest.mark.parametrize('kind', ['PCPVT', 'SVT'])
def test_twins(tmp_path, same_features, kind):
    sizes = dict(
        embed_dims=[8, 16, 16, 16],
        num_heads=[1, 2, 2, 2],
        depths=[2, 2, 1, 2],
        mlp_ratios=[2, 2, 2, 2],
        sr_ratios=[8, 4, 2, 1],
    )
    windows = [4, 4, 4, 2]
    local = dict(wss=windows) if kind == 'SVT' else {}
    reference = randomised(Twins(img_size=128, num_classes=0, **local, **sizes))
    state = reference.state_dict()
    assert any('attn.qkv' in name for name in state) == (kind == 'SVT')
    expected = grid(reference.forward_features(image(128)), 0)
    reference.norm = nn.Identity()
    plain = grid(reference.forward_features(image(128)), 0)
    common = dict(
        patch_sizes=[4, 2, 2, 2], strides=[4, 2, 2, 2], out_indices=(3,), qkv_bias=True
    )
    local = dict(windiow_sizes=windows) if kind == 'SVT' else {}
    model = getattr(mmseg_backbones, kind)(
        norm_after_stage=False, **common, **local, **sizes
    )
    report = load(model, state, tmp_path)
    assert [reason for _, reason in report.dropped] == 2 * [
        'norm behind a stage, on one side alone'
    ]
    same_features(model(image(128))[-1], plain, 1e-5, f'{kind} | mmseg | timm')
    local = dict(window_sizes=windows) if kind == 'SVT' else {}
    arch = dict(sizes, patch_sizes=[4, 2, 2, 2], strides=[4, 2, 2, 2], **local)
    model = getattr(mmpretrain_backbones, kind)(
        arch=arch,
        norm_after_stage=[False, False, False, True],
        qkv_bias=True,
    )
    load(model, state, tmp_path)
    same_features(model(image(128)), expected, 1e-5, f'{kind} | mmpretrain | timm')


# --- ConvNets -----------------------------------------------------------------------


@pytest.mark.parametrize('v2', [False, True])
@pytest.mark.parametrize('linear', [False, True])
def test_convnext(tmp_path, same_features, v2, linear):
    options = dict(use_grn=True, ls_init_value=None) if v2 else {}
    sizes = dict(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16))
    reference = randomised(ConvNeXt(num_classes=7, **options, **sizes))
    state = reference.state_dict()
    official = renamed(
        state,
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
        (r'\.blocks\.', '.'),
        (r'conv_dw', 'dwconv'),
        (r'mlp\.fc', 'pwconv'),
        (r'mlp\.grn\.weight', 'grn.gamma'),
        (r'mlp\.grn\.bias', 'grn.beta'),
        (r'^head\.norm', 'norm'),
        (r'^head\.fc', 'head'),
    )
    for name in official:
        if '.grn.' in name:
            official[name] = official[name].reshape(1, 1, 1, -1)
        if 'pwconv' in name and official[name].dim() == 4:
            official[name] = official[name].flatten(1)
    arch = dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16])
    features = reference.forward_features(image(64))
    expected = reference.head.norm(features.mean((-2, -1), keepdim=True)).flatten(1)
    options = dict(use_grn=True, layer_scale_init_value=0.0) if v2 else {}
    for names in (state, official):
        model = mmpretrain_backbones.ConvNeXt(
            arch=arch, linear_pw_conv=linear, out_indices=[2, 3], **options
        )
        report = load(model, names, tmp_path)
        assert [name for name, _ in report.fresh] == ['norm2.weight', 'norm2.bias']
        same_features(model(image(64)), expected, 1e-5, 'ConvNeXt | mmpretrain | timm')
    options = dict(use_grn=True, ls_init_value=None) if v2 else {}
    other = ConvNeXt(num_classes=7, **options, **sizes)
    load(other, official, tmp_path)
    same_features(
        other.eval().forward_features(image(64)), features, 0, 'ConvNeXt | timm | timm'
    )


@pytest.mark.parametrize(
    ('package', 'deep_stem'),
    [
        (mmpretrain_backbones, False),
        (mmpretrain_backbones, True),
        (mmdet_backbones, True),
        (mmseg_backbones, True),
    ],
)
def test_resnet(tmp_path, same_features, package, deep_stem):
    options = dict(stem_type='deep', stem_width=32, avg_down=True) if deep_stem else {}
    reference = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, **options)
    reference = randomised(reference)
    for name, buffer in reference.named_buffers():
        if name.endswith('running_var'):
            buffer.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
        elif name.endswith('running_mean'):
            buffer.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))

    class Small(package.ResNet):
        arch_settings = {50: (package.ResNet.arch_settings[50][0], (1, 1, 1, 1))}

    model = Small(depth=50, deep_stem=deep_stem, avg_down=deep_stem, out_indices=(3,))
    report = load(model, reference.state_dict(), tmp_path)
    assert report.head_classes == 4
    assert ('fc.weight', 'head') in report.dropped
    expected = reference.forward_features(image(64))
    tolerance = 1e-4 * expected.abs().max().item()
    same_features(model(image(64)), expected, tolerance, 'ResNet | OpenMMLab | timm')
