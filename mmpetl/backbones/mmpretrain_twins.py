"""Sites of mmpretrain's Twins: PCPVT, and SVT with windows in every second block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmpretrain.models.backbones.twins import (
    PCPVT,
    SVT,
    GlobalSubsampledAttention,
    GSAEncoderLayer,
    LocallyGroupedSelfAttention,
    LSAEncoderLayer,
)
from mmpretrain.models.utils import ConditionalPositionEncoding
from torch import Tensor, nn

from mmpetl.backbones.shared.twins import (
    LocalBlock,
    TwinsBackbone,
    TwinsFFN,
    TwinsMap,
    stages_of,
)
from mmpetl.core import ReducedKeysHost, Stack, Stage
from mmpetl.registry import BACKBONES


def twins_stages(backbone: PCPVT) -> list[Stage]:
    """The stages; norms behind them are optional."""
    embeds = backbone.patch_embeds
    norms = [getattr(backbone, f'norm_after_stage{i}') for i in range(len(embeds))]
    norms = [None if isinstance(norm, nn.Identity) else norm for norm in norms]
    pads = [embed.adaptive_padding for embed in embeds]
    return stages_of('stages', embeds, backbone.stages, norms, pads)


class PETLGSAEncoderLayer(TwinsFFN, ReducedKeysHost, GSAEncoderLayer):
    """A block with fewer keys that runs sites."""

    def key_reduction(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        attn = self.attn
        return (attn.sr, attn.norm) if attn.sr_ratio > 1 else None

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': Stack(attn.q, attn.kv, sizes=(attn.embed_dims,) * 3),
            'proj': attn.proj,
            'dropout': attn.attn_drop if attn.training else 0.0,
            'kv_source': self.kv_source(),
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        inner = self.attn.out_drop if branch == 1 else self.ffn.dropout_layer
        return self.drop_path(inner(x))


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
class MMPretrainPCPVT(TwinsMap):
    """``mmpretrain.PCPVT``."""

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
        return PCPVT(arch='large', norm_after_stage=[False, False, False, True])

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for i, encoding in enumerate(backbone.position_encodings):
            path = f'position_encodings.{i}'
            self.check_class(path, encoding, (ConditionalPositionEncoding,))

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return twins_stages(backbone)


@BACKBONES.register_module()
class MMPretrainSVT(MMPretrainPCPVT):
    """``mmpretrain.SVT``."""

    host = SVT
    swapped = PETLSVT

    def example(self) -> nn.Module:
        return SVT(arch='base', norm_after_stage=[False, False, False, True])
