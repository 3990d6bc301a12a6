"""Sites of timm's VisionTransformer, bare or inside of mmpretrain's TIMMBackbone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    BlockHost,
    Context,
    PETLError,
    Site,
    SiteMap,
    block_sites,
    patches_of,
)
from mmpetl.registry import BACKBONES


class PETLBlock(BlockHost, Block):
    """A block that runs sites."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'qk_norm': (attn.q_norm, attn.k_norm),
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        mlp = self.mlp
        return mlp.fc1, lambda x: mlp.norm(mlp.drop1(mlp.act(x))), mlp.fc2, mlp.drop2

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.drop_path1(self.ls1(x))
        return self.drop_path2(self.ls2(x))


class PETLVisionTransformer(BackboneHost, VisionTransformer):
    """A timm VisionTransformer that runs sites."""

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.tokens_of(x, attn_mask, is_causal)[0]

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x, ctx = self.tokens_of(x, attn_mask, is_causal)
        y = self.forward_head(x)
        return self.feature(y, ctx, len(self.blocks) - 1) if y.ndim == 2 else y

    def tokens_of(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Context]:
        """The normed tokens, and the facts of the pass that made them."""
        if attn_mask is not None or is_causal:
            raise PETLError('a backbone with sites takes no attn_mask and no is_causal')
        size = tuple(x.shape[-2:])
        embed = self.patch_embed
        ctx = Context(tuple(embed.dynamic_feat_size(size)))
        ctx.images = x
        tokens = embed(x)
        # timm keeps the grid where the input size may vary; deltas see (B, N, C).
        grid_shape = tokens.shape
        if self.plugged('embed.proj') or self.plugged('embed.norm'):
            tokens = embed.proj(x).flatten(2).transpose(1, 2)
            tokens = self.after('embed.proj', patches_of(embed.proj, x), tokens, ctx)
            tokens = self.through('embed.norm', embed.norm, tokens, ctx)
            tokens = tokens.view(grid_shape)
        x = self.norm_pre(self.patch_drop(self._pos_embed(tokens)))
        ctx.num_prefix = self.num_prefix_tokens
        x = self.after('embed', x, x, ctx)
        for block in self.blocks:
            block.with_cp = self.grad_checkpointing
            x = block(x, ctx)
        return self.emit(x, self.norm, ctx, len(self.blocks) - 1)[1], ctx


@BACKBONES.register_module()
class TimmViT(SiteMap):
    """``timm.models.vision_transformer.VisionTransformer``."""

    host = VisionTransformer
    host_block = Block
    head = ('head',)
    swapped = PETLVisionTransformer
    swapped_block = PETLBlock
    parts = {'attn': (Attention,), 'mlp': (Mlp,)}
    tokens = ('cls_token', 'reg_token')
    scales = ('gamma',)

    def example(self) -> nn.Module:
        return VisionTransformer(num_classes=0)

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if not isinstance(backbone.patch_drop, nn.Identity):
            raise PETLError(
                'timm dropped patches (patch_drop_rate > 0) leave no grid; '
                'build the model with patch_drop_rate=0'
            )
        for path, block in self.blocks(backbone):
            attn = block.attn
            plain = getattr(attn, 'gate', None) is None
            plain &= isinstance(getattr(attn, 'norm', nn.Identity()), nn.Identity)
            if not plain:
                raise PETLError(f'{path}.attn is gated or scale-normed; no sites yet')

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.blocks):
            yield f'blocks.{i}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        d = backbone.embed_dim
        projection = backbone.patch_embed.proj
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.blocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        sites = [Site('embed.proj', '', patch, d, has_grid=True, **facts)]
        if not isinstance(backbone.patch_embed.norm, nn.Identity):
            sites.append(Site('embed.norm', '', d, d, has_grid=True, **facts))
        sites.append(Site('embed', '', d, d, has_grid=True, **facts))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            heads = block.attn.num_heads
            mlp = block.mlp.fc1.out_features
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        facts['pooled'] = str(backbone.global_pool).startswith('avg')
        facts |= {'has_grid': True, 'index': depth - 1}
        if not isinstance(backbone.norm, nn.Identity):
            sites.append(Site('out.norm', '', d, d, **facts))
        sites.append(Site('out', '', d, d, **facts))
        # The width of what a classifier inside of the model reads is not free.
        if isinstance(backbone.head, nn.Identity) and backbone.global_pool:
            sites.append(Site('feature', '', d, d, **{**facts, 'has_grid': False}))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        return {
            'embed_proj': backbone.patch_embed.proj,
            'embed_norm': backbone.patch_embed.norm,
            f'out_norm_{len(backbone.blocks) - 1}': backbone.norm,
        }
