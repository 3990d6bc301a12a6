"""Sites of mmpretrain's SwinTransformer, for classification and for dense tasks."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed, PatchMerging
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinTransformer
from mmpretrain.models.utils import ShiftWindowMSA, WindowMSA
from torch import nn

from mmpetl.backbones.shared.mm_swin import MMSwinMap
from mmpetl.backbones.shared.mmpretrain_swin import (
    MMPretrainSwinBackbone,
    MMPretrainSwinBlock,
)
from mmpetl.registry import BACKBONES


class PETLSwinBlock(MMPretrainSwinBlock, SwinBlock):
    """A Swin block that runs sites."""


class PETLSwinTransformer(MMPretrainSwinBackbone, SwinTransformer):
    """A Swin Transformer that runs sites."""


@BACKBONES.register_module()
class MMPretrainSwin(MMSwinMap):
    """``mmpretrain.SwinTransformer``."""

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
        return SwinTransformer(arch='base')
