"""Names of transformers' files, from models that need no transformers.

``test_transformers_files.py`` holds the same against its own models.
"""

from __future__ import annotations

import pytest
import timm
import torch
from official_files import renamed
from safetensors.torch import save_file
from small_weights import (
    clip_host,
    clip_reference,
    image,
    mm_swin,
    mm_vit,
    official_swin,
    refuse,
    timm_swin,
    timm_vit,
)

from mmpetl.models.weights import WeightsError, load_base_weights
from mmpetl.models.weights.folders import file_in
from mmpetl.models.weights.transformers_names import (
    beit_of_transformers,
    dinov3_of_transformers,
    segformer_of_transformers,
)


def split(state: dict, marker: str, names: tuple[str, ...]) -> dict:
    """Rows of ``X<marker>.weight`` as tensors ``X<name>.weight``."""
    result = {}
    for name, tensor in state.items():
        if marker in name:
            for part, rows in zip(names, tensor.chunk(len(names)), strict=True):
                result[name.replace(marker, part)] = rows.contiguous()
        else:
            result[name] = tensor
    return result


def clip_names(state: dict) -> dict:
    state = renamed(
        state,
        (r'^cls_token$', 'embeddings.class_embedding'),
        (r'^pos_embed$', 'embeddings.position_embedding.weight'),
        (r'^patch_embed\.proj\.', 'embeddings.patch_embedding.'),
        (r'^norm_pre\.', 'pre_layrnorm.'),
        (r'^norm\.', 'post_layernorm.'),
        (r'^blocks\.', 'encoder.layers.'),
        (r'\.norm([12])\.', r'.layer_norm\1.'),
        (r'\.attn\.', '.self_attn.'),
        (r'\.self_attn\.proj\.', '.self_attn.out_proj.'),
        (r'^attn_pool\.latent$', 'head.probe'),
        (r'^attn_pool\.norm\.', 'head.layernorm.'),
        (r'^attn_pool\.mlp\.', 'head.mlp.'),
        (r'^attn_pool\.proj\.', 'head.attention.out_proj.'),
    )
    for kind in ('weight', 'bias'):
        if f'attn_pool.q.{kind}' in state:
            rows = [state.pop(f'attn_pool.{part}.{kind}') for part in ('q', 'kv')]
            state[f'head.attention.in_proj_{kind}'] = torch.cat(rows)
    for name in ('embeddings.class_embedding', 'embeddings.position_embedding.weight'):
        if name in state:
            state[name] = state[name].squeeze(0).squeeze(0)
    state = split(state, '.qkv.', ('.q_proj.', '.k_proj.', '.v_proj.'))
    return {f'vision_model.{k}': t for k, t in state.items()}


def test_clip(tmp_path, same_features):
    reference = clip_reference()
    state = clip_names(reference.state_dict())
    state['vision_model.embeddings.position_ids'] = torch.arange(17)[None]
    state['text_model.encoder.layers.0.self_attn.q_proj.weight'] = torch.zeros(2, 2)
    state['visual_projection.weight'] = torch.zeros(3, 48)
    path = tmp_path / 'model.safetensors'
    save_file(state, path)
    host = clip_host()
    report = load_base_weights(host, path)
    assert report.layout == 'transformers CLIP'
    assert len(report.dropped) == 3
    expected = reference.forward_features(image())[:, 0]
    what = 'transformers CLIP | mmpretrain ViT | timm'
    same_features(host(image()), expected, 1e-6, what)


def test_siglip(tmp_path, same_features):
    options = dict(class_token=False, global_pool='map')
    reference = timm_vit(**options)
    path = tmp_path / 'model.safetensors'
    save_file(clip_names(reference.state_dict()), path)
    host = timm.models.VisionTransformer(
        embed_dim=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        img_size=32,
        patch_size=8,
        num_classes=0,
        **options,
    )
    report = load_base_weights(host.eval(), path)
    assert report.layout == 'transformers SigLIP'
    same_features(
        host(image()), reference(image()), 0, 'transformers SigLIP | timm | timm'
    )
    host = mm_vit(with_cls_token=False, out_type='avg_featmap')
    report = load_base_weights(host, path)
    pooling = 'attention pooling, which the model does not have'
    assert dict(report.dropped)['vision_model.head.probe'] == pooling
    assert torch.equal(host.ln1.weight, reference.norm.weight)


def test_swin(tmp_path, same_features):
    reference = timm_swin()
    state = renamed(
        official_swin(reference),
        (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
        (r'^patch_embed\.norm\.', 'embeddings.norm.'),
        (r'^norm\.', 'layernorm.'),
        (r'^layers\.', 'encoder.layers.'),
        (r'\.norm1\.', '.layernorm_before.'),
        (r'\.norm2\.', '.layernorm_after.'),
        (r'\.attn\.proj\.', '.attention.output.dense.'),
        (r'\.attn\.', '.attention.self.'),
        (r'\.mlp\.fc1\.', '.intermediate.dense.'),
        (r'\.mlp\.fc2\.', '.output.dense.'),
        (r'^(?!head)', 'swin.'),
        (r'^head\.', 'classifier.'),
    )
    state = split(state, '.qkv.', ('.query.', '.key.', '.value.'))
    state = {k: t for k, t in state.items() if not k.endswith('attn_mask')}
    path = tmp_path / 'model.safetensors'
    save_file(state, path)
    host = mm_swin()
    report = load_base_weights(host, path)
    assert report.layout == 'transformers Swin'
    assert report.head_classes == 21
    expected = reference.forward_features(image(128)).permute(0, 3, 1, 2)
    what = 'transformers Swin | mmpretrain Swin | timm'
    same_features(host(image(128)), expected, 1e-5, what)
    table = torch.randn(1, 32 * 32, 16)
    save_file(state | {'swin.embeddings.position_embeddings': table}, path)
    host = mm_swin(use_abs_pos_embed=True)
    load_base_weights(host, path)
    assert torch.equal(host.absolute_pos_embed, table)


def drawn(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}


def same(ours: dict, expected: dict) -> bool:
    assert set(ours) == set(expected)
    return all(torch.equal(ours[k], t) for k, t in expected.items())


def test_segformer():
    """Every name of a block, of its stage and of a file, as release 4 wrote them."""
    block = 'encoder.block.1.0.'
    file = drawn(
        {
            'encoder.patch_embeddings.1.proj.weight': (4, 2, 3, 3),
            'encoder.patch_embeddings.1.layer_norm.weight': (4,),
            f'{block}layer_norm_1.weight': (4,),
            f'{block}attention.self.query.weight': (4, 4),
            f'{block}attention.self.key.weight': (4, 4),
            f'{block}attention.self.value.weight': (4, 4),
            f'{block}attention.self.sr.weight': (4, 4, 2, 2),
            f'{block}attention.self.layer_norm.weight': (4,),
            f'{block}attention.output.dense.weight': (4, 4),
            f'{block}layer_norm_2.bias': (4,),
            f'{block}mlp.dense1.weight': (8, 4),
            f'{block}mlp.dwconv.dwconv.weight': (8, 1, 3, 3),
            f'{block}mlp.dense2.bias': (4,),
            'encoder.layer_norm.1.bias': (4,),
        }
    )
    *_, layer_norm = file.values()
    key, value = (file[f'{block}attention.self.{n}.weight'] for n in ('key', 'value'))
    expected = {
        'patch_embed2.proj.weight': file['encoder.patch_embeddings.1.proj.weight'],
        'patch_embed2.norm.weight': file[
            'encoder.patch_embeddings.1.layer_norm.weight'
        ],
        'block2.0.norm1.weight': file[f'{block}layer_norm_1.weight'],
        'block2.0.attn.q.weight': file[f'{block}attention.self.query.weight'],
        'block2.0.attn.kv.weight': torch.cat([key, value]),
        'block2.0.attn.sr.weight': file[f'{block}attention.self.sr.weight'],
        'block2.0.attn.norm.weight': file[f'{block}attention.self.layer_norm.weight'],
        'block2.0.attn.proj.weight': file[f'{block}attention.output.dense.weight'],
        'block2.0.norm2.bias': file[f'{block}layer_norm_2.bias'],
        'block2.0.mlp.fc1.weight': file[f'{block}mlp.dense1.weight'],
        'block2.0.mlp.dwconv.dwconv.weight': file[f'{block}mlp.dwconv.dwconv.weight'],
        'block2.0.mlp.fc2.bias': file[f'{block}mlp.dense2.bias'],
        'norm2.bias': layer_norm,
    }
    assert same(segformer_of_transformers(file), expected)


def test_beit():
    block = 'encoder.layer.0.'
    table = 'relative_position_bias.relative_position_bias_table'
    file = drawn(
        {
            'embeddings.cls_token': (1, 1, 4),
            'embeddings.patch_embeddings.projection.weight': (4, 3, 2, 2),
            f'{block}lambda_1': (4,),
            f'{block}attention.attention.query.weight': (4, 4),
            f'{block}attention.attention.query.bias': (4,),
            f'{block}attention.attention.key.weight': (4, 4),
            f'{block}attention.attention.value.weight': (4, 4),
            f'{block}attention.attention.value.bias': (4,),
            f'{block}attention.attention.{table}': (12, 2),
            f'{block}attention.output.dense.weight': (4, 4),
            f'{block}intermediate.dense.weight': (8, 4),
            f'{block}output.dense.weight': (4, 8),
            f'{block}layernorm_before.bias': (4,),
            f'{block}layernorm_after.bias': (4,),
            'pooler.layernorm.weight': (4,),
        }
    )
    attention = f'{block}attention.attention.'
    parts = [file[f'{attention}{name}.weight'] for name in ('query', 'key', 'value')]
    expected = {
        'cls_token': file['embeddings.cls_token'],
        'patch_embed.proj.weight': file[
            'embeddings.patch_embeddings.projection.weight'
        ],
        'blocks.0.gamma_1': file[f'{block}lambda_1'],
        'blocks.0.attn.qkv.weight': torch.cat(parts),
        'blocks.0.attn.q_bias': file[f'{attention}query.bias'],
        'blocks.0.attn.v_bias': file[f'{attention}value.bias'],
        'blocks.0.attn.relative_position_bias_table': file[f'{attention}{table}'],
        'blocks.0.attn.proj.weight': file[f'{block}attention.output.dense.weight'],
        'blocks.0.mlp.fc1.weight': file[f'{block}intermediate.dense.weight'],
        'blocks.0.mlp.fc2.weight': file[f'{block}output.dense.weight'],
        'blocks.0.norm1.bias': file[f'{block}layernorm_before.bias'],
        'blocks.0.norm2.bias': file[f'{block}layernorm_after.bias'],
        'fc_norm.weight': file['pooler.layernorm.weight'],
    }
    assert same(beit_of_transformers(file), expected)


@pytest.mark.parametrize('gated', [False, True])
def test_dinov3(gated):
    linears = {'up_proj': 'w2', 'down_proj': 'w3', 'gate_proj': 'w1'}
    if not gated:
        linears = {'up_proj': 'fc1', 'down_proj': 'fc2'}
    shapes = {
        'embeddings.register_tokens': (1, 2, 4),
        'embeddings.mask_token': (1, 1, 4),
        'embeddings.patch_embeddings.weight': (4, 3, 2, 2),
        'layer.0.attention.q_proj.weight': (4, 4),
        'layer.0.attention.k_proj.weight': (4, 4),
        'layer.0.attention.v_proj.weight': (4, 4),
        'layer.0.attention.q_proj.bias': (4,),
        'layer.0.attention.v_proj.bias': (4,),
        'layer.0.attention.o_proj.bias': (4,),
        'layer.0.layer_scale1.lambda1': (4,),
        'norm.weight': (4,),
    }
    shapes |= {f'layer.0.mlp.{name}.weight': (8, 4) for name in linears}
    file = drawn(shapes)
    attention = 'layer.0.attention.'
    rows = [file[f'{attention}{part}_proj.weight'] for part in 'qkv']
    query, value = (file[f'{attention}{part}_proj.bias'] for part in 'qv')
    expected = {
        'storage_tokens': file['embeddings.register_tokens'],
        'mask_token': file['embeddings.mask_token'][0],
        'patch_embed.proj.weight': file['embeddings.patch_embeddings.weight'],
        'blocks.0.attn.qkv.weight': torch.cat(rows),
        'blocks.0.attn.qkv.bias': torch.cat([query, torch.zeros(4), value]),
        'blocks.0.attn.proj.bias': file[f'{attention}o_proj.bias'],
        'blocks.0.ls1.gamma': file['layer.0.layer_scale1.lambda1'],
        'norm.weight': file['norm.weight'],
    }
    for name, own in linears.items():
        expected[f'blocks.0.mlp.{own}.weight'] = file[f'layer.0.mlp.{name}.weight']
    assert same(dinov3_of_transformers(file), expected)


# --- folders --------------------------------------------------------------------------


def test_a_folder_of_the_hub(tmp_path, same_features):
    reference = timm_vit()
    (tmp_path / 'config.json').write_text('{"architecture": "vit"}')
    refuse(mm_vit(), tmp_path, 'is a folder; a weight file is needed')
    torch.save(reference.state_dict(), tmp_path / 'pytorch_model.bin')
    assert load_base_weights(mm_vit(), tmp_path).container == 'torch zip'
    save_file(reference.state_dict(), tmp_path / 'model.safetensors')
    host = mm_vit()
    assert load_base_weights(host, tmp_path).container == 'safetensors'
    expected = reference.forward_features(image())[:, 0]
    same_features(
        host(image()), expected, 1e-6, 'folder of the hub | mmpretrain | timm'
    )


def test_a_repository_in_the_cache(tmp_path):
    root = tmp_path / 'models--timm--vit'
    for name in ('abc', 'def'):
        (root / 'snapshots' / name).mkdir(parents=True)
        save_file(timm_vit().state_dict(), root / 'snapshots' / name / FILE)
    with pytest.raises(WeightsError, match=r'2 snapshots \(snapshots/abc, snapshots/d'):
        file_in(root)
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_text('def\n')
    assert file_in(root) == root / 'snapshots' / 'def' / FILE
    assert file_in(root / 'snapshots' / 'abc') == root / 'snapshots' / 'abc' / FILE
    assert load_base_weights(mm_vit(), root).matched


FILE = 'model.safetensors'


@pytest.mark.parametrize('text', [b'\xff\xfe', b'a\0b', b'../../..', b'x' * 5000, b''])
def test_a_branch_that_names_no_snapshot_counts_for_none(tmp_path, text):
    root = tmp_path / 'models--a--b'
    (root / 'snapshots' / 'abc').mkdir(parents=True)
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_bytes(text)
    assert file_in(root) == root / 'snapshots' / 'abc'
