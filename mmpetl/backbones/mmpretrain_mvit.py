"""Sites of mmpretrain's MViT, version 2 of the multi-scale vision transformer."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.mvit import (
    MLP,
    MultiScaleAttention,
    MultiScaleBlock,
    MViT,
    resize_decomposed_rel_pos,
)
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mmpetl.backbones.shared.mvit import MViTBlock, MViTMap, MViTTrunk
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLMultiScaleBlock(MViTBlock, MultiScaleBlock):
    """A block that runs sites."""

    tables = ('rel_pos_h', 'rel_pos_w')
    resize = staticmethod(resize_decomposed_rel_pos)

    def has_positions(self) -> bool:
        return self.attn.rel_pos_spatial


class PETLMViT(MViTTrunk, MViT):
    """An MViT that runs sites."""

    def entered(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        if not self.use_abs_pos_embed:
            return x
        return x + resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            ctx.grid,
            mode=self.interpolate_mode,
            num_extra_tokens=0,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps(y, grid) for y, grid in self.run_blocks(x))


@BACKBONES.register_module()
class MMPretrainMViT(MViTMap):
    """``mmpretrain.MViT``."""

    host = MViT
    host_block = MultiScaleBlock
    swapped = PETLMViT
    swapped_block = PETLMultiScaleBlock
    parts = {'attn': (MultiScaleAttention,), 'mlp': (MLP,)}
    outer_parts = {'patch_embed': (PatchEmbed,)}
    convolutions = (nn.Conv2d, Conv2d)
    tokens = ()

    def example(self) -> nn.Module:
        return MViT(arch='base')
