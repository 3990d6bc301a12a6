"""Models of timm and transformers as their builders make them, small and on drawn data.

Two blocks in all, or one or two per stage; plain trunks wider than :data:`WIDEST` get
:data:`HEADS` heads of their own size. Values are drawn, so that no zero and no one
hides a mistake.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

PACKAGES = ('timm', 'transformers')
WIDEST = 512
HEADS = 6  # keeps the hidden widths of gated networks even

TIMM_ALL = ('eva', 'vision_transformer', 'vision_transformer_hybrid')
"""Files of timm of which every builder is tried."""

ONES = {'depths': (1, 1, 1, 1)}
PAIRS = {'depths': (2, 2, 2, 2)}
TIMM_ONE: dict[str, tuple[int, dict[str, Any]]] = {
    'beit_base_patch16_224': (0, {}),
    'beitv2_base_patch16_224': (0, {}),
    'deit_tiny_distilled_patch16_224': (0, {}),
    'deit_tiny_patch16_224': (0, {}),
    'deit3_small_patch16_224': (0, {}),
    'samvit_base_patch16': (256, {'depth': 4, 'global_attn_indexes': (1, 3)}),
    'vitamin_small_224': (224, {'depth': 2}),
    'swin_tiny_patch4_window7_224': (224, PAIRS),
    'swin_s3_tiny_224': (224, PAIRS),
    'swinv2_tiny_window8_256': (256, PAIRS),
    'pvt_v2_b0': (64, ONES),
    'pvt_v2_b2_li': (64, ONES),
    'twins_svt_small': (64, PAIRS),
    'twins_pcpvt_small': (64, PAIRS),
    'hiera_tiny_224': (224, {}),
    'hiera_small_abswin_256': (256, {}),
    'hieradet_small': (128, {}),
    'sam2_hiera_tiny': (128, {}),
    'convnext_tiny': (64, ONES),
    'convnext_atto_rms': (64, ONES),
    'convnextv2_atto': (64, ONES),
    'resnet18': (64, {}),
    'resnet50': (64, {'layers': (1, 1, 1, 1)}),
    'resnext50_32x4d': (64, {'layers': (1, 1, 1, 1)}),
}
"""One size of every other family: side of its pictures, and what makes it small.

A side of 0 is that of a plain transformer: eight patches.
"""

PLAIN = {'num_hidden_layers': 2, 'image_size': 64}
SWIN = {'depths': (2, 2, 2, 2)}
VIDEO = {'num_hidden_layers': 2, 'num_frames': 4, 'image_size': 64}
VJEPA = {'num_hidden_layers': 2, 'crop_size': 64, 'frames_per_clip': 4}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    'ViT': ('ViT', PLAIN, (3, 64, 64)),
    'Dinov2': ('Dinov2', PLAIN | {'patch_size': 16}, (3, 64, 64)),
    'Dinov2, gated': (
        'Dinov2',
        PLAIN | {'patch_size': 16, 'use_swiglu_ffn': True},
        (3, 64, 64),
    ),
    'Dinov2WithRegisters': (
        'Dinov2WithRegisters',
        PLAIN | {'num_register_tokens': 4},
        (3, 64, 64),
    ),
    'DINOv3ViT': ('DINOv3ViT', PLAIN | {'num_register_tokens': 4}, (3, 64, 64)),
    'DINOv3ViT, gated': ('DINOv3ViT', PLAIN | {'use_gated_mlp': True}, (3, 64, 64)),
    'CLIPVision': ('CLIPVision', PLAIN, (3, 64, 64)),
    'SiglipVision': ('SiglipVision', PLAIN, (3, 64, 64)),
    'Beit': ('Beit', PLAIN | {'use_relative_position_bias': True}, (3, 64, 64)),
    'Beit, shared bias': (
        'Beit',
        PLAIN | {'use_shared_relative_position_bias': True},
        (3, 64, 64),
    ),
    'VideoMAE': ('VideoMAE', VIDEO, (4, 3, 64, 64)),
    'VJEPA2': ('VJEPA2', VJEPA | {'pred_num_hidden_layers': 1}, (4, 3, 64, 64)),
    'Swin': ('Swin', SWIN, (3, 224, 224)),
    'Segformer': ('Segformer', {'depths': (1, 1, 1, 1)}, (3, 64, 64)),
    'ConvNext': ('ConvNext', {'depths': (1, 1, 1, 1)}, (3, 64, 64)),
}
"""Class without ``Model``, arguments of its config, shape of a sample; by name."""


def names_of(package: str) -> list[str]:
    """Every builder, or class and variant, that is tried."""
    if package == 'transformers':
        return list(TRANSFORMERS)
    every = (name for file in TIMM_ALL for name in timm.list_models(module=file))
    return [*every, *TIMM_ONE]


def build(package: str, name: str) -> tuple[nn.Module, Tensor]:
    """A small model, and two samples for it."""
    if package == 'transformers':
        kind, args, shape = TRANSFORMERS[name]
        library = importlib.import_module('transformers')
        config = getattr(library, f'{kind}Config')(**args)
        model = getattr(library, f'{kind}Model')(config)
    else:
        side, args = TIMM_ONE.get(name, (0, {}))
        if not side:
            side, args = _plain_args(name)
        model = timm.create_model(name, **args)
        shape = (3, side, side)
    return _drawn(model), torch.randn(2, *shape)


def _plain_args(name: str) -> tuple[int, dict[str, Any]]:
    """Side of the pictures and arguments of a small plain transformer."""
    with torch.device('meta'):
        large = timm.create_model(name)
    args: dict[str, Any] = {'depth': 2}
    stride = large.patch_embed.patch_size
    if not hasattr(large.patch_embed, 'backbone'):
        side = args['img_size'] = 8 * (stride if isinstance(stride, int) else stride[0])
    else:  # convolutions in front, made for the size of their pictures
        return large.pretrained_cfg['input_size'][-1], args
    heads = _first(large.blocks[0], 'num_heads')
    if large.embed_dim > WIDEST:
        args |= {'num_heads': HEADS, 'embed_dim': HEADS * (large.embed_dim // heads)}
    keys = [_first(block, 'num_kv_heads') for block in large.blocks]
    if keys[0] is not None:  # in some models fewer in the middle; one for each block
        now = args.get('num_heads', heads)
        args['num_kv_heads'] = tuple(now * k // heads for k in (keys[0], min(keys)))
    return side, args


def _first(block: nn.Module, name: str) -> int | None:
    """An attribute of the first module in a block that has it."""
    return next((getattr(m, name) for m in block.modules() if hasattr(m, name)), None)


def _drawn(model: nn.Module) -> nn.Module:
    """Noise on every parameter; scales and the last norms of ResNets start at zero."""
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.02)
    return model


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What a model gives for two samples, as a list."""
    config = getattr(model, 'config', None)
    more = {'skip_predictor': True} if 'VJEPA2' in type(config).__name__ else {}
    return list(_tensors(model(x, **more)))


def _tensors(y: Any) -> Iterator[Tensor]:
    if isinstance(y, Tensor):
        yield y
    elif isinstance(y, Mapping):
        yield from _tensors(list(y.values()))
    elif isinstance(y, list | tuple):
        for part in y:
            yield from _tensors(part)
