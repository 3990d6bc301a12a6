"""Sites of mmaction's MViT, version 2 of multi-scale vision transformers, on clips."""

from __future__ import annotations

import torch
from mmaction.models.backbones.mvit import (
    MLP,
    MultiScaleAttention,
    MultiScaleBlock,
    MViT,
    resize_decomposed_rel_pos,
    resize_pos_embed,
)
from mmaction.models.utils.embed import PatchEmbed3D
from mmcv.cnn.bricks.wrappers import Conv3d
from torch import Tensor, nn

from mmpetl.backbones.shared.mvit import MViTBlock, MViTMap, MViTTrunk
from mmpetl.core import Context
from mmpetl.registry import BACKBONES


class PETLMultiScaleBlock(MViTBlock, MultiScaleBlock):
    """A block that runs sites."""

    tables = ('rel_pos_t', 'rel_pos_h', 'rel_pos_w')
    resize = staticmethod(resize_decomposed_rel_pos)

    def has_positions(self) -> bool:
        return self.attn.rel_pos_embed


class PETLMViT(MViTTrunk, MViT):
    """An MViT on clips that runs sites."""

    def entered(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.use_abs_pos_embed:
            x = x + resize_pos_embed(
                self.pos_embed,
                self.patch_resolution,
                ctx.grid,
                mode=self.interpolate_mode,
                num_extra_tokens=self.num_extra_tokens,
            )
        if self.with_cls_token:
            ctx.num_prefix = 1
            return x
        return x[:, 1:]

    def forward(self, x: Tensor) -> tuple[Tensor | list[Tensor | None], ...]:
        outs = []
        for y, grid in self.run_blocks(x):
            own = int(self.with_cls_token)
            maps = y.transpose(1, 2)[:, :, own:].reshape(y.shape[0], -1, *grid)
            outs.append([maps, y[:, 0]] if self.output_cls_token else maps)
        return tuple(outs)


@BACKBONES.register_module()
class MMActionMViT(MViTMap):
    """``mmaction.MViT``."""

    host = MViT
    host_block = MultiScaleBlock
    swapped = PETLMViT
    swapped_block = PETLMultiScaleBlock
    parts = {'attn': (MultiScaleAttention,), 'mlp': (MLP,)}
    outer_parts = {'patch_embed': (PatchEmbed3D,)}
    convolutions = (nn.Conv3d, Conv3d)

    def example(self) -> nn.Module:
        return MViT(arch='base', temporal_size=32)

    def averaged(self, backbone: nn.Module) -> bool:
        return super().averaged(backbone) and not backbone.with_cls_token
