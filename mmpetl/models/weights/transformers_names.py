"""Names that transformers gives, read into those of the models' authors.

Files keep the names of the first release whatever wrote them
(``encoder.layer.0.attention.attention.query``); in memory, release 5 has others
(``layers.0.attention.q_proj``). Both are read: ``torch.save(model.state_dict())``
writes the second.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmpetl.models.weights.entries import (
    Entries,
    Entry,
    State,
    Tensors,
    fuse,
    rename,
    renamed,
    stack_rows,
)

PART = r'(?:self\.|attention\.)?(?P<part>[qkv])(?:uery|ey|alue|_proj)\.'
"""Query, key or value, behind the path of the attention."""

_rename_vit = rename(
    (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embeddings\.position_embeddings$', 'pos_embed'),
    (r'^embeddings\.register_tokens$', 'reg_token'),
    (r'^embeddings\.', ''),
    (r'^layernorm\.', 'norm.'),
    (r'^(?:encoder\.layer|layers)\.(\d+)\.', r'blocks.\1.'),
    (r'\.layernorm_before\.', '.norm1.'),
    (r'\.layernorm_after\.', '.norm2.'),
    (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
    (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'^(blocks\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
    (r'\.mlp\.weights_in\.', '.mlp.fc1.'),
    (r'\.mlp\.(?:weights_out|down_proj)\.', '.mlp.fc2.'),
)
_rename_clip = rename(
    (r'^embeddings\.class_embedding$', 'cls_token'),
    (r'^embeddings\.patch_embedding\.', 'patch_embed.proj.'),
    (r'^embeddings\.position_embedding\.weight$', 'pos_embed'),
    (r'^pre_layrnorm\.', 'norm_pre.'),
    (r'^post_layernorm\.', 'norm.'),
    (r'^encoder\.layers\.(\d+)\.', r'blocks.\1.'),
    (r'\.layer_norm([12])\.', r'.norm\1.'),
    (r'\.self_attn\.out_proj\.', '.attn.proj.'),
    (r'\.self_attn\.', '.attention.'),
    (r'^head\.probe$', 'attn_pool.latent'),
    (r'^head\.attention\.out_proj\.', 'attn_pool.proj.'),
    (r'^head\.layernorm\.', 'attn_pool.norm.'),
    (r'^head\.mlp\.', 'attn_pool.mlp.'),
)
_rename_swin = rename(
    (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embeddings\.norm\.', 'patch_embed.norm.'),
    (r'^embeddings\.position_embeddings$', 'absolute_pos_embed'),
    (r'^encoder\.layers\.', 'layers.'),
    (r'^layernorm\.', 'norm.'),
    (r'\.layernorm_before\.', '.norm1.'),
    (r'\.layernorm_after\.', '.norm2.'),
    (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
    (r'\.attention\.(?:self|relative_position_bias)\.relative_', '.attn.relative_'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'(\.blocks\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
)


def read_transformers_vit(tensors: Tensors) -> Entries:
    """ViT and DINOv2 of transformers keep query, key and value one by one.

    In memory DINOv2's gated networks have the rows of ``weights_in`` one by one, too.
    """
    entries = _rename_vit(tensors)
    for stem in [n[: -len('gate_proj.weight')] for n in entries if GATE.match(n)]:
        for kind in ('weight', 'bias'):
            parts = [entries.pop(f'{stem}{p}_proj.{kind}', None) for p in GATED]
            fuse(entries, f'{stem}fc1.{kind}', [p and p.tensor for p in parts])
    return _fused(entries)


GATED = ('gate', 'up')
GATE = re.compile(r'^blocks\.\d+\.mlp\.gate_proj\.weight$')


def dinov2_to_transformers(state: Tensors) -> State:
    """A DINOv2 in canonical names as files of transformers have it."""
    result: State = {}
    for name, tensor in state.items():
        match = re.match(r'^(blocks\.\d+\.)attn\.qkv\.(weight|bias)$', name)
        if match is None:
            result[name] = tensor
            continue
        for part, rows in zip(('query', 'key', 'value'), tensor.chunk(3), strict=False):
            result[f'{match[1]}attention.attention.{part}.{match[2]}'] = rows
    first, last = (state.get(f'blocks.0.mlp.fc{i}.weight') for i in '12')
    is_gated = first is not None and last is not None and len(first) > last.shape[1]
    names = ('weights_in', 'weights_out') if is_gated else ('fc1', 'fc2')
    return renamed(
        result,
        (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
        (r'^pos_embed$', 'embeddings.position_embeddings'),
        (r'^reg_token$', 'embeddings.register_tokens'),
        (r'^(cls_token|mask_token)$', r'embeddings.\1'),
        (r'^norm\.', 'layernorm.'),
        (r'^blocks\.', 'encoder.layer.'),
        (r'\.attn\.proj\.', '.attention.output.dense.'),
        (r'\.ls([12])\.gamma$', r'.layer_scale\1.lambda1'),
        (r'\.mlp\.fc1\.', f'.mlp.{names[0]}.'),
        (r'\.mlp\.fc2\.', f'.mlp.{names[1]}.'),
    )


def read_transformers_clip(tensors: Tensors) -> Entries:
    """The image tower of CLIP or SigLIP, as timm names it."""
    entries = _fused(_rename_clip(tensors))
    for name in ('cls_token', 'pos_embed'):
        if name in entries:
            tensor, source = entries[name]
            entries[name] = Entry(tensor.reshape(1, -1, tensor.shape[-1]), source)
    for kind in ('weight', 'bias'):
        packed = entries.pop(f'head.attention.in_proj_{kind}', None)
        if packed is not None:
            width = len(packed.tensor) // 3
            rows = packed.tensor.split([width, 2 * width])
            for part, tensor in zip(('q', 'kv'), rows, strict=True):
                entries[f'attn_pool.{part}.{kind}'] = Entry(tensor, packed.source)
    return entries


def read_transformers_swin(tensors: Tensors) -> Entries:
    """Swin as its authors name it; transformers merges patches in their order."""
    return _fused(_rename_swin(tensors))


def _fused(entries: Entries) -> Entries:
    """``X.attention.query`` and its like as rows of ``X.attn.qkv``."""
    pattern = re.compile(rf'^(.*blocks\.\d+)\.attention\.{PART}(weight|bias)$')
    parts: dict[str, dict[str, Tensor]] = {}
    for name in list(entries):
        if match := pattern.match(name):
            whole = parts.setdefault(f'{match[1]}.attn.qkv.{match[3]}', {})
            whole[match['part']] = entries.pop(name).tensor
    for name, part in parts.items():
        fuse(entries, name, [part.get(k) for k in 'qkv'])
    return entries


# --- names of files alone: a state into the authors' -------------------------------


def segformer_of_transformers(state: Tensors) -> State:
    """SegFormer's encoder as its authors name it: ``block1.0.attn.q``, ``.kv``."""
    state = renamed(
        state,
        # In memory: stages.0.blocks.0, stages.0.patch_embeddings, stages.0.layer_norm.
        (r'^stages\.(\d+)\.blocks\.', r'encoder.block.\1.'),
        (r'^stages\.(\d+)\.patch_embeddings\.', r'encoder.patch_embeddings.\1.'),
        (r'^stages\.(\d+)\.layer_norm\.', r'encoder.layer_norm.\1.'),
        (r'\.sequence_reduction\.sequence_reduction\.', '.self.sr.'),
        (r'\.sequence_reduction\.layer_norm\.', '.self.layer_norm.'),
        (r'^encoder\.', ''),
        (r'^(patch_embeddings\.\d+)\.layer_norm\.', r'\1.norm.'),
        (r'\.(?:layer_norm_1|layernorm_before)\.', '.norm1.'),
        (r'\.(?:layer_norm_2|layernorm_after)\.', '.norm2.'),
        (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
        (r'\.attention\.self\.sr\.', '.attn.sr.'),
        (r'\.attention\.self\.layer_norm\.', '.attn.norm.'),
        (r'\.mlp\.dense([12])\.', r'.mlp.fc\1.'),
        (rf'\.attention\.{PART}', r'.attn.\g<part>.'),
    )
    state = {_counted_from_one(name): tensor for name, tensor in state.items()}
    return stack_rows(
        state, r'^(.*\.attn)\.(?P<part>[kv])\.(weight|bias)$', r'\1.kv.\3', 'kv'
    )


def _counted_from_one(name: str) -> str:
    match = re.match(r'^(patch_embeddings|block|layer_norm)\.(\d+)\.(.*)$', name)
    if match is None:
        return name
    short = {'patch_embeddings': 'patch_embed', 'layer_norm': 'norm'}
    return f'{short.get(match[1], match[1])}{int(match[2]) + 1}.{match[3]}'


def beit_of_transformers(state: Tensors) -> State:
    """BEiT as its authors name it: fused ``qkv`` beside ``q_bias`` and ``v_bias``."""
    state = renamed(
        state,
        (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
        (r'^embeddings\.position_embeddings$', 'pos_embed'),
        (r'^embeddings\.', ''),
        (r'^layernorm\.', 'norm.'),
        (r'^pooler\.layernorm\.', 'fc_norm.'),
        (r'^encoder\.relative_position_bias\.', 'rel_pos_bias.'),
        (r'^relative_position_bias\.', 'rel_pos_bias.'),
        (r'^(?:encoder\.layer|layers)\.(\d+)\.', r'blocks.\1.'),
        (r'\.lambda_([12])$', r'.gamma_\1'),
        (r'\.layernorm_before\.', '.norm1.'),
        (r'\.layernorm_after\.', '.norm2.'),
        (r'\.(?:attention\.attention\.)?relative_position_bias\.rel', '.attn.rel'),
        (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
        (r'\.intermediate\.dense\.', '.mlp.fc1.'),
        (r'^(blocks\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
        (rf'\.attention\.{PART}', r'.attn.\g<part>.'),
        (r'\.attn\.([qv])\.bias$', r'.attn.\1_bias'),
    )
    return stack_rows(
        state, r'^(.*\.attn)\.(?P<part>[qkv])\.weight$', r'\1.qkv.weight', 'qkv'
    )


def dinov3_of_transformers(state: Tensors) -> State:
    """DINOv3 as its authors name it: ``storage_tokens``, ``blocks.0.ls1.gamma``."""
    state = renamed(
        state,
        (r'^embeddings\.patch_embeddings\.', 'patch_embed.proj.'),
        (r'^embeddings\.register_tokens$', 'storage_tokens'),
        (r'^embeddings\.', ''),
        (r'^(?:model\.)?layer\.(\d+)\.', r'blocks.\1.'),
        (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
        (r'\.attention\.o_proj\.', '.attn.proj.'),
        (rf'\.attention\.{PART}', r'.attn.\g<part>.'),
    )
    # A gated network has three linears, a plain one two.
    gated = any(name.endswith('.mlp.gate_proj.weight') for name in state)
    up, down = ('w2', 'w3') if gated else ('fc1', 'fc2')
    state = renamed(
        state,
        (r'\.mlp\.gate_proj\.', '.mlp.w1.'),
        (r'\.mlp\.up_proj\.', f'.mlp.{up}.'),
        (r'\.mlp\.down_proj\.', f'.mlp.{down}.'),
    )
    pattern = r'^(.*\.attn)\.(?P<part>[qkv])\.(weight|bias)$'
    state = stack_rows(state, pattern, r'\1.qkv.\3', 'qkv', absent='k')
    tokens = state.get('storage_tokens')
    if tokens is not None and tokens.shape[1] == 0:
        del state['storage_tokens']
    mask = state.get('mask_token')
    if isinstance(mask, torch.Tensor) and mask.dim() == 3:
        state['mask_token'] = mask[0]
    return state
