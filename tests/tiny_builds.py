"""Tiny backbones of the classes that are described longest; others have files of their
own in ``tests/trunks``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tiny_methods import along_time, at_the_ends, first_of_a_family
from tiny_trunk import Tiny
from torch import nn


def mmpretrain_vit(num_layers: int = 2, **args: Any) -> nn.Module:
    from mmpretrain.models import VisionTransformer

    arch = {
        'embed_dims': 32,
        'num_layers': num_layers,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    return VisionTransformer(**{'arch': arch, 'img_size': 32, 'patch_size': 8, **args})


def frames_of(build: Callable[[], nn.Module]) -> nn.Module:
    """A backbone of images over clips of three frames."""
    from mmpetl.models import FrameBackbone

    return FrameBackbone(build(), 3)


def mmpretrain_swin(**args: Any) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    arch = {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (2, 4)}
    plain = {
        'arch': arch,
        'img_size': 32,
        'patch_size': 4,
        'window_size': 4,
        'drop_path_rate': 0.0,
        'out_indices': (1,),
    }
    return SwinTransformer(**plain | args)


def mmpretrain_swin_dense(**args: Any) -> nn.Module:
    return mmpretrain_swin(**{'out_indices': (0, 1), 'pad_small_map': True} | args)


def mmaction_vit(**args: Any) -> nn.Module:
    from mmaction.models import VisionTransformer

    plain = {
        'img_size': 32,
        'patch_size': 8,
        'embed_dims': 32,
        'depth': 2,
        'num_heads': 4,
        'mlp_ratio': 2,
        'num_frames': 4,
    }
    return VisionTransformer(**plain | args)


def mmaction_swin3d(**args: Any) -> nn.Module:
    from mmaction.models import SwinTransformer3D

    arch = {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (2, 4)}
    plain = {
        'arch': arch,
        'pretrained2d': False,
        'patch_size': (2, 4, 4),
        'window_size': (2, 4, 4),
        'drop_path_rate': 0.0,
        'out_indices': (1,),
    }
    return SwinTransformer3D(**plain | args)


TIMM = {
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 2,
    'num_heads': 4,
    'mlp_ratio': 2.0,
}


def timm_vit(**args: Any) -> nn.Module:
    import timm

    return timm.create_model(
        'vit_tiny_patch16_224', **{**TIMM, 'num_classes': 5} | args
    )


def mmpretrain_timm(**args: Any) -> nn.Module:
    from mmpretrain.models import TIMMBackbone

    return TIMMBackbone('vit_tiny_patch16_224', **TIMM | args)


TINY: dict[str, Tiny] = {
    'mmpretrain_vit': Tiny(
        'mmpretrain_vit',
        mmpretrain_vit,
        (3, 32, 32),
        (3, 37, 50),
        exact=True,
        frozen_stages=lambda: mmpretrain_vit(frozen_stages=1),
    ),
    'mmpretrain_swin': Tiny(
        'mmpretrain_swin',
        mmpretrain_swin_dense,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        frozen_stages=lambda: mmpretrain_swin_dense(frozen_stages=1),
    ),
    'mmpretrain_swin_cls': Tiny(
        'mmpretrain_swin',
        mmpretrain_swin,
        (3, 32, 32),
        (3, 38, 53),
        exact=False,
        meets=at_the_ends,
    ),
    'mmaction_vit': Tiny(
        'mmaction_vit', mmaction_vit, (3, 4, 32, 32), (3, 4, 24, 40), exact=False
    ),
    'mmaction_swin3d': Tiny(
        'mmaction_swin3d',
        mmaction_swin3d,
        (3, 4, 32, 32),
        (3, 5, 38, 53),
        exact=False,
        frozen_stages=lambda: mmaction_swin3d(frozen_stages=1),
    ),
    'timm_vit': Tiny('timm_vit', timm_vit, (3, 32, 32), (3, 32, 32), exact=True),
    'mmpretrain_timm': Tiny(
        'mmpretrain_timm',
        mmpretrain_timm,
        (3, 32, 32),
        (3, 32, 32),
        exact=True,
        meets=first_of_a_family,
    ),
    # The batch holds the frames of clips.
    'mmpretrain_vit_frames': Tiny(
        'mmpretrain_vit',
        partial(frames_of, mmpretrain_vit),
        (3, 3, 32, 32),
        (3, 3, 37, 50),
        exact=True,
        meets=along_time,
    ),
    'mmpretrain_swin_frames': Tiny(
        'mmpretrain_swin',
        partial(frames_of, mmpretrain_swin),
        (3, 3, 32, 32),
        (3, 3, 38, 53),
        exact=False,
        meets=along_time,
    ),
    # The norm that the head reads stands behind the pooling.
    'mmpretrain_vit_mean': Tiny(
        'mmpretrain_vit',
        partial(mmpretrain_vit, out_type='avg_featmap', final_norm=False),
        (3, 32, 32),
        (3, 37, 50),
        exact=True,
        meets=at_the_ends,
    ),
    'timm_vit_mean': Tiny(
        'timm_vit',
        partial(timm_vit, global_pool='avg'),
        (3, 32, 32),
        (3, 32, 32),
        exact=True,
        meets=at_the_ends,
    ),
    # What leaves is the vector that a head outside of the backbone reads.
    'timm_vit_bare': Tiny(
        'timm_vit',
        partial(timm_vit, num_classes=0),
        (3, 32, 32),
        (3, 32, 32),
        exact=True,
        meets=at_the_ends,
    ),
}
"""Entries of ``tiny.TINY``, by their ids."""
