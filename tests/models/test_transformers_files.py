"""Files of transformers, from its own models: into them, and into the other packages.

Needs ``pip install -r requirements/transformers.txt``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from official_files import TIMM, one_epsilon, randomised, renamed
from small_weights import image, positions, randomise
from torch import nn

transformers = pytest.importorskip('transformers', minversion='5')

from mmpetl import compat  # noqa: E402

compat.install()

import mmpretrain.models.backbones as mmpretrain_backbones  # noqa: E402
import mmseg.models.backbones as mmseg_backbones  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.eva import Eva  # noqa: E402

from mmpetl.models.hf_backbone import HFBackbone  # noqa: E402
from mmpetl.models.weights import WeightsError, load_base_weights  # noqa: E402

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=32,
    patch_size=8,
)
SWIN = dict(image_size=128, patch_size=4, embed_dim=8, window_size=4)
DEPTHS = dict(depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2])
SEGFORMER = dict(
    num_encoder_blocks=2,
    depths=[1, 2],
    sr_ratios=[2, 1],
    hidden_sizes=[8, 16],
    patch_sizes=[7, 3],
    strides=[4, 2],
    num_attention_heads=[1, 2],
    mlp_ratios=[2, 2],
)
KINDS: dict[str, tuple[str, dict]] = {
    'ViT': ('ViTConfig', SIZES),
    'Dinov2': ('Dinov2Config', SIZES | {'mlp_ratio': 2}),
    'Dinov2WithRegisters': ('Dinov2WithRegistersConfig', SIZES | {'mlp_ratio': 2}),
    'DINOv3ViT': ('DINOv3ViTConfig', SIZES | {'num_register_tokens': 2}),
    'CLIPVision': ('CLIPVisionConfig', SIZES),
    'SiglipVision': ('SiglipVisionConfig', SIZES),
    'Beit': ('BeitConfig', SIZES | {'use_relative_position_bias': True}),
    'Swin': ('SwinConfig', SWIN | DEPTHS),
    'Segformer': ('SegformerConfig', SEGFORMER),
    'VideoMAE': ('VideoMAEConfig', SIZES | {'num_frames': 4}),
}


def model_of(kind: str, seed: int = 0, **kwargs) -> nn.Module:
    config, sizes = KINDS[kind]
    config = getattr(transformers, config)(**{**sizes, **kwargs})
    model = randomise(getattr(transformers, f'{kind}Model')(config), seed)
    return one_epsilon(model)


def saved(model: nn.Module, folder: Path, **kwargs) -> Path:
    """A folder as the hub has it, with the names of files."""
    model.save_pretrained(folder, **kwargs)
    assert (folder / 'config.json').exists()
    return folder


def filled(model: nn.Module, path: Path, **kwargs):
    report = load_base_weights(randomised(model, 99), path, **kwargs)
    print(report.summary())
    return report


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_fills_its_own_class(tmp_path, kind):
    """By the names of files, and by those that release 5 has in memory."""
    reference = model_of(kind)
    state = reference.state_dict()
    torch.save(state, tmp_path / 'memory.pth')
    for path in (saved(reference, tmp_path / 'hub'), tmp_path / 'memory.pth'):
        model = model_of(kind, seed=5)
        report = filled(model, path)
        assert not report.fresh
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_shards_in_the_cache_of_the_hub(tmp_path):
    reference = model_of('ViT')
    cache = tmp_path / 'models--google--vit'
    folder = cache / 'snapshots' / 'abc'
    saved(reference, folder, max_shard_size='10KB')
    assert (folder / 'model.safetensors.index.json').exists()
    model = model_of('ViT', seed=5)
    assert 'shards' in filled(model, cache).container
    assert torch.equal(model.pooler.dense.weight, reference.pooler.dense.weight)
    (cache / 'snapshots' / 'def').mkdir()
    with pytest.raises(WeightsError, match='has 2 snapshots'):
        load_base_weights(model, cache)
    (cache / 'refs').mkdir()
    (cache / 'refs' / 'main').write_text('abc')
    assert filled(model, cache).matched


def test_another_size_of_image(tmp_path):
    folder = saved(model_of('ViT'), tmp_path)
    model = model_of('ViT', seed=5, image_size=64)
    report = filled(model, folder)
    assert report.resized == (
        ('embeddings.position_embeddings', (1, 17, 16), (1, 65, 16)),
    )


def test_positions_stay_a_square(tmp_path):
    """As transformers reads them at any size of pictures."""
    name = 'embeddings.position_embeddings'
    reference = model_of('Dinov2', image_size=64)
    table = torch.cat([torch.zeros(1, 1, 16), positions((8, 8), 16)], dim=1)
    with torch.no_grad():
        reference.get_parameter(name).copy_(table)
    model = model_of('Dinov2', seed=5, image_size=(32, 128))
    report = filled(model, saved(reference, tmp_path))
    assert not report.resized
    wide = torch.randn(1, 3, 32, 128)
    expected = reference(pixel_values=wide).last_hidden_state
    torch.testing.assert_close(model(pixel_values=wide).last_hidden_state, expected)


def test_values_are_not_rounded_to_the_dtype_of_a_config(tmp_path):
    reference = model_of('ViT')
    model = model_of('ViT', seed=5, dtype='float16').float()
    filled(model, saved(reference, tmp_path))
    assert torch.equal(model.pooler.dense.weight, reference.pooler.dense.weight)


def test_a_folder_in_half_precision_gives_a_backbone_in_float32(tmp_path):
    """Its features went into heads of float32 as they were."""
    folder = saved(model_of('ViT').half(), tmp_path)
    (features,) = HFBackbone(folder)(image())
    assert features.dtype is torch.float32
    half = HFBackbone(folder, model_args=dict(dtype='float16'))
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('registers', [0, 4])
@pytest.mark.parametrize('size', [32, 48])
def test_official_dinov2(tmp_path, same_features, registers, gated, size):
    """The authors' file, against what timm's converter makes of it."""
    # Two thirds of 2 x 16, in multiples of 8, twice.
    options = dict(mlp_layer=timm.layers.SwiGLUPacked, mlp_ratio=3) if gated else {}
    options |= dict(init_values=0.1, act_layer=nn.SiLU if gated else nn.GELU)
    state = dict(randomised(timm_vit(**options | {'img_size': size})).state_dict())
    if registers:
        state['register_tokens'] = torch.linspace(-1, 1, 64).reshape(1, 4, 16)
    state['mask_token'] = torch.zeros(1, 16)
    if gated:
        rules = (r'\.fc1\.', '.w12.'), (r'\.fc2\.', '.w3.')
        state = renamed(state, *rules)
    torch.save(state, tmp_path / 'dinov2.pth')
    reference = timm_vit(reg_tokens=registers, no_embed_class=registers > 0, **options)
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    reference.load_state_dict(convert(dict(state), reference, antialias=False))
    kind = 'Dinov2WithRegisters' if registers else 'Dinov2'
    model = model_of(kind, seed=5, use_swiglu_ffn=gated)
    report = filled(model, tmp_path / 'dinov2.pth')
    assert not report.fresh
    assert bool(report.resized) == (size == 48)
    expected = one_epsilon(reference).forward_features(image())
    same_features(hidden(model), expected, 1e-5, f'{kind} | transformers | timm')
    # And from there back, by the names in memory.
    torch.save(model.state_dict(), tmp_path / 'memory.pth')
    again = timm_vit(reg_tokens=registers, no_embed_class=registers > 0, **options)
    filled(again, tmp_path / 'memory.pth')
    ours = again.forward_features(image())
    same_features(ours, expected, 1e-5, f'transformers {kind} | timm | timm')


def test_official_dinov2_in_chunks(tmp_path):
    """As its training saves it: ``blocks.1.1`` is block 1, of chunk 1."""
    state = dict(randomised(timm_vit(init_values=0.1)).state_dict())
    state['mask_token'] = torch.ones(1, 16)
    chunks = {f'backbone.{k}': t for k, t in state.items()}
    chunks = renamed(chunks, (r'\.blocks\.(\d+)\.', r'.blocks.\1.\1.'))
    found = []
    for name, content in (('plain', state), ('chunks', {'teacher': chunks})):
        torch.save(content, tmp_path / f'{name}.pth')
        model = model_of('Dinov2', seed=len(found))
        filled(model, tmp_path / f'{name}.pth')
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_another_width_is_refused(tmp_path):
    folder = saved(model_of('ViT'), tmp_path)
    model = model_of('ViT', hidden_size=24)
    with pytest.raises(WeightsError, match='does not fit transformers ViTModel'):
        load_base_weights(model, folder)
    with pytest.raises(WeightsError, match='does not fit transformers Dinov2Model'):
        load_base_weights(model_of('Dinov2'), folder)


# --- into the other packages ----------------------------------------------------------


def hidden(model: nn.Module, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=image(size)).last_hidden_state


def timm_vit(**kwargs) -> nn.Module:
    return timm.models.VisionTransformer(**{**TIMM, **kwargs})


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('ViT', {}),
        ('Dinov2', {'init_values': 1.0}),
        ('CLIPVision', {'pre_norm': True, 'act_layer': timm.layers.QuickGELU}),
        (
            'SiglipVision',
            {
                'class_token': False,
                'global_pool': 'map',
                'act_layer': timm.layers.GELUTanh,
            },
        ),
    ],
)
def test_plain_vits_in_timm(tmp_path, same_features, kind, options):
    reference = model_of(kind)
    model = timm_vit(**options)
    filled(model, saved(reference, tmp_path))
    ours = model.forward_features(image())
    expected = hidden(reference)
    if kind == 'CLIPVision':
        expected = reference.post_layernorm(expected)
    same_features(ours, expected, 1e-5, f'transformers {kind} | timm | transformers')
    if kind == 'SiglipVision':
        ours = model(image())
        expected = reference(pixel_values=image()).pooler_output
        same_features(ours, expected, 1e-5, 'SigLIP, pooled | timm | transformers')


def test_clip_in_mmpretrain(tmp_path, same_features):
    reference = model_of('CLIPVision')
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    model = mmpretrain_backbones.VisionTransformer(
        arch=arch,
        img_size=32,
        patch_size=8,
        pre_norm=True,
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
    )
    filled(model, saved(reference, tmp_path))
    expected = reference(pixel_values=image()).pooler_output
    same_features(model(image()), expected, 1e-5, 'CLIP | mmpretrain | transformers')


@pytest.mark.parametrize('gated', [False, True])
def test_dinov3_in_timm(tmp_path, same_features, gated):
    options = dict(use_gated_mlp=True, hidden_act='silu') if gated else {}
    reference = model_of('DINOv3ViT', **options)
    ours = dict(swiglu_mlp=True, swiglu_align_to=1) if gated else {}
    model = Eva(
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type='dinov3',
        rope_temperature=100,
        rope_rotate_half=True,
        num_reg_tokens=2,
        init_values=1.0,
        use_fc_norm=False,
        dynamic_img_size=True,
        qkv_bias=True,
        **ours,
        **TIMM,
    )
    report = filled(model, saved(reference, tmp_path))
    assert 'DINOv3' in report.layout
    same_features(
        model.forward_features(image()),
        hidden(reference),
        1e-5,
        'DINOv3 | timm Eva | transformers',
    )
    without = Eva(
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type='dinov3',
        num_reg_tokens=2,
        init_values=1.0,
        use_fc_norm=False,
        qkv_bias=False,
        **ours,
        **TIMM,
    )
    with pytest.raises(WeightsError, match='build the model with qkv_bias=True'):
        load_base_weights(without, tmp_path)


def test_beit_in_the_other_packages(tmp_path, same_features):
    reference = model_of('Beit')
    tokens = hidden(reference)
    folder = saved(reference, tmp_path)
    model = mmseg_backbones.BEiT(
        img_size=32,
        patch_size=8,
        embed_dims=16,
        num_layers=2,
        num_heads=2,
        mlp_ratio=2,
        qv_bias=True,
        init_values=0.1,
    )
    report = filled(model, folder)
    assert report.layout == 'transformers BEiT'
    grid = tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    same_features(model(image()), grid, 1e-5, 'BEiT | mmseg | transformers')
    model = Beit(use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1, **TIMM)
    filled(model, folder)
    same_features(
        model.forward_features(image()), tokens, 1e-5, 'BEiT | timm Beit | transformers'
    )


def test_swin_in_mmpretrain(tmp_path, same_features):
    reference = model_of('Swin')
    arch = dict(embed_dims=8, **DEPTHS)
    model = mmpretrain_backbones.SwinTransformer(arch=arch, img_size=128, window_size=4)
    report = filled(model, saved(reference, tmp_path))
    assert report.layout == 'transformers Swin'
    expected = hidden(reference, 128).transpose(1, 2).unflatten(2, (4, 4))
    same_features(model(image(128)), expected, 1e-4, 'Swin | mmpretrain | transformers')


def test_segformer_in_mmseg(tmp_path, same_features):
    reference = model_of('Segformer')
    model = mmseg_backbones.MixVisionTransformer(
        embed_dims=8,
        num_stages=2,
        num_layers=[1, 2],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[2, 1],
        mlp_ratio=2,
        qkv_bias=True,
        out_indices=(0, 1),
    )
    torch.save(reference.state_dict(), tmp_path / 'memory.pth')
    expected = hidden(reference, 64)
    for path in (saved(reference, tmp_path / 'hub'), tmp_path / 'memory.pth'):
        report = filled(model, path)
        assert report.layout == 'transformers SegFormer'
        same_features(
            model(image(64))[-1], expected, 1e-5, 'SegFormer | mmseg | transformers'
        )
