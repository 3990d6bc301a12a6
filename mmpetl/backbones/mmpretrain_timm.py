"""mmpretrain's TIMMBackbone: the sites are those of the timm model inside.

With ``features_only=True`` that is the model inside of timm's feature getter.
"""

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
        inner = backbone.timm_model
        getter = isinstance(inner, nn.ModuleDict) and 'model' in inner
        return inner['model'] if getter else inner
