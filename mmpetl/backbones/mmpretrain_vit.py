"""Sites of mmpretrain's VisionTransformer (ViT, MAE, DINOv2, CLIP's image tower)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
    VisionTransformer,
)
from mmpretrain.models.utils import MultiheadAttention, resize_pos_embed
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    BlockHost,
    PETLError,
    Site,
    SiteMap,
    block_sites,
)
from mmpetl.registry import BACKBONES


class PETLTransformerEncoderLayer(BlockHost, TransformerEncoderLayer):
    """An encoder layer that runs sites."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop if attn.training else 0.0,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return fc1, lambda x: between[1](between[0](x)), fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.out_drop(self.attn.gamma1(x))
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class PETLVisionTransformer(BackboneHost, VisionTransformer):
    """A VisionTransformer that runs sites."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        embed = self.patch_embed
        if embed.adaptive_padding:
            x = embed.adaptive_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            ctx.num_prefix = 1
        x = x + resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            ctx.grid,
            mode=self.interpolate_mode,
            num_extra_tokens=self.num_extra_tokens,
        )
        x = self.pre_norm(self.drop_after_pos(x))
        x = self.after('embed', x, x, ctx)
        outs = []
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                norm = self.ln1 if i == last and self.final_norm else None
                y = self.emit(x, norm, ctx, i)[1]
                if self.out_type == 'avg_featmap':
                    y = y[:, self.num_extra_tokens :].mean(dim=1)
                    y = self.norm_vector(self.ln2, y, ctx, last + 1)
                else:
                    y = self._format_output(y, ctx.grid)
                outs.append(self.feature(y, ctx, i) if y.ndim == 2 else y)
        return tuple(outs)


@BACKBONES.register_module()
class MMPretrainViT(SiteMap):
    """``mmpretrain.VisionTransformer``."""

    host = VisionTransformer
    host_block = TransformerEncoderLayer
    swapped = PETLVisionTransformer
    swapped_block = PETLTransformerEncoderLayer
    parts = {'attn': (MultiheadAttention,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    scales = ('gamma1', 'gamma2')

    def example(self) -> nn.Module:
        return VisionTransformer(arch='base', out_type='cls_token')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if block.attn.v_shortcut:
                raise PETLError(
                    f'{path}.attn has a shortcut of values; no sites for it'
                )
            if block.ffn.num_fcs != 2 or not block.ffn.add_identity:
                raise PETLError(
                    f'{path}.ffn has {block.ffn.num_fcs} linear layers and '
                    f'add_identity={block.ffn.add_identity}; the site map knows 2 and '
                    'True'
                )

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.layers):
            yield f'layers.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        d = backbone.embed_dims
        projection = backbone.patch_embed.projection
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.layers)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        sites = [Site('embed.proj', '', patch, d, has_grid=True, **facts)]
        if backbone.patch_embed.norm is not None:
            sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            heads = block.attn.num_heads
            mlp = block.ffn.feedforward_channels
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        facts['pooled'] = backbone.out_type == 'avg_featmap'
        grid, vector = ({**facts, 'has_grid': has} for has in (True, False))
        outputs = sorted({i for i in backbone.out_indices if i < depth})
        for i in outputs:
            if i == depth - 1 and backbone.final_norm:
                sites.append(Site('out.norm', '', d, d, index=i, **grid))
            sites.append(Site('out', '', d, d, index=i, **grid))
            if facts['pooled'] and i == outputs[-1]:
                # One site, as one norm serves every output.
                sites.append(Site('out.norm', '', d, d, index=depth, **vector))
            if backbone.out_type in ('cls_token', 'avg_featmap'):
                sites.append(Site('feature', '', d, d, index=i, **vector))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        depth = len(backbone.layers)
        modules = {
            'embed_proj': backbone.patch_embed.projection,
            'embed_norm': backbone.patch_embed.norm,
        }
        if backbone.final_norm:
            modules[f'out_norm_{depth - 1}'] = backbone.ln1
        if backbone.out_type == 'avg_featmap':
            modules[f'out_norm_{depth}'] = backbone.ln2
        return modules
