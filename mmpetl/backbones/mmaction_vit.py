"""Sites of mmaction's VisionTransformer (VideoMAE)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from mmaction.models.backbones.vit_mae import Attention, Block, VisionTransformer
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv3d
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    BlockHost,
    Rows,
    Site,
    SiteMap,
    block_sites,
)
from mmpetl.registry import BACKBONES


class PETLBlock(BlockHost, Block):
    """A block that runs sites.

    Its attention has biases for queries and values only, and reads the weight of
    ``qkv`` without ever calling it.
    """

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': self.qkv(),
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
        }

    def qkv(self) -> nn.Module | Rows:
        """The fused projection, with biases of queries and values if it has any."""
        attn = self.attn
        if not hasattr(attn, 'q_bias'):
            return attn.qkv
        bias = (attn.q_bias, len(attn.q_bias), attn.v_bias)
        return Rows(attn.qkv.weight, bias)

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.mlp.layers
        return fc1, between, fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        gamma = getattr(self, f'gamma_{branch}', None)
        return self.drop_path(x if gamma is None else gamma * x)


class PETLVisionTransformer(BackboneHost, VisionTransformer):
    """A VideoMAE transformer that runs sites."""

    def forward(self, x: Tensor) -> Tensor:
        embed = self.patch_embed
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        h, w = ctx.grid[1:]
        pos_embed = self.pos_embed
        if (h, w) != tuple(self.grid_size):
            pos_embed = pos_embed.reshape(-1, *self.grid_size, self.embed_dims)
            pos_embed = F.interpolate(
                pos_embed.permute(0, 3, 1, 2),
                size=(h, w),
                mode='bicubic',
                align_corners=False,
            )
            pos_embed = pos_embed.permute(0, 2, 3, 1).reshape(1, -1, self.embed_dims)
        x = self.pos_drop(x + pos_embed)
        x = self.after('embed', x, x, ctx)
        for block in self.blocks:
            x = block(x, ctx)
        last = len(self.blocks) - 1
        if self.fc_norm is None or self.return_feat_map:
            norm = None if isinstance(self.norm, nn.Identity) else self.norm
            x = self.emit(x, norm, ctx, last)[1]
            if self.return_feat_map:
                x = x.unflatten(1, ctx.grid)
                return x.permute(0, 4, 1, 2, 3)
            return self.feature(x[:, 0], ctx, last)
        pooled = self.emit(x, None, ctx, last)[1].mean(1)
        pooled = self.norm_vector(self.fc_norm, pooled, ctx, last)
        return self.feature(pooled, ctx, last)


@BACKBONES.register_module()
class MMActionViT(SiteMap):
    """``mmaction.VisionTransformer``."""

    host = VisionTransformer
    host_block = Block
    swapped = PETLVisionTransformer
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv3d, Conv3d),
    }
    biases = ('bias', 'q_bias', 'v_bias')
    scales = ('gamma_1', 'gamma_2')

    def example(self) -> nn.Module:
        return VisionTransformer(norm_cfg={'type': 'LN', 'eps': 1e-6})

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        d = backbone.embed_dims
        projection = backbone.patch_embed.projection
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.blocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        facts['timed'] = True
        sites = [Site('embed.proj', '', patch, d, has_grid=True, **facts)]
        if backbone.patch_embed.norm is not None:
            sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            heads = block.attn.num_heads
            mlp = block.mlp.feedforward_channels
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        pooled = backbone.fc_norm is not None and not backbone.return_feat_map
        facts |= {'index': depth - 1}
        if pooled or not isinstance(backbone.norm, nn.Identity):
            grid = not pooled
            sites.append(Site('out.norm', '', d, d, has_grid=grid, **facts))
        sites.append(Site('out', '', d, d, has_grid=True, pooled=pooled, **facts))
        if not backbone.return_feat_map:
            sites.append(Site('feature', '', d, d, pooled=pooled, **facts))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        pooled = backbone.fc_norm is not None and not backbone.return_feat_map
        norm = backbone.fc_norm if pooled else backbone.norm
        return {
            'embed_proj': backbone.patch_embed.projection,
            'embed_norm': backbone.patch_embed.norm,
            f'out_norm_{len(backbone.blocks) - 1}': norm,
        }
