"""Sites of mmpretrain's SwinTransformerV2."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.swin_transformer_v2 import (
    SwinBlockV2,
    SwinTransformerV2,
)
from mmpretrain.models.utils import PatchMerging, ShiftWindowMSA, WindowMSAV2
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_swin import MMSwinMap
from mmpetl.backbones.shared.mmpretrain_swin import (
    MMPretrainSwinBackbone,
    MMPretrainSwinBlock,
)
from mmpetl.backbones.shared.swin_v2 import SwinV2Block
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLSwinBlockV2(SwinV2Block, MMPretrainSwinBlock, SwinBlockV2):
    """A block that runs sites; stochastic depth stands in front of its norms."""

    def window_attention(self) -> nn.Module:
        return self.attn.w_msa

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.drop(self.attn.w_msa.proj_drop(x))

    def ffn_parts(self):
        fc1, between, fc2, behind = super().ffn_parts()
        ffn = self.ffn
        return fc1, between, fc2, lambda x: ffn.dropout_layer(ffn.gamma2(behind(x)))

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return x

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        x = super().sublayers(x, ctx)
        return self.norm3(x) if self.extra_norm else x


class PETLSwinTransformerV2(MMPretrainSwinBackbone, SwinTransformerV2):
    """A Swin Transformer V2 that runs sites."""

    opening = True

    @staticmethod
    def norm_behind(merge: PatchMerging) -> bool:
        return merge.use_post_norm


@BACKBONES.register_module()
class MMPretrainSwinV2(MMSwinMap):
    """``mmpretrain.SwinTransformerV2``."""

    host = SwinTransformerV2
    host_block = SwinBlockV2
    swapped = PETLSwinTransformerV2
    swapped_block = PETLSwinBlockV2
    parts = {'attn': (ShiftWindowMSA,), 'attn.w_msa': (WindowMSAV2,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    merging = PatchMerging
    adds_identity = False
    biases = ('bias', 'q_bias', 'v_bias')

    def example(self) -> nn.Module:
        return SwinTransformerV2(arch='base')

    def out_dims(self, backbone: nn.Module, index: int) -> int:
        return backbone.stages[index].out_channels
