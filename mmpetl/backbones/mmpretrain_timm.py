"""mmpretrain's TIMMBackbone: the sites are those of the timm model inside."""

from __future__ import annotations

from mmpretrain.models.backbones.timm_backbone import TIMMBackbone
from torch import nn

from mmpetl.core import SiteMap
from mmpetl.registry import BACKBONES


@BACKBONES.register_module()
class MMPretrainTimm(SiteMap):
    """``mmpretrain.TIMMBackbone``."""

    host = TIMMBackbone

    def example(self) -> nn.Module:
        return TIMMBackbone('vit_base_patch16_224')

    def core(self, backbone: nn.Module) -> nn.Module:
        return backbone.timm_model
