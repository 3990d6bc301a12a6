"""Sites of mmseg's VisionTransformer."""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.vit import TransformerEncoderLayer, VisionTransformer
from mmseg.models.utils.embed import PatchEmbed
from torch import Tensor, nn

from mmpetl.backbones.shared import mm_plain
from mmpetl.core import BackboneHost, BlockHost, Context, Rows
from mmpetl.registry import BACKBONES


class PETLTransformerEncoderLayer(BlockHost, TransformerEncoderLayer):
    """An encoder layer that runs sites; its attention is torch's own."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': Rows(attn.in_proj_weight, attn.in_proj_bias),
            'proj': attn.out_proj,
            'dropout': attn.dropout if attn.training else 0.0,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        return mm_plain.parts_of_ffn(self.ffn)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.dropout_layer(x)
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class PETLVisionTransformer(BackboneHost, VisionTransformer):
    """A VisionTransformer that runs sites."""

    def forward(self, x: Tensor) -> tuple[Tensor | list[Tensor], ...]:
        embed = self.patch_embed
        if embed.adap_padding:
            x = embed.adap_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        x = mm_plain.with_tokens([self.cls_token], x, ctx)
        x = self._pos_embeding(x, ctx.grid, self.pos_embed)
        if not self.with_cls_token:
            x = x[:, 1:]
            ctx.num_prefix = 0
        if self.pre_norm:
            x = self.pre_ln(x)
        x = self.after('embed', x, x, ctx)
        outs = [self.formatted(x, ctx)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                norm = self.norm1 if i == last and self.final_norm else None
                outs.append(self.formatted(self.emit(x, norm, ctx, i)[1], ctx))
        return tuple(outs)

    def formatted(self, y: Tensor, ctx: Context) -> Tensor | list[Tensor]:
        """The map, (B, C, H, W), and where it is asked for the class token, (B, C)."""
        found = mm_plain.to_map(y, ctx)
        return [found, y[:, 0]] if self.output_cls_token else found


@BACKBONES.register_module()
class MMSegViT(mm_plain.MMPlainMap):
    """``mmseg.VisionTransformer``."""

    host = VisionTransformer
    host_block = TransformerEncoderLayer
    swapped = PETLVisionTransformer
    swapped_block = PETLTransformerEncoderLayer
    parts = {
        'attn': (MultiheadAttention,),
        'attn.attn': (nn.MultiheadAttention,),
        'ffn': (FFN,),
    }
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    absent = {'feature': 'outputs are maps'}
    biases = ('bias', 'in_proj_bias')
    weights = ('weight', 'in_proj_weight')
    scales = ('gamma2',)

    def example(self) -> nn.Module:
        return VisionTransformer(img_size=(512, 512), out_indices=(2, 5, 8, 11))
