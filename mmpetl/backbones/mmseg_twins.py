"""Sites of mmseg's Twins: PCPVT, and SVT with windows in every second block."""

from __future__ import annotations

from mmseg.models.backbones.twins import (
    PCPVT,
    SVT,
    ConditionalPositionEncoding,
    GlobalSubsampledAttention,
    GSAEncoderLayer,
    LocallyGroupedSelfAttention,
    LSAEncoderLayer,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_pyramid import MMReducedKeys
from mmpetl.backbones.shared.twins import (
    LocalBlock,
    TwinsBackbone,
    TwinsFFN,
    TwinsMap,
    stages_of,
)
from mmpetl.core import Stage
from mmpetl.registry import BACKBONES


def twins_stages(backbone: PCPVT) -> list[Stage]:
    """The stages; norms behind them are optional."""
    embeds = backbone.patch_embeds
    norms = [None] * len(embeds)
    if backbone.norm_after_stage:
        norms = list(backbone.norm_list)
    pads = [embed.adap_padding for embed in embeds]
    return stages_of('layers', embeds, backbone.layers, norms, pads)


class PETLGSAEncoderLayer(TwinsFFN, MMReducedKeys, GSAEncoderLayer):
    """A block with fewer keys that runs sites."""

    def residual(self, branch: int, x: Tensor) -> Tensor:
        inner = self.attn if branch == 1 else self.ffn
        return self.drop_path(inner.dropout_layer(x))


class PETLLSAEncoderLayer(LocalBlock, LSAEncoderLayer):
    """A block with windows that runs sites."""


class TwinsHost(TwinsBackbone):
    """What both trunks share."""

    def pyramid(self) -> list[Stage]:
        return twins_stages(self)


class PETLPCPVT(TwinsHost, PCPVT):
    """A Twins-PCPVT that runs sites."""


class PETLSVT(TwinsHost, SVT):
    """A Twins-SVT that runs sites."""


@BACKBONES.register_module()
class MMSegPCPVT(TwinsMap):
    """``mmseg.PCPVT``."""

    host = PCPVT
    swapped = PETLPCPVT
    blocks_served = {
        GSAEncoderLayer: PETLGSAEncoderLayer,
        LSAEncoderLayer: PETLLSAEncoderLayer,
    }
    local = LocallyGroupedSelfAttention
    parts = {
        **TwinsMap.parts,
        'attn': (GlobalSubsampledAttention, LocallyGroupedSelfAttention),
    }

    def example(self) -> nn.Module:
        return PCPVT(
            embed_dims=[64, 128, 320, 512],
            num_heads=[1, 2, 5, 8],
            mlp_ratios=[8, 8, 4, 4],
            qkv_bias=True,
            depths=[3, 8, 27, 3],
        )

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for i, encoding in enumerate(backbone.position_encodings):
            path = f'position_encodings.{i}'
            self.check_class(path, encoding, (ConditionalPositionEncoding,))

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return twins_stages(backbone)


@BACKBONES.register_module()
class MMSegSVT(MMSegPCPVT):
    """``mmseg.SVT``."""

    host = SVT
    swapped = PETLSVT

    def example(self) -> nn.Module:
        return SVT(
            embed_dims=[128, 256, 512, 1024],
            num_heads=[4, 8, 16, 32],
            mlp_ratios=[4, 4, 4, 4],
            depths=[2, 2, 18, 2],
            windiow_sizes=[7, 7, 7, 7],
            sr_ratios=[8, 4, 2, 1],
            qkv_bias=True,
        )
