"""Sites of mmseg's BEiT and MAE, two names for transformers with position tables."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.beit import (
    BEiT,
    BEiTAttention,
    BEiTTransformerEncoderLayer,
)
from mmseg.models.backbones.mae import MAE, MAEAttention, MAETransformerEncoderLayer
from mmseg.models.utils.embed import PatchEmbed
from torch import Tensor, nn

from mmpetl.backbones.shared import mm_plain
from mmpetl.core import BackboneHost, Context
from mmpetl.registry import BACKBONES


class PETLBEiTTransformerEncoderLayer(mm_plain.TableBlock, BEiTTransformerEncoderLayer):
    """A block that runs sites."""


class PETLMAETransformerEncoderLayer(mm_plain.TableBlock, MAETransformerEncoderLayer):
    """A block that runs sites."""


class TableTrunk(BackboneHost):
    """The forward pass of both; inputs have the size that the tables are for."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        """Class token and patches, (B, 1 + N, C)."""
        return mm_plain.with_tokens([self.cls_token], x, ctx)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        embed = self.patch_embed
        if embed.adap_padding:
            x = embed.adap_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        mm_plain.check_table_grid(ctx.grid, self.patch_shape)
        x = self.positioned(x, ctx)
        x = self.after('embed', x, x, ctx)
        outs = []
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                norm = self.norm1 if i == last and self.final_norm else None
                outs.append(mm_plain.to_map(self.emit(x, norm, ctx, i)[1], ctx))
        return tuple(outs)


class PETLBEiT(TableTrunk, BEiT):
    """A BEiT that runs sites."""


class PETLMAE(TableTrunk, MAE):
    """An MAE that runs sites: a BEiT with an absolute position table as well."""

    def positioned(self, x: Tensor, ctx: Context) -> Tensor:
        return super().positioned(x, ctx) + self.pos_embed


class TableMap(mm_plain.MMPlainMap):
    """What the two site maps share."""

    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    absent = {'feature': 'outputs are maps'}
    biases = ('bias', 'q_bias', 'v_bias')
    position_biases = ('relative_position_bias_table',)
    scales = ('gamma_1', 'gamma_2', 'gamma2')
    add_identity = False


@BACKBONES.register_module()
class MMSegBEiT(TableMap):
    """``mmseg.BEiT``."""

    host = BEiT
    host_block = BEiTTransformerEncoderLayer
    swapped = PETLBEiT
    swapped_block = PETLBEiTTransformerEncoderLayer
    parts = {'attn': (BEiTAttention,), 'ffn': (FFN,)}

    def example(self) -> nn.Module:
        return BEiT(img_size=(640, 640), out_indices=(3, 5, 7, 11))


@BACKBONES.register_module()
class MMSegMAE(TableMap):
    """``mmseg.MAE``."""

    host = MAE
    host_block = MAETransformerEncoderLayer
    swapped = PETLMAE
    swapped_block = PETLMAETransformerEncoderLayer
    parts = {'attn': (MAEAttention,), 'ffn': (FFN,)}

    def example(self) -> nn.Module:
        return MAE(img_size=(512, 512), out_indices=(3, 5, 7, 11))
