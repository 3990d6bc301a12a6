"""The builder that MMEngine sees, heads of ours, and loading of base weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmpetl.models.frame_backbone import FrameBackbone
from mmpetl.models.hf_backbone import HFBackbone
from mmpetl.models.multi_task import DepthHead, MultiTaskModel, SegmentationHead
from mmpetl.models.petl_backbone import petl_backbone
from mmpetl.models.petl_model import petl_model
from mmpetl.models.simple_pyramid import SimplePyramid
from mmpetl.models.timm_backbone import TimmBackbone
from mmpetl.models.timm_maps import TimmMaps
from mmpetl.models.weights import load_base_weights
from mmpetl.registry import MODELS

__all__ = [
    'DepthHead',
    'FrameBackbone',
    'HFBackbone',
    'MultiTaskModel',
    'SegmentationHead',
    'SimplePyramid',
    'TimmBackbone',
    'TimmMaps',
    'load_base_weights',
    'petl_backbone',
    'petl_model',
]


@MODELS.register_module(name='BatchNormHead')
def batch_norm_head(**kwargs: Any) -> nn.Module:
    """:class:`mmpetl.models.video_head.BatchNormHead`, which needs mmaction."""
    from mmpetl.models.video_head import BatchNormHead

    return BatchNormHead(**kwargs)


@MODELS.register_module(name='ReinHead')
def rein_head(**kwargs: Any) -> nn.Module:
    """:class:`mmpetl.models.rein_head.ReinHead`, which needs mmseg and mmdet."""
    from mmpetl.models.rein_head import ReinHead

    return ReinHead(**kwargs)


@MODELS.register_module(name='ReinSegmentor')
def rein_segmentor(**kwargs: Any) -> nn.Module:
    """:class:`mmpetl.models.rein_head.ReinSegmentor`, which needs mmseg and mmdet."""
    from mmpetl.models.rein_head import ReinSegmentor

    return ReinSegmentor(**kwargs)


@MODELS.register_module(name='FewBitsHead')
def few_bits_head(**kwargs: Any) -> nn.Module:
    """:class:`mmpetl.models.few_bits_head.FewBitsHead`, which needs mmpretrain."""
    from mmpetl.models.few_bits_head import FewBitsHead

    return FewBitsHead(**kwargs)
