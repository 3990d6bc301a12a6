"""Full-size backbones on the meta device: shapes without numbers, for counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import mmpetl
from mmpetl.apis.counting import without_memory
from mmpetl.core import Counts, count_trainable

FGVC_HEAD = 180_407
"""Parameters of a 768-wide linear head, mean over the classes of the five FGVC sets."""


def vit_b() -> nn.Module:
    from mmpretrain.models import VisionTransformer

    return VisionTransformer(arch='b', img_size=224, patch_size=16)


def timm_vit_b() -> nn.Module:
    import timm

    return timm.create_model('vit_base_patch16_224', num_classes=0)


def swin(arch: str, outputs: tuple[int, ...]) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    return SwinTransformer(arch=arch, img_size=224, out_indices=outputs)


def videomae_b() -> nn.Module:
    from mmaction.models import VisionTransformer

    return VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dims=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=16,
    )


def video_swin_b() -> nn.Module:
    from mmaction.models import SwinTransformer3D

    return SwinTransformer3D(
        arch='base', pretrained2d=False, patch_size=(2, 4, 4), window_size=(8, 7, 7)
    )


FULL_SIZE: dict[str, Callable[[], nn.Module]] = {
    'vit_b': vit_b,
    'timm_vit_b': timm_vit_b,
    'swin_t_dense': lambda: swin('tiny', (0, 1, 2, 3)),
    'swin_b': lambda: swin('base', (3,)),
    'swin_b_dense': lambda: swin('base', (0, 1, 2, 3)),
    'swin_l': lambda: swin('large', (3,)),
    'swin_l_dense': lambda: swin('large', (0, 1, 2, 3)),
    'videomae_b': videomae_b,
    'video_swin_b': video_swin_b,
}
"""ViT-B/16, Swin-B and Swin-L with one output or four, VideoMAE ViT-B, Video Swin-B."""


def counts(stem: str, method: Any) -> Counts:
    """What trains when ``method`` is injected into a full-size backbone."""
    with without_memory():
        model = mmpetl.inject(FULL_SIZE[stem](), method)
    assert all(p.is_meta for p in model.parameters())
    return count_trainable(model)


def widths(stem: str) -> list[int]:
    """Width of every block."""
    base = {'swin_b': 128, 'swin_l': 192, 'video_swin_b': 128}
    d = base.get(stem.removesuffix('_dense'))
    if d is None:
        return [768] * 12
    return [d << stage for stage, n in enumerate((2, 2, 18, 2)) for _ in range(n)]
