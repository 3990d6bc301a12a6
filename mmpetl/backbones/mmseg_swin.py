"""Sites of mmseg's SwinTransformer."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.swin import (
    ShiftWindowMSA,
    SwinBlock,
    SwinTransformer,
    WindowMSA,
)
from mmseg.models.utils.embed import PatchEmbed, PatchMerging
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_swin import MMSwinBackbone, MMSwinBlock, MMSwinMap
from mmpetl.registry import BACKBONES


class PETLSwinBlock(MMSwinBlock, SwinBlock):
    """A Swin block that runs sites."""


class PETLSwinTransformer(MMSwinBackbone, SwinTransformer):
    """A Swin Transformer that runs sites."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.outputs(x)


@BACKBONES.register_module()
class MMSegSwin(MMSwinMap):
    """``mmseg.SwinTransformer``."""

    host = SwinTransformer
    host_block = SwinBlock
    swapped = PETLSwinTransformer
    swapped_block = PETLSwinBlock
    parts = {'attn': (ShiftWindowMSA,), 'attn.w_msa': (WindowMSA,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    merging = PatchMerging

    def example(self) -> nn.Module:
        return SwinTransformer(
            embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)
        )
