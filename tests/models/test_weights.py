"""Base weights: official formats give the reference's features, bad files one line."""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from mmpetl import compat

compat.install()

timm = pytest.importorskip('timm')
mmpretrain = pytest.importorskip('mmpretrain.models')
mmaction = pytest.importorskip('mmaction.models')
pytest.importorskip('mmdet.models')
pytest.importorskip('mmseg.models')

from mmdet.models.backbones.swin import SwinTransformer as DetSwin  # noqa: E402
from mmseg.models.backbones.swin import SwinTransformer as SegSwin  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from mmpetl.models.weights import (  # noqa: E402
    WeightsError,
    WeightsNotFoundError,
    load_base_weights,
)

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, SIZE = 48, 2, 4, 96, 8, 32


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its start, so that a mix-up shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_gain = name.endswith('weight') and p.dim() == 1
            p.copy_(1 + 0.2 * noise if is_gain else 0.1 * noise)
    module.train(False)
    return module


def mm_vit(**kwargs) -> nn.Module:
    arch = dict(
        embed_dims=WIDTH,
        num_layers=DEPTH,
        num_heads=HEADS,
        feedforward_channels=HIDDEN,
    )
    defaults = dict(arch=arch, img_size=SIZE, patch_size=PATCH)
    return randomise(mmpretrain.VisionTransformer(**{**defaults, **kwargs}), 99)


def timm_vit(**kwargs) -> nn.Module:
    defaults = dict(
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / WIDTH,
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=0,
    )
    return randomise(timm.models.VisionTransformer(**{**defaults, **kwargs}))


def video_mae(**kwargs) -> nn.Module:
    defaults = dict(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dims=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=2,
        num_frames=4,
    )
    cls = mmaction.backbones.vit_mae.VisionTransformer
    return randomise(cls(**{**defaults, **kwargs}))


def swin_kwargs(**kwargs) -> dict:
    return dict(embed_dims=16, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 4), **kwargs)


def mm_swin(window_size: int = 4, **kwargs) -> nn.Module:
    arch = swin_kwargs()
    model = mmpretrain.SwinTransformer(
        arch=arch, img_size=128, window_size=window_size, **kwargs
    )
    return randomise(model, 99)


def video_swin(**kwargs) -> nn.Module:
    arch = swin_kwargs()
    model = mmaction.SwinTransformer3D(
        arch=arch, pretrained2d=False, **{'window_size': (2, 4, 4), **kwargs}
    )
    return randomise(model)


def image(size: int = SIZE, seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip(frames: int = 4, size: int = SIZE) -> torch.Tensor:
    return torch.randn(
        1, 3, frames, size, size, generator=torch.Generator().manual_seed(3)
    )


@pytest.fixture
def same_features(record_property):
    """Equality of features; the largest difference goes into the test's report.

    ``tools/misc/check_weight_formats.py`` prints these reports as a table.
    """

    @torch.no_grad()
    def same(ours, reference, tolerance: float, what: str) -> None:
        ours = ours[-1] if isinstance(ours, tuple) else ours
        gap = (ours - reference).abs().max().item()
        record_property('format', what)
        record_property('max_difference', gap)
        record_property('scale', reference.abs().max().item())
        record_property('tolerance', tolerance)
        assert reference.std() > 0.05
        assert gap <= tolerance

    return same


# --- ViT -----------------------------------------------------------------------


def google_arrays(
    head: int | None = 11, pre_logits: bool = False, patch: int = PATCH
) -> dict:
    """Random arrays in the shapes of the official Flax checkpoints."""
    rng = np.random.default_rng(1)
    dim = WIDTH // HEADS

    def draw(*shape):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {
        'cls': draw(1, 1, WIDTH),
        'embedding/kernel': draw(patch, patch, 3, WIDTH),
        'embedding/bias': draw(WIDTH),
        'Transformer/posembed_input/pos_embedding': draw(1, 17, WIDTH),
        'Transformer/encoder_norm/scale': 1 + draw(WIDTH),
        'Transformer/encoder_norm/bias': draw(WIDTH),
    }
    for i in range(DEPTH):
        block = f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            arrays[f'{attention}/{name}/kernel'] = draw(WIDTH, HEADS, dim)
            arrays[f'{attention}/{name}/bias'] = draw(HEADS, dim)
        arrays[f'{attention}/out/kernel'] = draw(HEADS, dim, WIDTH)
        arrays[f'{attention}/out/bias'] = draw(WIDTH)
        for norm in (0, 2):
            arrays[f'{block}/LayerNorm_{norm}/scale'] = 1 + draw(WIDTH)
            arrays[f'{block}/LayerNorm_{norm}/bias'] = draw(WIDTH)
        arrays[f'{block}/MlpBlock_3/Dense_0/kernel'] = draw(WIDTH, HIDDEN)
        arrays[f'{block}/MlpBlock_3/Dense_0/bias'] = draw(HIDDEN)
        arrays[f'{block}/MlpBlock_3/Dense_1/kernel'] = draw(HIDDEN, WIDTH)
        arrays[f'{block}/MlpBlock_3/Dense_1/bias'] = draw(WIDTH)
    if pre_logits:
        arrays['pre_logits/kernel'] = draw(WIDTH, WIDTH)
        arrays['pre_logits/bias'] = draw(WIDTH)
    if head:
        arrays['head/kernel'] = draw(WIDTH, head)
        arrays['head/bias'] = draw(head)
    return arrays


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


def clip_reference() -> nn.Module:
    return timm_vit(
        pre_norm=True,
        act_layer=timm.layers.QuickGELU,
        norm_layer=functools.partial(timm.layers.LayerNorm, eps=1e-5),
    )


def clip_host(**kwargs) -> nn.Module:
    layer = dict(act_cfg=dict(type='mmpretrain.QuickGELU'))
    norm = dict(type='LN', eps=1e-5)
    return mm_vit(**{'pre_norm': True, 'layer_cfgs': layer, 'norm_cfg': norm, **kwargs})


def test_clip_in_timm_names(tmp_path, same_features):
    reference = clip_reference()
    save_file(reference.state_dict(), tmp_path / 'clip.safetensors')
    host = clip_host()
    load_base_weights(host, tmp_path / 'clip.safetensors')
    expected = reference.forward_features(image())[:, 0]
    what = 'CLIP, timm keys | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)


def openai_state() -> dict[str, torch.Tensor]:
    """Random image tower and a token of a text tower, in OpenAI's names."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    state = {
        'class_embedding': draw(WIDTH),
        'positional_embedding': draw(17, WIDTH),
        'proj': draw(WIDTH, 7),
        'conv1.weight': draw(WIDTH, 3, PATCH, PATCH),
    }
    shapes = {
        'attn.in_proj_weight': (3 * WIDTH, WIDTH),
        'attn.in_proj_bias': (3 * WIDTH,),
        'attn.out_proj.weight': (WIDTH, WIDTH),
        'attn.out_proj.bias': (WIDTH,),
        'mlp.c_fc.weight': (HIDDEN, WIDTH),
        'mlp.c_fc.bias': (HIDDEN,),
        'mlp.c_proj.weight': (WIDTH, HIDDEN),
        'mlp.c_proj.bias': (WIDTH,),
    }
    for i in range(DEPTH):
        block = f'transformer.resblocks.{i}.'
        for name, shape in shapes.items():
            state[block + name] = draw(*shape)
        for norm in ('ln_1', 'ln_2'):
            state[f'{block}{norm}.weight'] = 1 + draw(WIDTH)
            state[f'{block}{norm}.bias'] = draw(WIDTH)
    for norm in ('ln_pre', 'ln_post'):
        state[f'{norm}.weight'] = 1 + draw(WIDTH)
        state[f'{norm}.bias'] = draw(WIDTH)
    state = {f'visual.{k}': v for k, v in state.items()}
    state['transformer.resblocks.0.attn.in_proj_weight'] = draw(3, 3)
    state['logit_scale'] = draw(1)[0]
    return state


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript module whose tensors have the names of ``state``."""
    root = Branch()
    for name, tensor in state.items():
        *path, leaf = name.split('.')
        node = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, Branch())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return torch.jit.script(root)


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


def timm_swin(**kwargs) -> nn.Module:
    defaults = dict(
        embed_dim=16,
        depths=(2, 2, 2, 1),
        num_heads=(2, 2, 4, 4),
        img_size=128,
        window_size=4,
        num_classes=21,
    )
    cls = timm.models.swin_transformer.SwinTransformer
    return randomise(cls(**{**defaults, **kwargs}))


def official_swin(model: nn.Module) -> dict[str, torch.Tensor]:
    """timm's state in the authors' names: merging one stage earlier, buffers stored."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split('.')
        if parts[2:3] == ['downsample']:
            parts[1] = str(int(parts[1]) - 1)
        if parts[0] == 'head':
            parts.remove('fc')
        state['.'.join(parts)] = tensor
        if parts[-1] == 'relative_position_bias_table':
            index = torch.zeros(16, 16, dtype=torch.long)
            state['.'.join([*parts[:-1], 'relative_position_index'])] = index
            state['.'.join([*parts[:-2], 'attn_mask'])] = torch.zeros(4, 16, 16)
    return state


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


def official_videomae(model: nn.Module, prefix: str = '') -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in model.named_parameters():
        name = name.replace('projection', 'proj')
        name = name.replace('layers.0.0', 'fc1').replace('mlp.layers.1', 'mlp.fc2')
        state[prefix + name] = tensor.detach()
    return state


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


# --- bad input -----------------------------------------------------------------


def refuse(host: nn.Module, path, *parts: str, **kwargs) -> None:
    """One line that names the file and says each of ``parts``; nothing has moved."""
    before = {k: v.clone() for k, v in host.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_base_weights(host, path, **kwargs)
    message = str(caught.value)
    print(message)
    assert '\n' not in message
    assert path.name in message
    for part in parts:
        assert part in message
    for name, tensor in host.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ('content', 'part'),
    [
        (b'', 'is empty (0 bytes)'),
        (b'<!DOCTYPE html>\n<html>Sign in</html>', 'is a web page'),
        (b'\n  <html><head></head></html>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'Git LFS pointer'),
        (b'these are not weights at all', 'is not a weight file'),
        (b'PK\x03\x04' + bytes(300), 'is truncated or damaged'),
        (b'\x80\x02' + bytes(300), 'is truncated or damaged'),
        (b'\x99\x00\x00\x00\x00\x00\x00\x00{"a', 'is truncated or damaged'),
    ],
)
@pytest.mark.parametrize('name', ['swin.pth', 'ViT-B_16.npz'])
def test_files_that_are_no_weights(tmp_path, name, content, part):
    path = tmp_path / name
    path.write_bytes(content)
    refuse(mm_vit(), path, part)


@pytest.mark.parametrize('kind', ['npz', 'zip', 'legacy', 'safetensors', 'pt'])
@pytest.mark.parametrize('keep', [0.1, 0.6, 0.99])
def test_truncated_files(tmp_path, kind, keep):
    path = tmp_path / f'vit.{kind}'
    state = timm_vit().state_dict()
    if kind == 'npz':
        np.savez(path, **google_arrays())
    elif kind == 'safetensors':
        save_file(state, path)
    elif kind == 'pt':
        scripted(openai_state()).save(str(path))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == 'zip')
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refuse(mm_vit(), path, 'is truncated or damaged; download it again')


class Payload:
    def __reduce__(self):
        return (math.sqrt, (4.0,))


def test_no_file_runs_code(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save({'model': timm_vit().state_dict(), 'x': Payload()}, path)
    refuse(mm_vit(), path, 'needs the Python object math.sqrt', 'not allowed')
    path = tmp_path / 'evil.npz'
    np.savez(path, x=np.array([Payload()], dtype=object))
    refuse(mm_vit(), path, 'pickled Python objects')


def test_torchscript_pickle_may_ask_for_tensors_alone(tmp_path):
    import pickle
    import zipfile

    path = tmp_path / 'evil.pt'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('m/constants.pkl', b'')
        archive.writestr('m/data.pkl', pickle.dumps(Payload(), protocol=2))
    refuse(mm_vit(), path, 'needs the Python object math.sqrt')


def test_missing_file_names_a_near_one(tmp_path):
    np.savez(tmp_path / 'ViT-B_16.npz', **google_arrays())
    refuse(mm_vit(), tmp_path / 'ViT-B-16.npz', 'No weight file', 'ViT-B_16.npz')
    with pytest.raises(WeightsNotFoundError, match='No weight file'):
        load_base_weights(mm_vit(), tmp_path / 'nowhere' / 'x.pth')
    with pytest.raises(FileNotFoundError):
        load_base_weights(mm_vit(), tmp_path / 'x.pth')
    refuse(mm_vit(), tmp_path, 'is a folder')


def test_files_without_a_trunk(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'conv1.weight': torch.ones(2, 2), 'fc.bias': torch.ones(2)}, path)
    refuse(mm_vit(), path, 'no patch embedding among its 2 tensors (conv1.weight')
    torch.save({'epoch': 3}, path)
    refuse(mm_vit(), path, 'holds no tensors')
    torch.save([torch.ones(2)], path)
    refuse(mm_vit(), path, 'holds list, not a dict of tensors')
    state = timm_vit().state_dict()
    both = {f'{who}.{k}': v for who in ('student', 'teacher') for k, v in state.items()}
    torch.save(both, path)
    refuse(mm_vit(), path, "2 trunks (below 'student.', 'teacher.')")


def test_files_of_another_family(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'model': official_swin(timm_swin())}, path)
    refuse(
        mm_vit(),
        path,
        'holds an image Swin (official Swin names)',
        'the model is an image ViT (mmpretrain VisionTransformer)',
    )
    torch.save(timm_vit().state_dict(), path)
    refuse(video_mae(), path, 'holds an image ViT', 'the model is a VideoMAE ViT')
    refuse(mm_swin(), path, 'holds an image ViT', 'the model is an image Swin')


def test_files_of_another_size(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save(timm_vit(embed_dim=64, mlp_ratio=4).state_dict(), path)
    refuse(mm_vit(), path, 'embed width 64 in the file, 48 in the model')
    torch.save(timm_vit(depth=3).state_dict(), path)
    refuse(mm_vit(), path, 'depth 3 in the file, 2 in the model')
    torch.save(timm_vit(patch_size=4).state_dict(), path)
    refuse(mm_vit(), path, 'patch size 4 x 4 in the file, 8 x 8 in the model')
    path = tmp_path / 'swin.pth'
    torch.save(official_swin(timm_swin(depths=(2, 2, 4, 1))), path)
    refuse(mm_swin(), path, 'depth 2-2-4-1 in the file, 2-2-2-1 in the model')


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose parameters have these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *way, leaf = name.split('.')
        node = root
        for part in way:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return root


@pytest.mark.parametrize(
    ('offered', 'wanted', 'parts'),
    [
        ((1024, 24), (768, 12), ('embed width 1024 in the file, 768', 'a ViT-L')),
        ((768, 12), (1024, 24), ('a ViT-B offered for a ViT-L',)),
    ],
)
def test_published_sizes_are_called_by_name(tmp_path, offered, wanted, parts):
    def stand_in(width: int, depth: int) -> dict[str, torch.Tensor]:
        state = {'patch_embed.proj.weight': torch.zeros(width, 1, 1, 1)}
        for i in range(depth):
            state[f'blocks.{i}.attn.qkv.weight'] = torch.zeros(1)
        return state

    path = tmp_path / 'vit.pth'
    torch.save(stand_in(*offered), path)
    host = module_of(stand_in(*wanted))
    refuse(host, path, *parts)


def test_a_swin_b_offered_for_a_swin_l_is_called_by_name(tmp_path):
    def stand_in(width: int) -> dict[str, torch.Tensor]:
        state = {'patch_embed.proj.weight': torch.zeros(width, 1, 1, 1)}
        for stage, depth in enumerate((2, 2, 18, 2)):
            for block in range(depth):
                name = f'layers.{stage}.blocks.{block}.attn.qkv.weight'
                state[name] = torch.zeros(1)
        return state

    path = tmp_path / 'swin_large_patch4_window7_224_22k.pth'
    downsample = {'layers.0.downsample.norm.weight': torch.zeros(1)}
    torch.save({'model': {**stand_in(128), **downsample}}, path)
    refuse(
        module_of(stand_in(192)),
        path,
        'embed width 128 in the file, 192 in the model',
        'a Swin-B offered for a Swin-L',
    )


def test_keys_that_do_not_match_are_named_with_the_way_out(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save(timm_vit(init_values=0.1).state_dict(), path)
    refuse(
        mm_vit(),
        path,
        '4 of its keys have no place (blocks.0.ls1.gamma',
        'build the model with layer_scale_init_value',
    )
    torch.save(timm_vit().state_dict(), path)
    refuse(
        mm_vit(layer_scale_init_value=0.1),
        path,
        '4 keys of the model are not in it (layers.0.attn.gamma1.weight',
    )
    torch.save(clip_reference().state_dict(), path)
    refuse(mm_vit(), path, 'norm_pre.weight', 'build the model with pre_norm=True')
    state = timm_vit().state_dict()
    state['norm.weight'] = torch.ones(5)
    state['extra'] = torch.ones(5)
    del state['blocks.1.mlp.fc2.bias']
    torch.save(state, path)
    refuse(
        mm_vit(),
        path,
        '1 keys of the model are not in it (layers.1.ffn.layers.1.bias)',
        '1 of its keys have no place (extra)',
        'norm.weight (5,) in the file, (48,) in the model',
    )
    state = timm_vit().state_dict()
    state['blocks.1.norm1.bias'][3] = torch.nan
    torch.save(state, path)
    refuse(mm_vit(), path, 'blocks.1.norm1.bias has non-finite values')
    arrays = google_arrays()
    del arrays['Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel']
    np.savez(tmp_path / 'vit.npz', **arrays)
    refuse(mm_vit(), tmp_path / 'vit.npz', 'layers.1.attn.qkv.weight')


def test_a_fine_tuned_vit_is_refused_where_the_21k_trunk_is_asked_for(tmp_path):
    path = tmp_path / 'ViT-B_16.npz'
    np.savez(path, **google_arrays(head=1000))
    assert load_base_weights(mm_vit(), path).head_classes == 1000
    refuse(
        mm_vit(),
        path,
        'a classifier of 21843 classes is expected, the file has one of 1000',
        head_classes=21843,
    )


def test_a_delta_is_no_base(tmp_path):
    path = tmp_path / 'lora.safetensors'
    save_file({'backbone.layers.0.petl.attn_q.0.down.weight': torch.ones(2, 2)}, path)
    refuse(mm_vit(), path, 'holds a delta', 'not base weights')


def test_an_injected_backbone_is_refused(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save(timm_vit().state_dict(), path)
    host = mm_vit()
    host.layers[0].add_module('petl', nn.Linear(2, 2))
    with pytest.raises(WeightsError, match='has a method injected'):
        load_base_weights(host, path)
    with pytest.raises(WeightsError, match=re.escape('pass the backbone alone')):
        load_base_weights(nn.ModuleDict({'backbone': mm_vit(), 'x': nn.PReLU()}), path)
