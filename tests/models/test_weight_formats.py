"""Files that are told from others by their names: big_vision, transformers, shards."""

from __future__ import annotations

import importlib
import json
import re

import mmaction.models as mmaction
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_weights import (
    DEPTH,
    WIDTH,
    google_arrays,
    image,
    mm_swin,
    mm_vit,
    official_swin,
    randomise,
    refuse,
    timm_swin,
    timm_vit,
    video_mae,
    video_swin,
)

from mmpetl.core import PETLError, injection_of
from mmpetl.models import petl_backbone
from mmpetl.models.weights import (
    WeightsNotFoundError,
    describe_file,
    load_base_weights,
)


def big_vision_arrays() -> dict[str, np.ndarray]:
    """Google's arrays under the names of big_vision: params/, counted from 0."""
    arrays = {}
    for name, array in google_arrays().items():
        name = name.replace('Transformer/posembed_input/', '')
        if name == 'pos_embedding':
            array = array[:, 1:]
        name = name.replace('/LayerNorm_2/', '/LayerNorm_1/')
        name = name.replace('MultiHeadDotProductAttention_1', '_MHA_')
        name = name.replace('_MHA_', 'MultiHeadDotProductAttention_0')
        arrays['params/' + name.replace('MlpBlock_3', 'MlpBlock_0')] = array
    arrays['opt/count'] = np.zeros((), np.int32)
    return arrays


@pytest.mark.parametrize('host', ['mmpretrain', 'timm'])
def test_big_vision_npz_gives_the_features_timm_reads_from_it(
    tmp_path, same_features, host
):
    path = tmp_path / 'bv.npz'
    np.savez(path, **big_vision_arrays())
    reference = timm_vit(num_classes=11, no_embed_class=True)
    reference.load_pretrained(str(path))
    expected = reference.forward_features(image())[:, 0]
    model = mm_vit() if host == 'mmpretrain' else randomise(timm_vit(), 5)
    report = load_base_weights(model, path)
    ours = model(image()) if host == 'mmpretrain' else model.forward_features(image())
    ours = ours[0] if host == 'mmpretrain' else ours[:, 0]
    what = f'big_vision npz | {host} ViT | timm'
    same_features(ours, expected, 1e-6, what)
    assert report.layout == 'big_vision npz'
    assert report.head_classes == 11
    assert describe_file(path).layout == 'big_vision npz'


def test_big_vision_with_its_blocks_in_one_is_named(tmp_path):
    arrays = big_vision_arrays()
    stacked = {}
    for name, array in arrays.items():
        new = re.sub('encoderblock_0/', 'encoderblock/', name)
        if 'encoderblock_1' not in name:
            stacked[new] = np.stack([array] * DEPTH) if new != name else array
    np.savez(tmp_path / 'bv.npz', **stacked)
    refuse(mm_vit(), tmp_path / 'bv.npz', 'a ViT of big_vision', 'scan=True')


def newest(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that transformers has for ViT from release 5 on."""
    rules = (
        ('encoder.layer.', 'layers.'),
        ('attention.attention.query', 'attention.q_proj'),
        ('attention.attention.key', 'attention.k_proj'),
        ('attention.attention.value', 'attention.v_proj'),
        ('attention.output.dense', 'attention.o_proj'),
        ('intermediate.dense', 'mlp.fc1'),
        ('output.dense', 'mlp.fc2'),
    )
    named = {}
    for name, tensor in state.items():
        for old, new in rules:
            name = name.replace(old, new)
        named[name] = tensor
    return named


def transformers_state(model, prefix: str, dinov2: bool) -> dict[str, torch.Tensor]:
    """timm's state in the names that transformers has for ViT and DINOv2."""
    plain = {
        'cls_token': 'embeddings.cls_token',
        'pos_embed': 'embeddings.position_embeddings',
        'patch_embed.proj.weight': 'embeddings.patch_embeddings.projection.weight',
        'patch_embed.proj.bias': 'embeddings.patch_embeddings.projection.bias',
        'norm.weight': 'layernorm.weight',
        'norm.bias': 'layernorm.bias',
    }
    inside = {
        'norm1': 'norm1' if dinov2 else 'layernorm_before',
        'norm2': 'norm2' if dinov2 else 'layernorm_after',
        'attn.proj': 'attention.output.dense',
        'mlp.fc1': 'mlp.fc1' if dinov2 else 'intermediate.dense',
        'mlp.fc2': 'mlp.fc2' if dinov2 else 'output.dense',
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if name in plain:
            state[prefix + plain[name]] = tensor
            continue
        _, block, rest = name.split('.', 2)
        start = f'{prefix}encoder.layer.{block}.'
        stem, _, leaf = rest.rpartition('.')
        if stem == 'attn.qkv':
            rows = tensor.chunk(3)
            for part, row in zip(('query', 'key', 'value'), rows, strict=True):
                state[f'{start}attention.attention.{part}.{leaf}'] = row.clone()
        elif stem.startswith('ls'):
            state[f'{start}layer_scale{stem[2]}.lambda1'] = tensor
        else:
            state[f'{start}{inside[stem]}.{leaf}'] = tensor
    return state


@pytest.mark.parametrize('kind', ['ViT', 'ViT of release 5', 'DINOv2'])
def test_transformers_names_give_timm_features(tmp_path, same_features, kind):
    dinov2 = kind == 'DINOv2'
    reference = timm_vit(init_values=0.1 if dinov2 else None)
    state = transformers_state(reference, '' if dinov2 else 'vit.', dinov2)
    if dinov2:
        state['embeddings.mask_token'] = torch.zeros(1, WIDTH)
    else:
        state['classifier.weight'] = torch.zeros(7, WIDTH)
    if kind.endswith('5'):
        state = newest(state)
    save_file(state, tmp_path / 'model.safetensors')
    host = mm_vit(layer_scale_init_value=0.1 if dinov2 else 0.0)
    report = load_base_weights(host, tmp_path / 'model.safetensors')
    expected = reference.forward_features(image())[:, 0]
    what = f'{kind}, transformers keys | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)
    assert report.layout == 'transformers ViT'


STEM = 'embeddings.patch_embeddings.projection.weight'
NAMED = {
    'VideoMAE': {f'videomae.{STEM}': (8, 3, 2, 4, 4)},
    'DINOv3': {
        'embeddings.patch_embeddings.weight': (8, 3, 4, 4),
        'embeddings.register_tokens': (1, 4, 8),
    },
}


@pytest.mark.parametrize('kind', NAMED)
def test_other_models_of_transformers_are_named(tmp_path, kind):
    state = {name: torch.zeros(shape) for name, shape in NAMED[kind].items()}
    save_file(state, tmp_path / 'model.safetensors')
    refuse(
        mm_vit(),
        tmp_path / 'model.safetensors',
        kind,
        'in the names of transformers',
        "use the authors' file or timm's",
    )


# --- shards ------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """A ViT in two shards and their index, and the model it came from."""
    reference = timm_vit()
    state = reference.state_dict()
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        name = f'model-{i:05}-of-00002.safetensors'
        save_file({key: state[key] for key in part}, tmp_path / name)
        weight_map |= dict.fromkeys(part, name)
    path = tmp_path / 'model.safetensors.index.json'
    path.write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
    return path, reference


def test_an_index_reads_all_its_shards(shards, same_features):
    path, reference = shards
    host = mm_vit()
    report = load_base_weights(host, path)
    expected = reference.forward_features(image())[:, 0]
    same_features(host(image()), expected, 1e-6, 'timm, shards | mmpretrain ViT | timm')
    assert report.container == '2 shards'
    # The folder stands for its index.
    assert load_base_weights(mm_vit(), path.parent).sha256 == report.sha256
    # The digest covers the shards, too.
    shard = path.parent / 'model-00002-of-00002.safetensors'
    state = {k: v.clone() for k, v in reference.state_dict().items()}
    state['norm.bias'] += 1
    names = sorted(state)[9:]
    save_file({k: state[k] for k in names}, shard)
    assert load_base_weights(mm_vit(), path).sha256 != report.sha256


def test_shards_that_are_incomplete_or_named_alone(shards):
    path, _ = shards
    shard = path.parent / 'model-00002-of-00002.safetensors'
    refuse(mm_vit(), shard, 'one of 2 shards', 'model.safetensors.index.json')
    shard.unlink()
    refuse(mm_vit(), path, 'the index of 2 shards', f'{shard.name} is not beside it')
    path.write_text(json.dumps({'weight_map': {'a': '../../elsewhere.safetensors'}}))
    refuse(mm_vit(), path, 'is JSON, but no index of shards')
    path.write_text('{"architectures": ["ViTModel"]}')
    refuse(mm_vit(), path, 'is JSON, but no index of shards')


@pytest.mark.parametrize('length', [0x1080, 0x4B50], ids=['pickle', 'zip'])
def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path, length):
    path = tmp_path / 'vit.safetensors'
    save_file(timm_vit().state_dict(), path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], 'little')
    assert size <= length
    header = content[8 : 8 + size].ljust(length)
    path.write_bytes(length.to_bytes(8, 'little') + header + content[8 + size :])
    assert load_base_weights(mm_vit(), path).container == 'safetensors'


@pytest.mark.parametrize(
    ('content', 'part'),
    [
        (b'\x89HDF\r\n\x1a\n' + bytes(20), 'an HDF5 file'),
        (b'GGUF' + bytes(20), 'a GGUF file'),
        (b'\x1f\x8b\x08' + bytes(20), 'packed with gzip; unpack it'),
    ],
)
def test_files_of_other_worlds_are_named(tmp_path, content, part):
    path = tmp_path / 'vit.bin'
    path.write_bytes(content)
    refuse(mm_vit(), path, part)


# --- which of several ----------------------------------------------------------------


def test_two_models_that_learn_from_each_other_must_be_chosen_from(tmp_path):
    student, teacher = timm_vit(), randomise(timm_vit(), 8)
    path = tmp_path / 'dino.pth'

    def wrapped(model):
        state = {f'module.backbone.{k}': v for k, v in model.state_dict().items()}
        return {**state, 'module.head.last_layer.weight': torch.zeros(4, 4)}

    content = {
        'student': wrapped(student),
        'teacher': wrapped(teacher),
        'optimizer': {'state': {}, 'param_groups': []},
        'epoch': 3,
        'dino_loss': {'center': torch.zeros(1, 4)},
    }
    torch.save(content, path)
    refuse(
        mm_vit(),
        path,
        'holds 2 sets of weights (student, teacher)',
        'does not say which is the model',
        'checkpoint_part',
    )
    refuse(mm_vit(), path, "has no part 'ema': it holds student, teacher", part='ema')
    for name, model in (('student', student), ('teacher', teacher)):
        host = mm_vit()
        report = load_base_weights(host, path, part=name)
        assert torch.equal(host.pos_embed, model.pos_embed)
        assert report.container == f'torch zip, {name}'
        assert report.notes == ()
    flat = {
        f'{name}.{k}': v
        for name, model in (('student', student), ('teacher', teacher))
        for k, v in model.state_dict().items()
    }
    save_file(flat, tmp_path / 'flat.safetensors')
    refuse(mm_vit(), tmp_path / 'flat.safetensors', '2 sets of weights')
    host = mm_vit()
    load_base_weights(host, tmp_path / 'flat.safetensors', part='teacher')
    assert torch.equal(host.pos_embed, teacher.pos_embed)


@pytest.mark.parametrize('average', ['state_dict_ema', 'ema_state_dict', 'model_ema'])
def test_an_average_beside_the_model_is_said_and_can_be_taken(tmp_path, average):
    plain, mean = timm_vit(), randomise(timm_vit(), 8)
    path = tmp_path / 'vit.pth.tar'
    torch.save(
        {'epoch': 1, 'state_dict': plain.state_dict(), average: mean.state_dict()}, path
    )
    host = mm_vit()
    report = load_base_weights(host, path)
    assert torch.equal(host.pos_embed, plain.pos_embed)
    (note,) = report.notes
    assert f"taken from 'state_dict'; the file also holds {average}" in note
    assert f"part='{average}'" in note
    assert note in report.summary()
    report = load_base_weights(host, path, part=average)
    assert torch.equal(host.pos_embed, mean.pos_embed)
    assert report.notes == ()


def test_a_key_that_nobody_else_uses_is_followed_or_asked_about(tmp_path):
    one, two = timm_vit(), randomise(timm_vit(), 8)
    path = tmp_path / 'own.pth'
    torch.save({'net': one.state_dict(), 'step': 5}, path)
    assert load_base_weights(mm_vit(), path).container == 'torch zip, net'
    torch.save({'net': one.state_dict(), 'net_b': two.state_dict()}, path)
    refuse(mm_vit(), path, 'holds 2 sets of weights (net, net_b)')
    host = mm_vit()
    load_base_weights(host, path, part='net_b')
    assert torch.equal(host.pos_embed, two.pos_embed)


def test_settings_are_not_taken_for_the_model(tmp_path):
    path = tmp_path / 'run.pth'
    settings = dict(lr=0.1, depth=2)
    torch.save({'params': settings, 'weights': timm_vit().state_dict()}, path)
    assert 'weights' in load_base_weights(mm_vit(), path).container


def test_one_of_two_trunks_can_be_named(tmp_path):
    one, two = timm_vit(), randomise(timm_vit(), 8)
    state = {f'backbone.{k}': v for k, v in one.state_dict().items()}
    state |= {f'momentum_encoder.{k}': v for k, v in two.state_dict().items()}
    path = tmp_path / 'moco.pth'
    torch.save({'state_dict': state}, path)
    refuse(mm_vit(), path, 'holds 2 trunks', 'checkpoint_part')
    host = mm_vit()
    load_base_weights(host, path, part='momentum_encoder')
    assert torch.equal(host.pos_embed, two.pos_embed)


# --- an image Swin for a Video Swin ---------------------------------------------------


@pytest.mark.parametrize('window', [(2, 4, 4), (4, 7, 7)], ids=['same', 'resized'])
def test_an_image_swin_is_inflated_as_upstream_does_it(tmp_path, window):
    state = official_swin(timm_swin())
    path = tmp_path / 'swin.pth'
    torch.save({'model': state}, path)
    args = dict(
        arch=dict(embed_dims=16, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 4)),
        patch_size=(2, 4, 4),
        window_size=window,
    )
    theirs = mmaction.SwinTransformer3D(**args, pretrained=str(path))
    theirs.init_weights()
    ours = video_swin(window_size=window)
    report = load_base_weights(ours, path, inflate=True)
    expected = dict(theirs.named_parameters())
    assert set(report.matched) == set(expected)
    for name, param in ours.named_parameters():
        assert torch.allclose(param, expected[name], atol=1e-6), name
    assert any('inflated to patches of 2 frames' in note for note in report.notes)


def test_a_clip_that_stands_still_looks_like_its_picture(tmp_path):
    reference = timm_swin()
    path = tmp_path / 'swin.pth'
    torch.save({'model': official_swin(reference)}, path)
    ours = video_swin(window_size=(1, 4, 4))
    load_base_weights(ours, path, inflate=True)
    still = image(128)[:, :, None].expand(-1, -1, 2, -1, -1)
    with torch.no_grad():
        features = ours(still)[:, :, 0]
        expected = reference.forward_features(image(128)).permute(0, 3, 1, 2)
    assert expected.std() > 0.05
    assert torch.allclose(features, expected, atol=1e-4)


def video_config(**kwargs) -> dict:
    return dict(
        type='mmaction.SwinTransformer3D',
        arch=dict(embed_dims=16, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 4)),
        patch_size=(2, 4, 4),
        window_size=(2, 4, 4),
        **kwargs,
    )


@pytest.mark.parametrize('named', ['checkpoint', 'pretrained'])
def test_the_builder_inflates_where_upstream_would(tmp_path, named):
    path = tmp_path / 'swin.pth'
    torch.save({'model': official_swin(timm_swin())}, path)
    theirs = mmaction.SwinTransformer3D(
        **{k: v for k, v in video_config().items() if k != 'type'}, pretrained=str(path)
    )
    theirs.init_weights()
    own = {'pretrained': str(path)} if named == 'pretrained' else {}
    ours = petl_backbone(
        video_config(**own),
        'LoRA',
        checkpoint=None if own else path,
    )
    for name, param in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(name), param, atol=1e-6), name
    assert injection_of(ours)[1].source['checkpoint'] == 'swin.pth'


def test_inflation_is_asked_for_and_says_what_it_needs(tmp_path):
    path = tmp_path / 'swin.pth'
    torch.save({'model': official_swin(timm_swin())}, path)
    refuse(
        video_swin(),
        path,
        'holds an image Swin',
        'the model is a Video Swin',
        'pretrained2d=True of the backbone inflates it',
    )
    refuse(mm_vit(), path, 'the model is an image ViT')
    with pytest.raises(PETLError, match='wants to inflate the weights of an image Sw'):
        petl_backbone(video_config(pretrained2d=True), 'LoRA')
    # Without a file its default inflates nothing.
    unfilled = petl_backbone(video_config(), 'LoRA')
    assert unfilled.pretrained2d is False
    assert injection_of(unfilled)[1].source['checkpoint'] is None
    # A Video Swin's own file needs none.
    torch.save(video_swin().state_dict(), path)
    ours = petl_backbone(video_config(), 'LoRA', checkpoint=path)
    assert torch.equal(
        ours.patch_embed.proj.weight, video_swin().patch_embed.proj.weight
    )


# --- what the builder says of the base ------------------------------------------------


VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
    img_size=32,
    patch_size=8,
)


@pytest.fixture
def said(monkeypatch):
    """Lines that the builder logs."""
    lines = []
    module = importlib.import_module('mmpetl.models.petl_backbone')
    monkeypatch.setattr(module, 'print_log', lambda text, **_: lines.append(text))
    return lines


@pytest.mark.parametrize('as_list', [False, True], ids=['dict', 'list'])
def test_a_base_from_init_cfg_is_not_called_random(tmp_path, said, as_list):
    source = petl_backbone(VIT)
    path = tmp_path / 'vit.pth'
    torch.save({'state_dict': source.state_dict()}, path)
    said.clear()
    init = dict(type='Pretrained', checkpoint=str(path))
    ours = petl_backbone({**VIT, 'init_cfg': [init] if as_list else init}, 'LoRA')
    text = '\n'.join(said)
    assert 'RANDOM' not in text
    total = len(list(source.parameters()))
    assert f'{total} of {total} tensors of VisionTransformer from {path}' in text
    assert injection_of(ours)[1].source['checkpoint'] == 'vit.pth'


def test_an_init_cfg_that_fills_little_is_refused(tmp_path):
    path = tmp_path / 'vit.pth'
    torch.save({'state_dict': {'other.weight': torch.zeros(1)}}, path)
    init = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(PETLError, match=r'fills 0 of \d+ tensors') as stop:
        petl_backbone({**VIT, 'init_cfg': init}, 'LoRA')
    assert '\n' not in str(stop.value)
    with pytest.raises(PETLError, match='name the base weights once'):
        petl_backbone({**VIT, 'init_cfg': init}, 'LoRA', checkpoint=path)


def test_videomaes_forgotten_pretrained_is_refused(tmp_path):
    path = tmp_path / 'video.pth'
    torch.save(video_mae().state_dict(), path)
    config = dict(
        type='mmaction.VisionTransformer',
        img_size=32,
        patch_size=8,
        embed_dims=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_frames=4,
    )
    with pytest.raises(PETLError, match='as upstream loads it, fills 0 of 30 tensors'):
        petl_backbone({**config, 'pretrained': str(path)}, 'LoRA')


def test_a_random_base_is_still_called_random(said):
    petl_backbone(VIT, 'LoRA')
    assert any('THE BASE IS RANDOM' in line for line in said)


def test_a_backbone_that_is_passed_in_keeps_its_weights(said):
    host = mm_swin()
    before = {k: v.clone() for k, v in host.state_dict().items()}
    petl_backbone(host, 'LoRA')
    for key, value in before.items():
        assert torch.equal(host.state_dict()[key], value)
    assert not any('RANDOM' in line for line in said)


def test_a_missing_file_is_found_missing_behind_a_home_sign(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(WeightsNotFoundError, match=r'No weight file at .*/no\.pth'):
        load_base_weights(mm_vit(), '~/no.pth')
    torch.save(timm_vit().state_dict(), tmp_path / 'vit.pth')
    for name in ('~/vit.pth', f'file://{tmp_path}/vit.pth', tmp_path / 'vit.pth'):
        assert load_base_weights(mm_vit(), name).matched


def test_two_trunks_side_by_side_cannot_be_named(tmp_path):
    state = timm_vit().state_dict()
    state['patch_embed.projection.weight'] = state['patch_embed.proj.weight']
    path = tmp_path / 'both.pth'
    torch.save(state, path)
    refuse(mm_vit(), path, 'the names of 2 trunks side by side', 'a file of its own')
