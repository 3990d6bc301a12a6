"""What the plain transformers of mmpretrain share beside ``mm_plain``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmpetl.backbones.shared.mm_plain import parts_of_ffn, with_tokens
from mmpetl.core import FFN, BackboneHost, BlockHost, Context


class MMPretrainBlock(BlockHost):
    """A block of mmpretrain's ``MultiheadAttention`` and a feed-forward network."""

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

    def ffn_parts(self) -> FFN:
        return parts_of_ffn(self.ffn)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.out_drop(self.attn.gamma1(x))
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class MMPretrainPlain(BackboneHost):
    """Patches, tokens and positions, blocks, and outputs of one ``out_type``."""

    def forward(self, x: Tensor) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        embed = self.patch_embed
        if embed.adaptive_padding:
            x = embed.adaptive_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        x = self.positioned(x, ctx)
        x = self.after('embed', x, x, ctx)
        outs = []
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                norm = self.norm1 if i == last and self.final_norm else None
                outs.append(self.formatted(self.emit(x, norm, ctx, i)[1], ctx, i))
        return tuple(outs)

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        """What enters the first block: class token, positions, dropout, norm."""
        if self.cls_token is not None:
            x = with_tokens([self.cls_token], x, ctx)
        return self.pre_norm(self.with_positions(x, ctx))

    def with_positions(self, x: Tensor, ctx: Context) -> Tensor:
        """Add the position table, resized to the grid; then its dropout."""
        if self.pos_embed is not None:
            x = x + self.resize_pos_embed(
                self.pos_embed,
                self.patch_resolution,
                ctx.grid,
                mode=self.interpolate_mode,
                num_extra_tokens=ctx.num_prefix,
            )
        return self.drop_after_pos(x)

    def formatted(
        self, y: Tensor, ctx: Context, index: int
    ) -> Tensor | tuple[Tensor, ...]:
        """What leaves, of class tokens and patches (B, num_extra_tokens + N, C)."""
        if self.out_type == 'avg_featmap':
            y = y[:, self.num_extra_tokens :].mean(dim=1)
            y = self.norm_vector(self.norm2, y, ctx, len(self.layers))
        else:
            y = self._format_output(y, ctx.grid)
        vector = isinstance(y, Tensor) and y.ndim == 2
        return self.feature(y, ctx, index) if vector else y
