"""Sites of mmpretrain's VisionTransformer (ViT, MAE, DINOv2, CLIP's image tower)."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
    VisionTransformer,
)
from mmpretrain.models.utils import MultiheadAttention, SwiGLUFFNFused
from torch import nn

from mmpetl.backbones.shared.mm_plain import MMPlainMap
from mmpetl.backbones.shared.mmpretrain_plain import MMPretrainBlock, MMPretrainPlain
from mmpetl.core import PETLError
from mmpetl.registry import BACKBONES


class PETLTransformerEncoderLayer(MMPretrainBlock, TransformerEncoderLayer):
    """An encoder layer that runs sites."""


class PETLVisionTransformer(MMPretrainPlain, VisionTransformer):
    """A VisionTransformer that runs sites."""


class MMPretrainViTMap(MMPlainMap):
    """Site map of a VisionTransformer and of what is made of its layers."""

    host_block = TransformerEncoderLayer
    swapped_block = PETLTransformerEncoderLayer
    parts = {'attn': (MultiheadAttention,), 'ffn': (FFN, SwiGLUFFNFused)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    scales = ('gamma1', 'gamma2')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if getattr(block.attn, 'v_shortcut', False):
                raise PETLError(
                    f'{path}.attn has a shortcut of values; no sites for it'
                )


@BACKBONES.register_module()
class MMPretrainViT(MMPretrainViTMap):
    """``mmpretrain.VisionTransformer``."""

    host = VisionTransformer
    swapped = PETLVisionTransformer
    instead = {
        **dict.fromkeys(
            (
                'mmpretrain.MAEViT',
                'mmpretrain.MFFViT',
                'mmpretrain.MILANViT',
                'mmpretrain.MaskFeatViT',
                'mmpretrain.MoCoV3ViT',
            ),
            'mmpretrain.VisionTransformer',
        ),
        **dict.fromkeys(
            ('mmpretrain.BEiTPretrainViT', 'mmpretrain.CAEPretrainViT'),
            'mmpretrain.BEiTViT',
        ),
        **dict.fromkeys(
            ('mmpretrain.MAEHiViT', 'mmpretrain.iTPNHiViT'), 'mmpretrain.HiViT'
        ),
        'mmpretrain.VQKD': 'mmpretrain.BEiTViT',
        'mmpretrain.SimMIMSwinTransformer': 'mmpretrain.SwinTransformer',
        'mmpretrain.MixMIMPretrainTransformer': 'mmpretrain.MixMIMTransformer',
    }

    def example(self) -> nn.Module:
        return VisionTransformer(arch='base', out_type='cls_token')
