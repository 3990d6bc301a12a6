"""Tiny timm Eva: turned positions, registers, any grid."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_trunk import Tiny
from torch import nn


def build(**args: Any) -> nn.Module:
    """Two blocks of DINOv3's kind, with biases."""
    from timm.models.eva import Eva

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dim': 32,
        'depth': 2,
        'num_heads': 4,
        'mlp_ratio': 2.0,
        'num_classes': 0,
        'use_fc_norm': False,
        'num_reg_tokens': 2,
        'init_values': 0.1,
        'use_abs_pos_emb': False,
        'use_rot_pos_emb': True,
        'rope_type': 'dinov3',
        'rope_rotate_half': True,
        'rope_temperature': 100.0,
        'dynamic_img_size': True,
    }
    return Eva(**plain | args)


def old(**args: Any) -> nn.Module:
    """Two blocks of the first EVA: absolute positions, no rotations, a mean."""
    plain = {
        'use_fc_norm': None,
        'num_reg_tokens': 0,
        'init_values': None,
        'use_abs_pos_emb': True,
        'use_rot_pos_emb': False,
        'dynamic_img_size': False,
    }
    return build(**plain | args)


NARROW = {
    'attn_type': 'rope',
    'qkv_fused': False,
    'qk_norm': True,
    'num_kv_heads': (2, 4),
    'swiglu_mlp': True,
    'num_classes': 5,
}
"""Sapiens2: fewer heads of keys than of queries, gated networks."""

TINY = {
    # Biases of keys too, so that a shift of them folds: rotations stand behind it.
    'timm_eva': Tiny(
        'timm_eva',
        partial(build, attn_type='rope'),
        (3, 32, 32),
        (3, 40, 24),
        exact=True,
    ),
}
