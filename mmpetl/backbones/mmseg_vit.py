"""Sites of mmseg's VisionTransformer."""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.transformer import FFN as MMCVFFN
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.vit import TransformerEncoderLayer, VisionTransformer
from mmseg.models.utils import PatchEmbed
from torch import Tensor, nn

from mmpetl.backbones.shared.mmseg_plain import MMSegPlainBackbone, MMSegPlainMap
from mmpetl.core import BlockHost, Context, PETLError, Rows
from mmpetl.registry import BACKBONES


class PETLTransformerEncoderLayer(BlockHost, TransformerEncoderLayer):
    """A layer that runs sites; its attention is torch's, by its weights."""

    def attention_parts(self) -> dict[str, Any]:
        mha = self.attn.attn
        return {
            'num_heads': mha.num_heads,
            'qkv': Rows(mha.in_proj_weight, mha.in_proj_bias),
            'proj': mha.out_proj,
            'dropout': mha.dropout if mha.training else 0.0,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return fc1, lambda x: between[1](between[0](x)), fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.dropout_layer(x)
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class PETLVisionTransformer(MMSegPlainBackbone, VisionTransformer):
    """A VisionTransformer that runs sites."""

    def forward(self, inputs: Tensor) -> tuple[Tensor | list[Tensor], ...]:
        x, ctx = self.patches(inputs)
        x = self._pos_embeding(x, ctx.grid, self.pos_embed)
        if not self.with_cls_token:
            x, ctx.num_prefix = x[:, 1:], 0
        if self.pre_norm:
            x = self.pre_ln(x)
        x = self.after('embed', x, x, ctx)
        origin = [self.output(x, ctx)] if self.out_origin else []
        return (*origin, *self.run_layers(x, ctx))

    def output(self, x: Tensor, ctx: Context) -> Tensor | list[Tensor]:
        """A map, or with ``output_cls_token`` a map and the class token."""
        out = super().output(x, ctx)
        return [out, x[:, 0]] if self.output_cls_token else out


@BACKBONES.register_module()
class MMSegViT(MMSegPlainMap):
    """``mmseg.VisionTransformer``."""

    host = VisionTransformer
    host_block = TransformerEncoderLayer
    swapped = PETLVisionTransformer
    swapped_block = PETLTransformerEncoderLayer
    parts = {
        'attn': (MultiheadAttention,),
        'attn.attn': (nn.MultiheadAttention,),
        'ffn': (MMCVFFN,),
    }
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    biases = ('bias', 'in_proj_bias')
    scales = ('gamma2',)

    def example(self) -> nn.Module:
        return VisionTransformer(out_indices=(2, 5, 8, 11), patch_bias=True)

    def heads(self, block: nn.Module) -> int:
        return block.attn.attn.num_heads

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if any(i < 0 for i in backbone.out_indices):
            raise PETLError(
                f'out_indices {tuple(backbone.out_indices)} count from the end, which '
                'upstream takes for no output at all; count them from 0'
            )
