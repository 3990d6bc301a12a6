"""Sites of mmseg's MixVisionTransformer, the trunk of SegFormer."""

from __future__ import annotations

from mmseg.models.backbones.mit import (
    EfficientMultiheadAttention,
    MixFFN,
    MixVisionTransformer,
    TransformerEncoderLayer,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_pyramid import (
    MMConvFFN,
    MMPyramidMap,
    MMReducedKeys,
)
from mmpetl.core import PyramidBackboneHost, Stage, to_maps
from mmpetl.registry import BACKBONES


def stages_of(backbone: MixVisionTransformer) -> list[Stage]:
    """The stages; each holds patch embedding, blocks and norm."""
    return [
        Stage(
            f'layers.{i}.1',
            list(enumerate(blocks)),
            embed.projection,
            embed.norm,
            norm,
        )
        for i, (embed, blocks, norm) in enumerate(backbone.layers)
    ]


class PETLTransformerEncoderLayer(MMConvFFN, MMReducedKeys, TransformerEncoderLayer):
    """A block of a MixVisionTransformer that runs sites."""


class PETLMixVisionTransformer(PyramidBackboneHost, MixVisionTransformer):
    """A MixVisionTransformer that runs sites."""

    def pyramid(self) -> list[Stage]:
        return stages_of(self)

    def maps(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return to_maps(x, grid)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.run_stages(x)


@BACKBONES.register_module()
class MMSegMiT(MMPyramidMap):
    """``mmseg.MixVisionTransformer``."""

    host = MixVisionTransformer
    host_block = TransformerEncoderLayer
    swapped = PETLMixVisionTransformer
    swapped_block = PETLTransformerEncoderLayer
    parts = {
        'attn': (EfficientMultiheadAttention,),
        'attn.attn': (nn.MultiheadAttention,),
        'ffn': (MixFFN,),
    }

    def example(self) -> nn.Module:
        return MixVisionTransformer(
            embed_dims=64, num_layers=[3, 6, 40, 3], num_heads=[1, 2, 5, 8]
        )

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return stages_of(backbone)
