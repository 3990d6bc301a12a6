"""Sites of timm's Beit: BEiT and BEiT v2."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp, SwiGLU
from timm.models.beit import (
    Attention,
    Beit,
    Block,
    RelativePositionBias,
    beit_base_patch16_224,
)
from torch import Tensor, nn

from mmpetl.backbones.shared.timm_plain import (
    GammaBlock,
    TimmPlain,
    TimmPlainMap,
    biased_qkv,
)
from mmpetl.core import Context, Rows
from mmpetl.registry import BACKBONES


def table_bias(owner: Attention | RelativePositionBias) -> Tensor:
    """The position bias of class token and patches, (heads, 1 + N, 1 + N)."""
    index = owner.relative_position_index
    rows = owner.relative_position_bias_table[index.flatten()]
    return rows.view(*index.shape, -1).permute(2, 0, 1)


class PETLBlock(GammaBlock, Block):
    """A block that runs sites.

    Keys have no bias and need none, as neither norms nor rotations follow.
    """

    def projections(self) -> nn.Module | Rows:
        return biased_qkv(self.attn, free=True)

    def attention_parts(self) -> dict[str, Any]:
        return {
            **super().attention_parts(),
            'prepare': None,
            'behind': None,
            'bias': self.position_bias,
            'bias_prefix': 1,
        }

    def position_bias(self, q: Tensor, ctx: Context) -> Tensor | None:
        """Of the block's own table and of the one that all blocks share."""
        shared = ctx.handed
        if self.attn.relative_position_bias_table is None:
            return shared
        own = table_bias(self.attn)
        return own if shared is None else own + shared


class PETLBeit(TimmPlain, Beit):
    """A timm Beit that runs sites; its blocks are handed the bias that they share."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        if self.rel_pos_bias is not None:
            ctx.handed = table_bias(self.rel_pos_bias)
        return self.pos_drop(x)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of the patches or the class token; all tokens without pooling."""
        if not self.global_pool:
            return x
        return x[:, 1:].mean(dim=1) if self.global_pool == 'avg' else x[:, 0]


@BACKBONES.register_module()
class TimmBeit(TimmPlainMap):
    """``timm.models.beit.Beit``."""

    host = Beit
    host_block = Block
    swapped = PETLBeit
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (Mlp, SwiGLU)}
    position_biases = ('relative_position_bias_table',)
    scales = ('gamma_1', 'gamma_2')

    def example(self) -> nn.Module:
        return beit_base_patch16_224(num_classes=0)
