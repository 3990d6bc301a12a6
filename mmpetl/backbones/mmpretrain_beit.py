"""Sites of mmpretrain's BEiTViT (BEiT, BEiT v2, EVA)."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.beit import (
    BEiTTransformerEncoderLayer,
    BEiTViT,
    RelativePositionBias,
)
from mmpretrain.models.utils import BEiTAttention
from torch import Tensor, nn

from mmpetl.backbones.shared import mm_plain
from mmpetl.backbones.shared.mmpretrain_plain import MMPretrainPlain
from mmpetl.core import Context, PETLError
from mmpetl.registry import BACKBONES


class PETLBEiTTransformerEncoderLayer(mm_plain.TableBlock, BEiTTransformerEncoderLayer):
    """A block that runs sites."""


class PETLBEiTViT(MMPretrainPlain, BEiTViT):
    """A BEiTViT that runs sites; its blocks are handed the bias that they share."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        if has_tables(self):
            mm_plain.check_table_grid(ctx.grid, self.patch_resolution)
        if self.cls_token is not None:
            x = mm_plain.with_tokens([self.cls_token], x, ctx)
        if self.rel_pos_bias is not None:
            ctx.handed = mm_plain.table_bias(self.rel_pos_bias)
        return self.with_positions(x, ctx)


def has_tables(backbone: BEiTViT) -> bool:
    """Whether attention has a bias by relative positions."""
    tables = (block.attn.relative_position_bias_table for block in backbone.layers)
    return backbone.rel_pos_bias is not None or any(t is not None for t in tables)


@BACKBONES.register_module()
class MMPretrainBEiT(mm_plain.MMPlainMap):
    """``mmpretrain.BEiTViT``."""

    host = BEiTViT
    host_block = BEiTTransformerEncoderLayer
    swapped = PETLBEiTViT
    swapped_block = PETLBEiTTransformerEncoderLayer
    parts = {'attn': (BEiTAttention,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    biases = ('bias', 'q_bias', 'v_bias')
    position_biases = ('relative_position_bias_table',)
    scales = ('gamma_1', 'gamma_2', 'gamma2')
    add_identity = False

    def example(self) -> nn.Module:
        return BEiTViT(arch='base')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        shared = backbone.rel_pos_bias
        if shared is not None:
            self.check_class('rel_pos_bias', shared, (RelativePositionBias,))
        if backbone.cls_token is None and has_tables(backbone):
            raise PETLError(
                'mmpretrain.BEiTViT with with_cls_token=False has tables of relative '
                'positions for a class token and cannot run; set use_rel_pos_bias and '
                'use_shared_rel_pos_bias to False'
            )
