"""Sites of timm's SwinTransformerV2."""

from __future__ import annotations

from timm.layers import Mlp
from timm.models.swin_transformer_v2 import (
    PatchMerging,
    SwinTransformerV2,
    SwinTransformerV2Block,
    WindowAttention,
)
from torch import nn

from mmpetl.backbones.shared.swin_v2 import SwinV2Block
from mmpetl.backbones.shared.timm_swin import (
    TimmSwinBackbone,
    TimmSwinBlock,
    TimmSwinMap,
)
from mmpetl.registry import BACKBONES


class PETLSwinTransformerV2Block(SwinV2Block, TimmSwinBlock, SwinTransformerV2Block):
    """A block that runs sites; stochastic depth stands behind its norms."""


class PETLSwinTransformerV2(TimmSwinBackbone, SwinTransformerV2):
    """A Swin Transformer V2 that runs sites."""

    @staticmethod
    def norm_behind(merge: nn.Module) -> bool:
        return True


@BACKBONES.register_module()
class TimmSwinV2(TimmSwinMap):
    """``timm.models.swin_transformer_v2.SwinTransformerV2``."""

    host = SwinTransformerV2
    host_block = SwinTransformerV2Block
    swapped = PETLSwinTransformerV2
    swapped_block = PETLSwinTransformerV2Block
    parts = {'attn': (WindowAttention,), 'mlp': (Mlp,)}
    merging = PatchMerging
    biases = ('bias', 'q_bias', 'v_bias')

    def example(self) -> nn.Module:
        return SwinTransformerV2(
            img_size=256,
            window_size=8,
            embed_dim=128,
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            num_classes=0,
        )
