"""Base weights: official formats give the features of the reference."""

from __future__ import annotations

import argparse
import hashlib
import re

import mmpretrain.models as mmpretrain
import numpy as np
import pytest
import timm
import torch
from mmdet.models.backbones.swin import SwinTransformer as DetSwin
from mmseg.models.backbones.swin import SwinTransformer as SegSwin
from safetensors.torch import save_file
from small_weights import (
    DEPTH,
    HEADS,
    HIDDEN,
    SIZE,
    WIDTH,
    clip,
    clip_host,
    clip_reference,
    google_arrays,
    image,
    mm_swin,
    mm_vit,
    official_swin,
    official_videomae,
    openai_state,
    positions,
    randomise,
    scripted,
    swin_kwargs,
    timm_swin,
    timm_vit,
    video_mae,
    video_swin,
)
from torch import nn

from mmpetl.models.weights import WeightsError, load_base_weights


@pytest.mark.parametrize('pre_logits', [True, False], ids=['original', 'augreg'])
@pytest.mark.parametrize('patch', [8, 14])
def test_google_npz_gives_the_features_timm_reads_from_it(
    tmp_path, same_features, pre_logits, patch
):
    path = tmp_path / 'ViT-B_16.npz'
    np.savez(path, **google_arrays(pre_logits=pre_logits, patch=patch))
    sizes = dict(img_size=4 * patch, patch_size=patch)
    reference = timm_vit(num_classes=11, **sizes)
    reference.load_pretrained(str(path))
    host = mm_vit(**sizes)
    report = load_base_weights(host, path)
    pixels = image(4 * patch)
    tokens = reference.forward_features(pixels)
    release = 'original' if pre_logits else 'AugReg'
    what = f'Google npz, {release} keys, patch {patch} | mmpretrain ViT | timm'
    same_features(host(pixels), tokens[:, 0], 1e-6, what)
    assert report.layout == 'Google npz'
    assert report.head_classes == 11
    # AugReg's files have no pre_logits, but neither has one with a head of 11.
    assert report.release == ('original in21k' if pre_logits else None)
    reasons = {reason for _, reason in report.dropped}
    assert reasons == {'head', 'pre_logits'} if pre_logits else {'head'}
    assert set(report.matched) == set(host.state_dict())
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert '11 classes' in report.summary()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('init_values', [None, 0.1], ids=['mae', 'dinov2'])
def test_timm_names_give_timm_features(tmp_path, same_features, suffix, init_values):
    reference = timm_vit(init_values=init_values)
    state = reference.state_dict()
    state['mask_token'] = torch.zeros(1, WIDTH)
    path = tmp_path / f'vit.{suffix}'
    if suffix == 'pth':
        torch.save({'model': state, 'epoch': 3}, path)
    else:
        save_file(state, path)
    host = mm_vit(layer_scale_init_value=init_values or 0.0)
    report = load_base_weights(host, path)
    expected = reference.forward_features(image())[:, 0]
    kind = 'DINOv2 (layer scale)' if init_values else 'MAE, timm'
    what = f'{kind}, {suffix} | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)
    assert report.layout == 'timm ViT'
    assert report.dropped == (('mask_token', 'mask token of pre-training'),)
    assert report.head_classes is None


def test_clip_in_timm_names(tmp_path, same_features):
    reference = clip_reference()
    save_file(reference.state_dict(), tmp_path / 'clip.safetensors')
    host = clip_host()
    load_base_weights(host, tmp_path / 'clip.safetensors')
    expected = reference.forward_features(image())[:, 0]
    what = 'CLIP, timm keys | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)


@pytest.mark.parametrize('container', ['state dict', 'TorchScript'])
def test_openai_clip_gives_the_features_timm_reads_from_it(
    tmp_path, same_features, container
):
    state = {k: v.half() for k, v in openai_state().items()}
    path = tmp_path / 'ViT-B-16.pt'
    if container == 'TorchScript':
        scripted(state).save(str(path))
    else:
        torch.save(state, path)
    reference = clip_reference()
    converted = timm.models.vision_transformer.checkpoint_filter_fn(
        {k: v.float() for k, v in state.items()}, reference
    )
    missing = reference.load_state_dict(converted, strict=False).missing_keys
    assert not missing
    host = clip_host()
    report = load_base_weights(host, path)
    expected = reference.forward_features(image())[:, 0]
    what = f'CLIP, OpenAI keys, {container} | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)
    assert report.layout == 'OpenAI CLIP'
    assert report.container.startswith('Torch' if container[0] == 'T' else 'torch')
    assert ('visual.proj', 'projection to the text space') in report.dropped
    assert ('logit_scale', 'outside of visual') in report.dropped
    assert report.notes == ()


def test_clip_on_a_model_with_other_gelu_and_eps_is_noted(tmp_path):
    torch.save(openai_state(), tmp_path / 'clip.pt')
    host = clip_host(norm_cfg=dict(type='LN', eps=1e-6), layer_cfgs={})
    report = load_base_weights(host, tmp_path / 'clip.pt')
    assert len(report.notes) == 2
    assert 'quick GELU' in report.notes[0]
    assert 'eps' in report.notes[1]


@pytest.mark.parametrize('wrapped', [False, True], ids=['bare', 'TIMMBackbone'])
def test_google_npz_loads_into_timm(tmp_path, same_features, wrapped):
    path = tmp_path / 'vit.npz'
    np.savez(path, **google_arrays())
    reference = timm_vit(num_classes=11)
    reference.load_pretrained(str(path))
    host = timm_vit()
    if wrapped:
        inner = host
        host = mmpretrain.TIMMBackbone('vit_tiny_patch16_224', depth=1)
        host.timm_model = inner
    report = load_base_weights(host, path)
    inner = host.timm_model if wrapped else host
    name = 'timm ViT in TIMMBackbone' if wrapped else 'timm ViT'
    same_features(
        inner.forward_features(image()),
        reference.forward_features(image()),
        1e-6,
        f'Google npz | {name} | timm',
    )
    prefix = 'timm_model.' if wrapped else ''
    assert f'{prefix}blocks.1.attn.qkv.weight' in report.matched


def test_timm_head_of_the_model_stays_fresh(tmp_path):
    save_file(timm_vit(num_classes=7).state_dict(), tmp_path / 'vit.safetensors')
    host = timm_vit(num_classes=7)
    randomise(host, 4)
    before = host.head.weight.clone()
    report = load_base_weights(host, tmp_path / 'vit.safetensors')
    assert torch.equal(host.head.weight, before)
    assert dict(report.fresh) == {'head.weight': 'head', 'head.bias': 'head'}
    assert report.head_classes == 7


def test_own_state_dict_of_a_classifier_loads_bit_for_bit(tmp_path):
    source = mm_vit()
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    state['head.layers.head.weight'] = torch.zeros(1000, WIDTH)
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'ft.pth')
    host = randomise(mm_vit(), 5)
    report = load_base_weights(host, tmp_path / 'ft.pth')
    for name, tensor in source.state_dict().items():
        assert torch.equal(host.state_dict()[name], tensor)
    assert report.head_classes == 1000


def test_position_table_is_resized_as_mmpretrain_does_it(tmp_path):
    reference = timm_vit(img_size=56)
    path = tmp_path / 'vit.pth'
    torch.save(reference.state_dict(), path)
    host, ours = mm_vit(), mm_vit(img_size=56)
    load_base_weights(ours, path)
    host.load_state_dict(ours.state_dict())
    expected = host.pos_embed.clone()
    host = randomise(host, 7)
    report = load_base_weights(host, path)
    assert torch.allclose(host.pos_embed, expected, atol=1e-6)
    assert torch.equal(host.pos_embed[:, 0], reference.pos_embed[:, 0])
    assert report.resized == (('pos_embed', (1, 50, WIDTH), (1, 17, WIDTH)),)


def test_a_resized_position_table_gives_timm_features(tmp_path, same_features):
    """DINOv2's case: trained at a larger input. timm would anti-alias unless told."""
    source = timm_vit(img_size=56, init_values=0.1)
    path = tmp_path / 'dinov2.pth'
    torch.save(source.state_dict(), path)
    reference = timm_vit(init_values=0.1)
    state = source.state_dict()
    state['pos_embed'] = timm.layers.resample_abs_pos_embed(
        state['pos_embed'], [4, 4], antialias=False
    )
    reference.load_state_dict(state)
    host = mm_vit(layer_scale_init_value=0.1)
    report = load_base_weights(host, path)
    assert report.resized
    expected = reference.forward_features(image())[:, 0]
    what = 'DINOv2, positions 7 x 7 -> 4 x 4 | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)


WIDE = dict(img_size=(32, 128))
"""As many patches as a picture of 64 x 64, on a grid of 4 x 16."""


@pytest.mark.parametrize('make', [timm_vit, mm_vit])
@pytest.mark.parametrize('old', [(8, 8), (4, 16), (16, 4), (8, 32)])
def test_positions_are_resized_by_their_grid(tmp_path, make, old):
    """Also where the model has as many; what has the model's shape is not a square."""
    patches = positions(old)
    state = timm_vit(img_size=(8 * old[0], 8 * old[1])).state_dict()
    state['pos_embed'] = torch.cat([state['pos_embed'][:, :1], patches], dim=1)
    torch.save(state, tmp_path / 'vit.pth')
    host = make(**WIDE)
    report = load_base_weights(host, tmp_path / 'vit.pth')
    plane = patches.unflatten(1, old).permute(0, 3, 1, 2)
    if old != (4, 16):
        plane = nn.functional.interpolate(plane, (4, 16), mode='bicubic')
    assert torch.equal(host.pos_embed[:, :1], state['pos_embed'][:, :1])
    assert torch.equal(host.pos_embed[:, 1:], plane.flatten(2).transpose(1, 2))
    shapes = (1, 1 + old[0] * old[1], WIDTH), (1, 65, WIDTH)
    assert report.resized == (() if old == (4, 16) else (('pos_embed', *shapes),))
    assert ('on another grid' in report.summary()) == (old in [(8, 8), (16, 4)])


def test_positions_without_an_order_are_the_models_own(tmp_path):
    source, host = timm_vit(**WIDE), mm_vit(**WIDE)
    torch.save(source.state_dict(), tmp_path / 'vit.pth')
    assert not load_base_weights(host, tmp_path / 'vit.pth').resized
    assert torch.equal(host.pos_embed, source.pos_embed)


def dinov2_with_registers(size: int, gated: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors as in dinov2_vitb14_reg4_pretrain.pth."""
    model = timm_vit(img_size=size, init_values=0.1, **(GATED if gated else {}))
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(7)
    state['register_tokens'] = torch.randn(1, 4, WIDTH, generator=generator)
    state['mask_token'] = torch.zeros(1, WIDTH)
    if gated:
        state = {
            name.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): tensor
            for name, tensor in state.items()
        }
    return state


ARCH = dict(
    embed_dims=WIDTH,
    num_layers=DEPTH,
    num_heads=HEADS,
    feedforward_channels=HIDDEN,
)
GATED = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('size', [SIZE, 56])
def test_dinov2_with_registers_in_timm(tmp_path, same_features, size, gated):
    """Its tokens have no positions in timm: that of the class goes into the token."""
    state = dinov2_with_registers(size, gated)
    torch.save(state, tmp_path / 'dinov2.pth')
    sizes = dict(init_values=0.1, reg_tokens=4, no_embed_class=True)
    sizes |= GATED if gated else {}
    reference, host = timm_vit(**sizes), randomise(timm_vit(**sizes), 9)
    report = load_base_weights(host, tmp_path / 'dinov2.pth')
    assert [name for name, _ in report.dropped] == ['mask_token']
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    reference.load_state_dict(convert(state, reference, antialias=False))
    expected = reference.forward_features(image())
    same_features(host.forward_features(image()), expected, 1e-6, 'DINOv2 | timm')
    with pytest.raises(WeightsError, match='build a model of timm with reg_tokens'):
        load_base_weights(
            timm_vit(init_values=0.1, **(GATED if gated else {})),
            tmp_path / 'dinov2.pth',
        )


def in_chunks(state: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """As DINOv2's training saves them: the chunk, then the number among all blocks."""

    def named(match: re.Match) -> str:
        return f'blocks.{int(match[1]) // size}.{match[1]}.'

    return {re.sub(r'^blocks\.(\d+)\.', named, k): t for k, t in state.items()}


@pytest.mark.parametrize('size', [1, 2], ids=['chunks of 1', 'chunks of 2'])
@pytest.mark.parametrize('kept', ['backbone', 'teacher', 'both'])
@pytest.mark.parametrize('make', [timm_vit, mm_vit])
def test_dinov2_as_its_training_saves_it(tmp_path, same_features, make, kept, size):
    reference = timm_vit(init_values=0.1, depth=4)
    state = in_chunks(dinov2_with_registers(SIZE) | reference.state_dict(), size)
    del state['register_tokens']
    assert f'blocks.{3 // size}.3.norm1.weight' in state
    if kept != 'backbone':
        state = {f'backbone.{name}': tensor for name, tensor in state.items()}
        state['dino_head.mlp.0.weight'] = torch.ones(4, WIDTH)
    pair = {f'teacher.{k}': t for k, t in state.items()}
    pair |= {f'student.{k}': -t for k, t in state.items()}
    files = {'teacher': {'teacher': state}, 'both': {'model': pair, 'iteration': 7}}
    torch.save(files.get(kept, state), tmp_path / 'dinov2.pth')
    scale = {timm_vit: 'init_values', mm_vit: 'layer_scale_init_value'}[make]
    depth = dict(arch=dict(ARCH, num_layers=4)) if make is mm_vit else dict(depth=4)
    host = randomise(make(**{scale: 0.1}, **depth), 9)
    part = 'teacher' if kept == 'both' else None
    report = load_base_weights(host, tmp_path / 'dinov2.pth', part=part)
    assert not report.fresh
    expected = reference.forward_features(image())
    ours = host(image())[0] if make is mm_vit else host.forward_features(image())[:, 0]
    same_features(ours, expected[:, 0], 1e-6, 'DINOv2 in chunks | timm')


def test_chunks_that_count_their_own_blocks_are_refused(tmp_path):
    state = in_chunks(timm_vit(depth=4).state_dict(), 2)
    state = {
        re.sub(r'^blocks\.1\.(\d)', lambda m: f'blocks.1.{int(m[1]) - 2}', name): tensor
        for name, tensor in state.items()
    }
    torch.save(state, tmp_path / 'vit.pth')
    with pytest.raises(WeightsError, match='both mean blocks.0.norm1.weight'):
        load_base_weights(timm_vit(depth=4), tmp_path / 'vit.pth')


def test_a_gated_dinov2_in_mmpretrain(tmp_path, same_features):
    """dinov2_vitg14, whose network has the same names there."""
    reference = timm_vit(init_values=0.1, **GATED)
    state = {
        name.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): tensor
        for name, tensor in reference.state_dict().items()
    }
    torch.save(state, tmp_path / 'dinov2.pth')
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS)
    # Upstream takes two thirds of what it is given.
    host = mm_vit(
        arch=dict(arch, feedforward_channels=3 * HIDDEN // 4),
        layer_cfgs=dict(ffn_type='swiglu_fused'),
        layer_scale_init_value=0.1,
    )
    load_base_weights(host, tmp_path / 'dinov2.pth')
    expected = reference.forward_features(image())[:, 0]
    same_features(host(image()), expected, 1e-6, 'DINOv2, gated | mmpretrain | timm')


def test_a_plain_vit_in_a_model_whose_class_has_no_position(tmp_path, same_features):
    reference, host = timm_vit(), timm_vit(no_embed_class=True)
    torch.save(reference.state_dict(), tmp_path / 'vit.pth')
    load_base_weights(host, tmp_path / 'vit.pth')
    expected = reference.forward_features(image())
    same_features(host.forward_features(image()), expected, 1e-6, 'ViT | DeiT3 | timm')


def test_mean_pooling_leaves_the_norm_after_it_fresh(tmp_path):
    torch.save(timm_vit().state_dict(), tmp_path / 'mae.pth')
    host = mm_vit(out_type='avg_featmap', final_norm=False)
    report = load_base_weights(host, tmp_path / 'mae.pth')
    assert [name for name, _ in report.fresh] == ['ln2.weight', 'ln2.bias']
    assert [name for name, _ in report.dropped] == ['norm.weight', 'norm.bias']


def test_class_token_is_cut_for_a_model_without_one(tmp_path):
    reference = timm_vit()
    torch.save(reference.state_dict(), tmp_path / 'vit.pth')
    host = mm_vit(with_cls_token=False, out_type='featmap')
    report = load_base_weights(host, tmp_path / 'vit.pth')
    assert torch.equal(host.pos_embed, reference.pos_embed[:, 1:])
    assert 'cls_token' in dict(report.dropped)


# --- Swin ----------------------------------------------------------------------


@pytest.mark.parametrize('names', ['official', 'timm'])
def test_swin_gives_timm_features_in_mmpretrain(tmp_path, same_features, names):
    reference = timm_swin()
    state = official_swin(reference) if names == 'official' else reference.state_dict()
    torch.save({'model': state}, tmp_path / 'swin.pth')
    host = mm_swin()
    report = load_base_weights(host, tmp_path / 'swin.pth')
    expected = reference.forward_features(image(128)).permute(0, 3, 1, 2)
    what = f'Swin, {names} keys | mmpretrain Swin | timm'
    same_features(host(image(128)), expected, 1e-5, what)
    assert report.layout == f'{names} Swin'
    assert report.head_classes == 21
    assert report.fresh == ()
    parameters = {name for name, _ in host.named_parameters()}
    assert set(report.matched) == parameters


@pytest.mark.parametrize('cls', [DetSwin, SegSwin], ids=['mmdet', 'mmseg'])
def test_swin_gives_timm_features_in_dense_toolboxes(tmp_path, same_features, cls):
    reference = timm_swin(img_size=256)
    torch.save({'model': official_swin(reference)}, tmp_path / 'swin.pth')
    host = randomise(cls(window_size=4, mlp_ratio=4, **swin_kwargs()), 9)
    report = load_base_weights(host, tmp_path / 'swin.pth')
    norms = {f'norm{i}.{p}' for i in range(4) for p in ('weight', 'bias')}
    assert {name for name, _ in report.fresh} == norms
    with torch.no_grad():
        for i in range(4):
            norm = getattr(host, f'norm{i}')
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    x = reference.patch_embed(image(256))
    for i, stage in enumerate(reference.layers):
        x = stage(x)
        normed = nn.functional.layer_norm(x, x.shape[-1:])
        ours = host(image(256))[i]
        what = f'Swin, official keys | {cls.__module__[:5]} Swin, stage {i} | timm'
        same_features(ours, normed.permute(0, 3, 1, 2), 1e-5, what)


def test_dense_swin_files_keep_their_output_norms(tmp_path):
    source = randomise(SegSwin(window_size=4, **swin_kwargs()), 1)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'seg.pth')
    host = randomise(SegSwin(window_size=4, **swin_kwargs()), 2)
    report = load_base_weights(host, tmp_path / 'seg.pth')
    assert report.fresh == ()
    for name, tensor in source.state_dict().items():
        assert torch.equal(host.state_dict()[name], tensor)


SWINS = {
    'mmpretrain': lambda size: mm_swin(img_size=size, use_abs_pos_embed=True),
    'mmdet': lambda size: dense_swin(DetSwin, size),
    'mmseg': lambda size: dense_swin(SegSwin, size),
}


def dense_swin(cls, size) -> nn.Module:
    options = swin_kwargs(window_size=4, use_abs_pos_embed=True)
    return randomise(cls(pretrain_img_size=size, **options), 99)


def swin_with_positions(path, old: tuple[int, int]) -> torch.Tensor:
    """Write an official file of that grid, and return it as (1, C, h, w)."""
    table = positions(old, 16)
    state = official_swin(timm_swin(num_classes=0)) | {'absolute_pos_embed': table}
    torch.save({'model': state}, path)
    return table.unflatten(1, old).permute(0, 3, 1, 2)


@pytest.mark.parametrize('package', SWINS)
@pytest.mark.parametrize('old', [(32, 32), (24, 24)])
def test_absolute_positions_of_swin_are_resized_by_their_grid(tmp_path, package, old):
    plane = swin_with_positions(tmp_path / 'swin.pth', old)
    host = SWINS[package](192)
    report = load_base_weights(host, tmp_path / 'swin.pth')
    plane = nn.functional.interpolate(plane, (48, 48), mode='bicubic')
    assert torch.equal(host.absolute_pos_embed, plane.flatten(2).transpose(1, 2))
    shapes = (1, old[0] * old[1], 16), (1, 48 * 48, 16)
    assert report.resized == (('absolute_pos_embed', *shapes),)


def test_absolute_positions_of_swin_on_a_wide_picture(tmp_path):
    """mmpretrain keeps the grid of its table; mmdet and mmseg do not."""
    plane = swin_with_positions(tmp_path / 'swin.pth', (32, 32))
    host = SWINS['mmpretrain']((64, 256))
    load_base_weights(host, tmp_path / 'swin.pth')
    plane = nn.functional.interpolate(plane, (16, 64), mode='bicubic')
    assert torch.equal(host.absolute_pos_embed, plane.flatten(2).transpose(1, 2))
    # 50 is 1 + 7 x 7, and Swin has no class token.
    for size, rows in (((64, 192), 768), ((20, 40), 50)):
        with pytest.raises(WeightsError, match=f'the {rows} rows of the model are no'):
            load_base_weights(SWINS['mmdet'](size), tmp_path / 'swin.pth')


def test_absolute_positions_of_swin_on_one_side_alone(tmp_path):
    swin_with_positions(tmp_path / 'swin.pth', (32, 32))
    with pytest.raises(WeightsError, match='with use_abs_pos_embed=True'):
        load_base_weights(timm_swin(), tmp_path / 'swin.pth')
    torch.save(official_swin(timm_swin()), tmp_path / 'plain.pth')
    with pytest.raises(WeightsError, match='has absolute positions, the file has none'):
        load_base_weights(SWINS['mmseg'](128), tmp_path / 'plain.pth')


def test_window_tables_are_resized_as_mmseg_does_it(tmp_path):
    source = randomise(SegSwin(window_size=4, **swin_kwargs()), 1)
    path = tmp_path / 'seg.pth'
    torch.save({'state_dict': source.state_dict()}, path)
    ours = SegSwin(window_size=7, **swin_kwargs())
    report = load_base_weights(ours, path)
    key = 'stages.2.blocks.1.attn.w_msa.relative_position_bias_table'
    assert (key, (49, 4), (169, 4)) in report.resized
    assert len(report.resized) == 7
    old = source.get_parameter(key).detach()
    new = ours.get_parameter(key).detach()
    # The centre of an odd grid is the centre of any other odd grid.
    assert torch.allclose(new[84], old[24], atol=1e-6)
    # mmseg resizes the tables but would load the old index beside them.
    plain = {k: v for k, v in source.state_dict().items() if 'position_index' not in k}
    torch.save({'state_dict': plain}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    theirs = SegSwin(window_size=7, init_cfg=init_cfg, **swin_kwargs())
    theirs.init_weights()
    assert torch.allclose(new, theirs.get_parameter(key), atol=1e-6)


def test_resized_window_tables_give_timm_features(tmp_path, same_features):
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

    source = timm_swin(img_size=224)
    path = tmp_path / 'swin.pth'
    torch.save({'model': official_swin(source)}, path)
    reference = timm_swin(img_size=224, window_size=7)
    state = source.state_dict()
    for name, tensor in state.items():
        if name.endswith('relative_position_bias_table'):
            state[name] = resize_rel_pos_bias_table_simple(
                tensor, (7, 7), (169, tensor.shape[1])
            )
    reference.load_state_dict(state, strict=False)
    arch = swin_kwargs()
    host = randomise(mmpretrain.SwinTransformer(arch=arch, img_size=224), 9)
    report = load_base_weights(host, path)
    assert len(report.resized) == 7
    expected = reference.forward_features(image(224)).permute(0, 3, 1, 2)
    what = 'Swin, official keys, window 4 -> 7 | mmpretrain Swin | timm'
    same_features(host(image(224)), expected, 1e-5, what)


# --- video ---------------------------------------------------------------------


def test_self_supervised_videomae_drops_decoder_and_norm(tmp_path, same_features):
    reference = video_mae()
    state = official_videomae(reference, 'encoder.')
    for part in ('weight', 'bias'):
        state[f'encoder.norm.{part}'] = state.pop(f'encoder.fc_norm.{part}')
    state['decoder.blocks.0.norm1.weight'] = torch.ones(8)
    state['decoder.head.weight'] = torch.ones(1536, 8)  # predicts pixels
    state['encoder_to_decoder.weight'] = torch.ones(8, WIDTH)
    state['mask_token'] = torch.zeros(1, 1, 8)
    args = argparse.Namespace(batch_size=8)
    torch.save({'model': state, 'epoch': 1, 'args': args}, tmp_path / 'checkpoint.pth')
    host = randomise(video_mae(num_frames=8), 8)
    positions = host.pos_embed.clone()
    report = load_base_weights(host, tmp_path / 'checkpoint.pth')
    assert report.head_classes is None
    assert [name for name, _ in report.fresh] == ['fc_norm.weight', 'fc_norm.bias']
    assert {reason for _, reason in report.dropped} == {
        'decoder',
        'mask token of pre-training',
        'norm, which the model does not have',
    }
    assert torch.equal(host.pos_embed, positions)
    host = randomise(video_mae(), 8)
    load_base_weights(host, tmp_path / 'checkpoint.pth')
    with torch.no_grad():
        host.fc_norm.load_state_dict(reference.fc_norm.state_dict())
    what = 'VideoMAE, self-supervised | mmaction ViT | mmaction'
    same_features(host(clip()), reference(clip()), 0, what)


@pytest.mark.parametrize('kind', ['fine-tuned', 'AdaptFormer', 'mmaction'])
def test_videomae_files_give_equal_features(tmp_path, same_features, kind):
    reference = video_mae()
    state = official_videomae(reference)
    if kind == 'fine-tuned':
        state['head.weight'] = torch.zeros(400, WIDTH)
        content, layout = {'module': state}, 'VideoMAE'
    elif kind == 'mmaction':
        state = {f'backbone.{k}': v for k, v in reference.state_dict().items()}
        state['cls_head.fc_cls.weight'] = torch.zeros(400, WIDTH)
        content, layout = {'state_dict': state}, 'mmaction ViT'
    else:
        split = {}
        for name, tensor in state.items():
            if name.endswith('attn.qkv.weight'):
                for part, rows in zip('qkv', tensor.chunk(3), strict=True):
                    split[name.replace('qkv', f'{part}_proj')] = rows.clone()
            else:
                split[name.replace('mlp.', '')] = tensor
        split = {f'encoder.{k}': v for k, v in split.items()}
        content, layout = {'model': split}, 'AdaptFormer VideoMAE'
    torch.save(content, tmp_path / 'video.pth')
    host = randomise(video_mae(), 8)
    report = load_base_weights(host, tmp_path / 'video.pth')
    what = f'VideoMAE, {kind} | mmaction ViT | mmaction'
    same_features(host(clip()), reference(clip()), 0, what)
    assert report.layout == layout
    assert report.head_classes == (None if kind == 'AdaptFormer' else 400)


def test_video_swin_renames_the_last_norm_alone(tmp_path, same_features):
    reference = video_swin()
    state = {}
    for name, tensor in reference.state_dict().items():
        name = name.replace('norm3.', 'norm.') if name.startswith('norm3') else name
        state[f'backbone.{name}'] = tensor
    state['cls_head.fc_cls.weight'] = torch.zeros(400, 128)
    torch.save({'state_dict': state}, tmp_path / 'vswin.pth')
    host = randomise(video_swin(), 8)
    report = load_base_weights(host, tmp_path / 'vswin.pth')
    what = 'Video Swin | mmaction Swin | mmaction'
    same_features(host(clip(4, 64)), reference(clip(4, 64)), 0, what)
    assert report.layout == 'Video Swin'
    assert report.head_classes == 400


def test_video_swin_tables_are_resized_in_time_and_plane(tmp_path):
    source = video_swin()
    key = 'layers.0.blocks.0.attn.relative_position_bias_table'
    with torch.no_grad():
        # Rows that depend on the time step alone: -1, 0, 1.
        steps = torch.tensor([-1.0, 0.0, 1.0]).repeat_interleave(49)
        source.get_parameter(key).copy_(steps[:, None].expand(-1, 2))
    torch.save(source.state_dict(), tmp_path / 'vswin.pth')
    host = video_swin(window_size=(4, 7, 7))
    report = load_base_weights(host, tmp_path / 'vswin.pth')
    assert (key, (147, 2), (7 * 169, 2)) in report.resized
    new = host.get_parameter(key).detach().reshape(7, 169, 2)
    # 3 samples stretched over 7: sample i sits at (i + 0.5) * 3 / 7 - 0.5.
    at = (torch.arange(7) + 0.5) * 3 / 7 - 0.5
    expected = (at.clamp(0, 2) - 1)[:, None, None].expand_as(new)
    assert torch.allclose(new, expected, atol=1e-5)
