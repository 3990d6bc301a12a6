"""Transformers' official names into those of OpenMMLab's classes.

Functions of tensors by name. Each takes names that start at the trunk, renames what it
knows and passes the rest on, so that a name that it does not know is refused later and
never lost.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmpetl.models.weights.entries import State, Tensors, renamed, stack_rows

MM_FFN = ((r'\.mlp\.fc1\.', '.ffn.layers.0.0.'), (r'\.mlp\.fc2\.', '.ffn.layers.1.'))
MM_BLOCKS = (
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
    (r'^blocks\.', 'layers.'),
)


def vit_to_mmseg(state: Tensors) -> State:
    """A ViT of timm to mmseg's, which has ``nn.MultiheadAttention`` inside."""
    return renamed(
        state,
        *MM_BLOCKS,
        *MM_FFN,
        (r'^norm\.', 'ln1.'),
        (r'^norm_pre\.', 'pre_ln.'),
        (r'^(layers\.\d+)\.norm([12])\.', r'\1.ln\2.'),
        (r'\.attn\.qkv\.', '.attn.attn.in_proj_'),
        (r'\.attn\.proj\.', '.attn.attn.out_proj.'),
    )


def vit_to_mmpretrain(state: Tensors) -> State:
    """A ViT of timm, or DeiT's with its distillation token, to mmpretrain's classes."""
    return renamed(
        state,
        *MM_BLOCKS,
        *MM_FFN,
        (r'^norm\.', 'ln1.'),
        (r'^fc_norm\.', 'ln2.'),
        (r'^norm_pre\.', 'pre_norm.'),
        (r'^(layers\.\d+)\.norm([12])\.', r'\1.ln\2.'),
        (r'\.(?:ls1\.gamma|gamma_1)$', '.attn.gamma1.weight'),
        (r'\.(?:ls2\.gamma|gamma_2)$', '.ffn.gamma2.weight'),
    )


def beit_to_mm(state: Tensors, wants: set[str]) -> State:
    """BEiT's, BEiT v2's or MAE's to the BEiT and MAE of mmseg and mmpretrain.

    Args:
        state: The file.
        wants: Names of the model: whether it has a bias for query and value or for all
            three, and one position table or one per block.
    """
    state = renamed(
        state,
        *MM_BLOCKS,
        *MM_FFN,
        (r'^norm\.', 'ln1.'),
        (r'^fc_norm\.', 'ln2.'),
        (r'^(layers\.\d+)\.norm([12])\.', r'\1.ln\2.'),
        (r'\.ls([12])\.gamma$', r'.gamma_\1'),
    )
    return share_table(fit_bias(state, wants), wants)


def share_table(state: State, wants: set[str]) -> State:
    """One relative position table for all blocks, given to each where each has one."""
    name = 'rel_pos_bias.relative_position_bias_table'
    if name not in state or name in wants:
        return state
    state = dict(state)
    table = state.pop(name)
    state.pop('rel_pos_bias.relative_position_index', None)
    own = [n for n in wants if n.endswith('.attn.relative_position_bias_table')]
    return state | dict.fromkeys(own, table)


def fit_bias(state: State, wants: set[str]) -> State:
    """Biases of query and value as one of all three, or the reverse.

    A key's bias adds the same to all scores of a query and is lost in the softmax; in
    these files it is not there, or zero.
    """
    state = dict(state)
    for name in [n for n in wants if n.endswith('.attn.qkv.bias')]:
        stem = name.removesuffix('qkv.bias')
        if f'{stem}q_bias' in state and name not in state:
            query, value = state.pop(f'{stem}q_bias'), state.pop(f'{stem}v_bias')
            state.pop(f'{stem}k_bias', None)
            state[name] = torch.cat([query, torch.zeros_like(query), value])
    for name in [n for n in wants if n.endswith('.attn.q_bias')]:
        stem = name.removesuffix('q_bias')
        fused = state.get(f'{stem}qkv.bias')
        if fused is not None:
            query, key, value = fused.chunk(3)
            if not key.any():
                del state[f'{stem}qkv.bias']
                state |= {name: query, f'{stem}v_bias': value}
    return state


def eva02_to_mmpretrain(state: Tensors) -> State:
    """EVA-02, the authors' or timm's, to ``mmpretrain.ViTEVA02``."""
    state = renamed(
        state,
        *MM_BLOCKS,
        (r'^norm\.', 'ln1.'),
        (r'^fc_norm\.', 'ln2.'),
        (r'\.mlp\.(?:ffn_ln|norm)\.', '.mlp.norm.'),
        (r'\.mlp\.fc1_g\.', '.mlp.w1.'),
        (r'\.mlp\.fc1_x\.', '.mlp.w2.'),
        (r'\.mlp\.fc2\.', '.mlp.w3.'),
        (r'\.attn\.([qkv])_proj\.bias$', r'.attn.\1_bias'),
    )
    state = stack_rows(
        state,
        r'^(.*\.mlp)\.(?P<part>w[12])\.(weight|bias)$',
        r'\1.w12.\3',
        ('w1', 'w2'),
    )
    state = stack_rows(
        state, r'^(.*\.attn)\.(?P<part>[qkv])_proj\.weight$', r'\1.qkv.weight', 'qkv'
    )
    return stack_rows(
        state,
        r'^(.*\.attn)\.(?P<part>[qkv])_bias$',
        r'\1.qkv.bias',
        'qkv',
        absent='k',
    )


def sam_to_mmpretrain(state: Tensors) -> State:
    """The image encoder of SAM to ``mmpretrain.ViTSAM``."""
    return renamed(
        state,
        *MM_BLOCKS,
        (r'^(layers\.\d+)\.norm([12])\.', r'\1.ln\2.'),
        (r'\.mlp\.(?:lin1|fc1)\.', '.ffn.layers.0.0.'),
        (r'\.mlp\.(?:lin2|fc2)\.', '.ffn.layers.1.'),
        (r'^neck\.', 'channel_reduction.'),
    )


def swin_v2_to_mmpretrain(state: Tensors) -> State:
    """Swin v2, the authors' or timm's, to ``mmpretrain.SwinTransformerV2``.

    The authors end a stage with its patch merging, timm and mmpretrain open the next
    one with it. mmpretrain merges with channels outermost.
    """
    closes = 'layers.0.downsample.reduction.weight' in state
    result: State = {}
    for name, tensor in state.items():
        if match := re.match(r'^layers\.(\d+)\.downsample\.(.*)$', name):
            name = f'stages.{int(match[1]) + closes}.downsample.{match[2]}'
            if name.endswith('reduction.weight'):
                tensor = channels_outermost(tensor)
        result[name] = tensor
    last = 1 + max(
        (int(m[1]) for n in state if (m := re.match(r'^layers\.(\d+)\.', n))), default=0
    )
    return renamed(
        result,
        (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
        (r'^layers\.', 'stages.'),
        (r'^norm\.', f'norm{last - 1}.'),
        *MM_FFN,
        (r'\.attn\.(?!w_msa)', '.attn.w_msa.'),
    )


def channels_outermost(tensor: Tensor) -> Tensor:
    """Last axis from ([00, 10, 01, 11], C) to (C, [00, 01, 10, 11])."""
    split = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return split.transpose(-1, -2).flatten(-2)


# --- pyramids -----------------------------------------------------------------------


def pyramid_to_mm(state: Tensors) -> State:
    """SegFormer's, PVT's and PVTv2's to ``mmseg.MixVisionTransformer``, ``mmdet.PVT``.

    Queries, keys and values become the rows of ``nn.MultiheadAttention``, the linears
    of a feed-forward network 1x1 convolutions. A position table is the first entry of
    its stage's blocks.
    """
    has_table = any(name.startswith('pos_embed') for name in state)
    has_conv = any('.mlp.dwconv.' in name for name in state)
    last = 4 if has_conv else 3
    result: State = {}
    for name, tensor in renamed(state, (r'\.dwconv\.dwconv\.', '.dwconv.')).items():
        if name.startswith('pos_embed') and tensor.shape[1] == 50:
            tensor = tensor[:, 1:]  # 7 x 7 and a class token that no stage has here
        if re.match(r'^block\d+\..*\.mlp\.fc[12]\.weight$', name) and tensor.dim() == 2:
            tensor = tensor[..., None, None]
        if match := re.match(r'^(patch_embed|pos_embed|block|norm)(\d+)(.*)$', name):
            kind, stage, rest = match[1], int(match[2]) - 1, match[3]
            if kind == 'block':
                index, _, rest = rest.removeprefix('.').partition('.')
                name = f'layers.{stage}.1.{int(index) + has_table}.{rest}'
            else:
                place = {'patch_embed': '0', 'pos_embed': '1.0.pos_embed', 'norm': '2'}
                name = f'layers.{stage}.{place[kind]}{rest}'
        result[name] = tensor
    result = renamed(
        result,
        (r'^(layers\.\d+\.0)\.proj\.', r'\1.projection.'),
        (r'\.attn\.proj\.', '.attn.attn.out_proj.'),
        (r'\.mlp\.fc1\.', '.ffn.layers.0.'),
        (r'\.mlp\.dwconv\.', '.ffn.layers.1.'),
        (r'\.mlp\.fc2\.', f'.ffn.layers.{last}.'),
    )
    return packed_attention(result)


def packed_attention(state: State) -> State:
    """``X.attn.q`` and ``X.attn.kv`` as ``X.attn.attn.in_proj_weight`` and bias."""
    return stack_rows(
        state,
        r'^(.*\.attn)\.(?P<part>q|kv)\.(weight|bias)$',
        r'\1.attn.in_proj_\3',
        ('q', 'kv'),
    )


def pvt_v2_of_timm(state: Tensors) -> State:
    """A PVTv2 of timm as its authors name it."""
    result: State = {}
    for name, tensor in state.items():
        if match := re.match(r'^stages\.(\d+)\.(blocks|downsample|norm)(\..*)$', name):
            kind = {'blocks': 'block', 'downsample': 'patch_embed', 'norm': 'norm'}
            name = f'{kind[match[2]]}{int(match[1]) + 1}{match[3]}'
        result[name] = tensor
    return renamed(result, (r'^patch_embed\.', 'patch_embed1.'))


def twins_to_mmpretrain(state: Tensors) -> State:
    """Twins, the authors' or timm's, to ``mmpretrain.PCPVT`` and ``SVT``."""
    stages = {m[1] for n in state if (m := re.match(r'^blocks\.(\d+)\.', n))}
    return renamed(
        state,
        (r'^(patch_embeds\.\d+)\.proj\.', r'\1.projection.'),
        (r'^blocks\.', 'stages.'),
        (r'^pos_block\.(\d+)\.proj\.0\.', r'position_encodings.\1.proj.'),
        (r'^norm\.', f'norm_after_stage{len(stages) - 1}.'),
        *MM_FFN,
    )


def twins_to_mmseg(state: Tensors) -> State:
    """Twins, the authors' or timm's, to ``mmseg.PCPVT`` and ``SVT``.

    Attention to a reduced map is ``nn.MultiheadAttention`` there, that in windows not.
    """
    stages = {m[1] for n in state if (m := re.match(r'^blocks\.(\d+)\.', n))}
    reduced = {
        n.removesuffix('.q.weight') for n in state if n.endswith('.attn.q.weight')
    }
    result: State = {}
    for name, tensor in state.items():
        attention, _, rest = name.partition('.proj.')
        if attention in reduced and rest:
            name = f'{attention}.attn.out_proj.{rest}'
        result[name] = tensor
    result = renamed(
        result,
        (r'^(patch_embeds\.\d+)\.proj\.', r'\1.projection.'),
        (r'^blocks\.', 'layers.'),
        (r'^pos_block\.(\d+)\.proj\.0\.', r'position_encodings.\1.proj.'),
        (r'^norm\.', f'norm_list.{len(stages) - 1}.'),
        *MM_FFN,
    )
    return packed_attention(result)


def mscan_to_mmseg(state: Tensors) -> State:
    """SegNeXt's encoder to ``mmseg.MSCAN``."""
    return renamed(state, (r'\.dwconv\.dwconv\.', '.dwconv.'))
