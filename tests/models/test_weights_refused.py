"""Bad weight files: one line that says what is wrong, and nothing has moved."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_weights import (
    DEPTH,
    HIDDEN,
    WIDTH,
    Payload,
    clip_reference,
    google_arrays,
    mm_swin,
    mm_vit,
    module_of,
    official_swin,
    openai_state,
    refuse,
    scripted,
    timm_swin,
    timm_vit,
    video_mae,
)
from torch import nn

from mmpetl.models.weights import WeightsError, WeightsNotFoundError, load_base_weights


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
    both = {f'{who}.{k}': v for who in ('left', 'right') for k, v in state.items()}
    torch.save(both, path)
    refuse(mm_vit(), path, "2 trunks (below 'left.' and 'right.')")


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


def test_another_number_of_heads(tmp_path):
    """Flax's shapes tell it; the tensors of torch are alike."""
    path = tmp_path / 'vit.npz'
    np.savez(path, **google_arrays())
    arch = dict(num_layers=DEPTH, num_heads=2, feedforward_channels=HIDDEN)
    refuse(mm_vit(arch=dict(arch, embed_dims=WIDTH)), path, '4 heads', '2 in the model')
    refuse(timm_vit(num_heads=2), path, '4 heads', '2 in the model')


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


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel', (2, 2, 2)),
        ('Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel', (3,)),
        ('embedding/kernel', (8, 8, 3)),
    ],
)
def test_known_names_of_other_shapes(tmp_path, name, shape):
    path = tmp_path / 'vit.npz'
    np.savez(path, **google_arrays() | {name: np.zeros(shape, np.float32)})
    refuse(mm_vit(), path, 'Google npz names, but not their shapes')


@pytest.mark.parametrize('shape', [(WIDTH,), (17, WIDTH), (1, 1, WIDTH), (1, 17, 6)])
def test_positions_of_other_axes(tmp_path, shape):
    path = tmp_path / 'vit.pth'
    torch.save(timm_vit().state_dict() | {'pos_embed': torch.zeros(shape)}, path)
    refuse(mm_vit(), path, 'pos_embed (')
    torch.save(timm_vit().state_dict() | {'cls_token': torch.zeros(WIDTH)}, path)
    refuse(mm_vit(), path, 'cls_token (48,) in the file')


def test_a_part_of_a_fused_tensor_is_not_lost(tmp_path):
    """A model without the bias took a file that has it for query and value alone."""
    path = tmp_path / 'vit.npz'
    arrays = google_arrays()
    for name in [n for n in arrays if n.endswith('/key/bias')]:
        del arrays[name]
    np.savez(path, **arrays)
    refuse(
        timm_vit(qkv_bias=False), path, '2 of its keys have no place', '2 of 3 parts'
    )


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
