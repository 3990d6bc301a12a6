"""Sites of mmdet's PyramidVisionTransformer, versions 1 and 2."""

from __future__ import annotations

import torch
from mmdet.models.backbones.pvt import (
    AbsolutePositionEmbedding,
    MixFFN,
    PVTEncoderLayer,
    PyramidVisionTransformer,
    PyramidVisionTransformerV2,
    SpatialReductionAttention,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_pyramid import (
    MMConvFFN,
    MMPyramidMap,
    MMReducedKeys,
)
from mmpetl.core import Context, PyramidBackboneHost, Stage
from mmpetl.registry import BACKBONES


def stages_of(backbone: PyramidVisionTransformer) -> list[Stage]:
    """The stages; a position table may stand in front of the blocks, in their list."""
    return [
        Stage(
            f'layers.{i}.1',
            [
                (j, block)
                for j, block in enumerate(blocks)
                if not isinstance(block, AbsolutePositionEmbedding)
            ],
            embed.projection,
            embed.norm,
            None if isinstance(norm, nn.Identity) else norm,
            embed.adap_padding,
        )
        for i, (embed, blocks, norm) in enumerate(backbone.layers)
    ]


class PETLPVTEncoderLayer(MMConvFFN, MMReducedKeys, PVTEncoderLayer):
    """A PVT block that runs sites."""


class PVTHost(PyramidBackboneHost):
    """What both versions share."""

    def pyramid(self) -> list[Stage]:
        return stages_of(self)

    def entered(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        first = self.layers[index][1][0]
        if not isinstance(first, AbsolutePositionEmbedding):
            return x
        p = ctx.num_prefix
        grid = first(x[:, p:], ctx.grid)
        return torch.cat((x[:, :p], grid), dim=1) if p else grid

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.run_stages(x)


class PETLPyramidVisionTransformer(PVTHost, PyramidVisionTransformer):
    """A PVT that runs sites."""


class PETLPyramidVisionTransformerV2(PVTHost, PyramidVisionTransformerV2):
    """A PVT of version 2 that runs sites."""


@BACKBONES.register_module()
class MMDetPVT(MMPyramidMap):
    """``mmdet.PyramidVisionTransformer``."""

    host = PyramidVisionTransformer
    host_block = PVTEncoderLayer
    swapped = PETLPyramidVisionTransformer
    swapped_block = PETLPVTEncoderLayer
    positions = ('pos_embed',)
    parts = {
        'attn': (SpatialReductionAttention,),
        'attn.attn': (nn.MultiheadAttention,),
        'ffn': (MixFFN,),
    }

    def example(self) -> nn.Module:
        return PyramidVisionTransformer(num_layers=[3, 8, 27, 3])

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return stages_of(backbone)


@BACKBONES.register_module()
class MMDetPVTv2(MMDetPVT):
    """``mmdet.PyramidVisionTransformerV2``."""

    host = PyramidVisionTransformerV2
    swapped = PETLPyramidVisionTransformerV2

    def example(self) -> nn.Module:
        return PyramidVisionTransformerV2(
            embed_dims=64, num_layers=[3, 6, 40, 3], mlp_ratios=(4, 4, 4, 4)
        )
