"""timm's plain transformers, whatever they are built of, small."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import GluMlp, HybridEmbed, SwiGLU, SwiGLUPacked
from timm.models import vision_transformer as vit
from timm.models import vitamin
from timm.models.vision_transformer_hybrid import ConvStem
from tiny import randomise_
from tiny_builds import TIMM
from torch import nn
from trunks import timm_beit, timm_deit, timm_eva, timm_sam

SQUARE = (3, 32, 32)


def gates(model: nn.Module) -> nn.Module:
    """Gates in front of the output projections, which Eva itself does not ask for."""
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
    return model


def biases_apart(model: nn.Module) -> nn.Module:
    """Biases that are added behind the projection."""
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
    return model


def stem(**args: Any) -> dict[str, Any]:
    """Options of a ViT whose patches leave three convolutions."""
    made = ConvStem(3, 3, (8, 16, 24), stride=(2, 2, 2))
    return {'embed_layer': partial(HybridEmbed, backbone=made), 'patch_size': 1} | args


def vit_of(**args: Any) -> nn.Module:
    return vit.VisionTransformer(**TIMM | {'num_classes': 5} | args)


E, EARLY, B, D = timm_eva.build, timm_eva.old, timm_beit.build, timm_deit.build
ROPE = {'attn_type': 'rope'}
EVA: dict[str, Callable[[], nn.Module]] = {
    'dinov3': E,
    'dinov3, gated': partial(E, swiglu_mlp=True, qkv_bias=False, global_pool='token'),
    'dinov3 of any grid': partial(E, dynamic_img_pad=True),
    'dinov3 of one size': partial(E, dynamic_img_size=False),
    'eva': EARLY,
    'eva without biases': partial(EARLY, qkv_bias=False, global_pool='max'),
    'biases apart': lambda: biases_apart(EARLY(global_pool='avgmax')),
    'eva02': partial(
        EARLY,
        use_rot_pos_emb=True,
        rope_type='cat',
        rope_rotate_half=False,
        ref_feat_shape=(2, 2),
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
    ),
    'eva02 clip': partial(
        E, rope_type='cat', rope_rotate_half=False, scale_attn_inner=True, qkv_fused=0
    ),
    'behind the sub-layers': partial(EARLY, use_post_norm=True, global_pool='token'),
    'behind the sub-layers, rotary': partial(E, use_post_norm=True, scale_mlp=True),
    'rope': partial(E, **ROPE, rope_type='cat', rope_grid_indexing='xy'),
    'rope, norms per head': partial(E, **ROPE, qk_norm=True, scale_attn_inner=True),
    'a rotation per block': partial(
        E, **ROPE, rope_type='mixed', rope_rotate_half=False, no_embed_class=True
    ),
    'a rotation per block, one size': partial(
        E,
        rope_type='mixed',
        rope_rotate_half=False,
        dynamic_img_size=False,
        use_abs_pos_emb=True,
    ),
    'mrope': partial(E, rope_type='mrope', rope_mrope_section=(0, 2, 2)),
    'narrow keys': partial(E, **timm_eva.NARROW),
    'scale of attention': partial(E, attn_only_layer_scale=True),
    'gates': lambda: gates(E()),
    'gates, narrow keys': lambda: gates(E(**timm_eva.NARROW)),
    'aligned': partial(E, swiglu_align_to=24),
    'perception encoder': partial(
        EARLY,
        **ROPE,
        use_rot_pos_emb=True,
        rope_type='cat',
        use_pre_transformer_norm=True,
        global_pool='map',
        attn_pool_num_heads=2,
    ),
    'no class token': partial(E, class_token=False, global_pool='avg'),
    'neither': partial(E, class_token=False, num_reg_tokens=0, global_pool='avg'),
    'no pooling': partial(E, global_pool='', num_classes=5),
    'no norms behind': partial(
        E, use_fc_norm=False, use_post_transformer_norm=False, num_classes=5
    ),
}
BEIT: dict[str, Callable[[], nn.Module]] = {
    'beit': B,
    'beit, one table': partial(B, use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    'beit, tables of both kinds': partial(B, use_shared_rel_pos_bias=True),
    'beit, no table': partial(B, use_rel_pos_bias=False, use_abs_pos_emb=True),
    'beit, one size': partial(B, use_abs_pos_emb=True, init_values=None),
    'beit, gated': partial(B, swiglu_mlp=True, scale_mlp=True, qkv_bias=False),
    'beit, token': partial(B, global_pool='token', num_classes=0),
    'beit, no pooling': partial(B, global_pool=''),
    'beit, norm behind the pooling': partial(B, use_fc_norm=True, global_pool='token'),
    'beit, biases apart': lambda: biases_apart(B()),
}
PARALLEL = {'block_fn': vit.ParallelScalingBlock}
CORNERS: dict[str, Callable[[], nn.Module]] = {
    'packed': partial(vit_of, mlp_layer=SwiGLUPacked),
    'gate last': partial(vit_of, mlp_layer=GluMlp, scale_mlp_norm=True),
    'split': partial(vit_of, mlp_layer=SwiGLU, scale_mlp_norm=True),
    'normed once more': partial(vit_of, mlp_layer=vitamin.GeGluMlp, act_layer='gelu'),
    'norm of attention': partial(vit_of, scale_attn_norm=True, scale_mlp_norm=True),
    'post norm': partial(vit_of, block_fn=vit.ResPostBlock, init_values=0.1),
    'side by side': partial(vit_of, **PARALLEL, init_values=0.1),
    'side by side, bare': partial(vit_of, **PARALLEL, qkv_bias=False, qk_norm=True),
    'side by side, one projection': partial(
        vit_of, block_fn=partial(vit.ParallelScalingBlock, fuse_out_proj=True)
    ),
    'stem': lambda: vit_of(**stem()),
    'stem of any grid': lambda: vit_of(**stem(dynamic_img_size=True)),
    'stem and patches, padded': lambda: vit_of(
        **stem(dynamic_img_size=True, dynamic_img_pad=True, patch_size=3)
    ),
    'stem without a projection': lambda: vit_of(
        **stem(
            embed_layer=partial(
                HybridEmbed, backbone=ConvStem(3, 3, (8, 16, 32)), proj=False
            ),
            class_token=False,
            global_pool='avg',
        )
    ),
    'distilled': D,
    'distilled, bare': partial(D, num_classes=0),
    'distilled, any grid': partial(D, dynamic_img_size=True),
}
S = timm_sam.build
ROTARY = {'use_rel_pos': False, 'use_rope': True, 'ref_feat_shape': (4, 3)}
SAM: dict[str, Callable[[], nn.Module]] = {
    'sam': S,
    'sam, no windows': partial(S, window_size=0, pre_norm=True, init_values=0.1),
    'sam, all windows': partial(S, global_attn_indexes=(), num_classes=0),
    'sam, no neck': partial(S, neck_chans=0, use_abs_pos=False, head_hidden_size=16),
    'sam, rotary': partial(S, **ROTARY, qk_norm=True),
    'sam, no positions': partial(S, use_rel_pos=False, qkv_bias=False, neck_chans=0),
}
MODELS = EVA | BEIT | CORNERS | SAM


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_(MODELS[name]()).double().eval()


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """Inputs that a model takes."""
    embed = model.patch_embed
    if getattr(model, 'rope_global', None) is not None:
        return [SQUARE]
    if not embed.flatten:
        odd = (3, 37, 50) if embed.dynamic_img_pad else (3, 40, 24)
        return [SQUARE, odd]
    return [SQUARE]
