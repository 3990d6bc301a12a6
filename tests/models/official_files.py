"""Official files as torch has them, shared by the tests of converters."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from small_weights import randomise
from timm.models.eva import Eva
from torch import nn

from mmpetl.models.weights import load_base_weights

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
TIMM = dict(
    img_size=32,
    patch_size=8,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mlp_ratio=2,
    num_classes=0,
)
MM = dict(img_size=32, patch_size=8, arch=ARCH)
SEG = dict(
    img_size=32,
    patch_size=8,
    embed_dims=16,
    num_layers=2,
    num_heads=2,
    mlp_ratio=2,
)


def one_epsilon(model: nn.Module) -> nn.Module:
    """The same epsilon in all norms: packages differ in theirs."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    return model


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values, and one epsilon."""
    return randomise(one_epsilon(model), seed)


def load(model: nn.Module, state: dict, tmp_path: Path, **kwargs):
    """Fill a model from a file that holds ``state`` the way training scripts do."""
    path = tmp_path / 'weights.pth'
    torch.save({'model': state, 'epoch': 3}, path)
    report = load_base_weights(randomised(model, 99), path, **kwargs)
    print(report.summary())
    return report


def renamed(state: dict, *rules: tuple[str, str]) -> dict:
    result = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        result[name] = tensor
    return result


def grid(tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    """(B, prefix + h*h, C) as (B, C, h, h)."""
    side = int((tokens.shape[1] - prefix) ** 0.5)
    return tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def eva02(**kwargs):
    return Eva(
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        rope_grid_offset=0.0,
        **{**TIMM, **kwargs},
    )


def official_eva02(state: dict) -> dict:
    return renamed(
        state,
        (r'\.mlp\.fc1_g\.', '.mlp.w1.'),
        (r'\.mlp\.fc1_x\.', '.mlp.w2.'),
        (r'\.mlp\.norm\.', '.mlp.ffn_ln.'),
        (r'\.mlp\.fc2\.', '.mlp.w3.'),
        (r'\.([qv])_proj\.bias', r'.\1_bias'),
    )
