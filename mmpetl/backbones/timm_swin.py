"""Sites of timm's SwinTransformer, of Microsoft, S3 and others."""

from __future__ import annotations

from typing import Any

from timm.layers import Mlp
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_swin import (
    TimmSwinBackbone,
    TimmSwinBlock,
    TimmSwinMap,
)
from mmpetl.registry import BACKBONES


class PETLSwinTransformerBlock(TimmSwinBlock, SwinTransformerBlock):
    """A block that runs sites."""

    def position_bias(self, num_tokens: int) -> Tensor:
        return self.attn._get_rel_pos_bias()[0]

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
        }


class PETLSwinTransformer(TimmSwinBackbone, SwinTransformer):
    """A Swin Transformer that runs sites."""


@BACKBONES.register_module()
class TimmSwin(TimmSwinMap):
    """``timm.models.swin_transformer.SwinTransformer``."""

    host = SwinTransformer
    host_block = SwinTransformerBlock
    swapped = PETLSwinTransformer
    swapped_block = PETLSwinTransformerBlock
    parts = {'attn': (WindowAttention,), 'mlp': (Mlp,)}
    merging = PatchMerging
    position_biases = ('relative_position_bias_table',)

    def example(self) -> nn.Module:
        return SwinTransformer(
            embed_dim=128,
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            num_classes=0,
        )

    def attention_dims(self, block: nn.Module) -> int:
        return block.attn.proj.in_features
