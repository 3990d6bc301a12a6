"""Sites of mmpretrain's ViTEVA02."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmpretrain.models.backbones.vit_eva02 import (
    AttentionWithRoPE,
    EVA02EndcoderLayer,
    ViTEVA02,
)
from mmpretrain.models.utils import RotaryEmbeddingFast, SwiGLUFFN
from torch import Tensor, nn

from mmpetl.backbones.mmpretrain_vit import MMPretrainViTMap
from mmpetl.backbones.shared.mm_plain import parts_of_ffn
from mmpetl.backbones.shared.mmpretrain_plain import MMPretrainPlain
from mmpetl.core import FFN, BlockHost, Context, PETLError
from mmpetl.registry import BACKBONES


class PETLEVA02EndcoderLayer(BlockHost, EVA02EndcoderLayer):
    """A block that runs sites; queries and keys of patches are turned."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
            'prepare': self.turn_patches,
        }

    def turn_patches(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary positions; tokens in front of the grid have none."""
        if self.attn.rope is None or not all(ctx.grid):
            return q, k, v
        cos, sin = ctx.handed
        own = q.shape[2] - len(cos)  # the patches are the last
        q, k = (
            torch.cat((t[:, :, :own], turned(t[:, :, own:], cos, sin).type_as(v)), 2)
            for t in (q, k)
        )
        return q, k, v

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self) -> FFN:
        return parts_of_ffn(self.mlp)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 2:
            x = self.mlp.dropout_layer(self.mlp.gamma2(x))
        return self.drop_path(x)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbours turned by its angle, (B, heads, N, d); tables (N, d)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin


class PETLViTEVA02(MMPretrainPlain, ViTEVA02):
    """A ViTEVA02 that runs sites.

    Upstream writes tables of another grid over those that the base holds; here they
    last for the pass alone, so that the base stays what it is.
    """

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        ctx.handed = self.tables(tuple(map(int, ctx.grid)), x)
        return super().positioned(x, ctx)

    def tables(self, grid: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles of a grid, (N, d) each."""
        rope = self.rope
        if grid == tuple(rope.patch_resolution):
            return rope.freqs_cos, rope.freqs_sin
        other = copy.copy(rope)
        other.patch_resolution = grid
        return tuple(t.to(x.device) for t in other.compute_position_embedding())


@BACKBONES.register_module()
class MMPretrainEVA02(MMPretrainViTMap):
    """``mmpretrain.ViTEVA02``."""

    host = ViTEVA02
    host_block = EVA02EndcoderLayer
    swapped = PETLViTEVA02
    swapped_block = PETLEVA02EndcoderLayer
    parts = {'attn': (AttentionWithRoPE,), 'mlp': (SwiGLUFFN,)}
    outer_parts = {**MMPretrainViTMap.outer_parts, 'rope': (RotaryEmbeddingFast,)}
    add_identity = False

    def example(self) -> nn.Module:
        return ViTEVA02(arch='base')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if block.attn.rope not in (None, backbone.rope):
                raise PETLError(
                    f'{path}.attn.rope is not the rope of the backbone; the site map '
                    'of mmpretrain.ViTEVA02 knows one for all blocks'
                )

    def ffn(self, block: nn.Module) -> nn.Module:
        return block.mlp
