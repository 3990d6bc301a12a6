"""Sites of mmseg's BEiT and MAE: a position bias over class token and patches."""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.transformer import FFN as MMCVFFN
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.beit import BEiT, BEiTAttention, BEiTTransformerEncoderLayer
from mmseg.models.backbones.mae import MAE, MAEAttention, MAETransformerEncoderLayer
from mmseg.models.utils import PatchEmbed
from torch import Tensor, nn

from mmpetl.backbones.shared.mmseg_plain import MMSegPlainBackbone, MMSegPlainMap
from mmpetl.core import BlockHost, Context, PETLError, Rows
from mmpetl.registry import BACKBONES


class BEiTHost(BlockHost):
    """A layer whose every attention has a table of relative positions of its own."""

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        qkv: nn.Module | Rows = attn.qkv
        if attn.bias == 'qv_bias':
            bias = (attn.q_bias, len(attn.q_bias), attn.v_bias)
            qkv = Rows(attn.qkv.weight, bias)
        index = attn.relative_position_index
        rows = attn.relative_position_bias_table[index.flatten()]
        return {
            'num_heads': attn.num_heads,
            'qkv': qkv,
            'proj': attn.proj,
            'bias': rows.view(*index.shape, -1).permute(2, 0, 1),
            'bias_prefix': 1,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return fc1, lambda x: between[1](between[0](x)), fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 2:
            x = self.ffn.dropout_layer(self.ffn.gamma2(x))
        return self.drop_path(getattr(self, f'gamma_{branch}') * x)


class PETLBEiTTransformerEncoderLayer(BEiTHost, BEiTTransformerEncoderLayer):
    """A BEiT layer that runs sites."""


class PETLMAETransformerEncoderLayer(BEiTHost, MAETransformerEncoderLayer):
    """A layer of a tuned MAE that runs sites."""


class FixedGrid(MMSegPlainBackbone):
    """A backbone whose tables are for one grid."""

    def checked_patches(self, x: Tensor) -> tuple[Tensor, Context]:
        """:meth:`patches` of pictures of the one size."""
        size = tuple(x.shape[2:])
        x, ctx = self.patches(x)
        if ctx.grid != tuple(self.patch_shape):
            raise PETLError(
                f'the position tables are for pictures of {tuple(self.img_size)}, and '
                f'the input is {size}; set img_size to the size of the crops, and '
                "test_cfg=dict(mode='slide', ...) for larger pictures"
            )
        return x, ctx


class PETLBEiT(FixedGrid, BEiT):
    """A BEiT that runs sites."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        x, ctx = self.checked_patches(inputs)
        x = self.after('embed', x, x, ctx)
        return tuple(self.run_layers(x, ctx))


class PETLMAE(FixedGrid, MAE):
    """A tuned MAE that runs sites."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        x, ctx = self.checked_patches(inputs)
        x = x + self.pos_embed
        x = self.after('embed', x, x, ctx)
        return tuple(self.run_layers(x, ctx))


@BACKBONES.register_module()
class MMSegBEiT(MMSegPlainMap):
    """``mmseg.BEiT``."""

    host: type[nn.Module] = BEiT
    host_block: type[nn.Module] = BEiTTransformerEncoderLayer
    swapped: type[nn.Module] = PETLBEiT
    swapped_block: type[nn.Module] = PETLBEiTTransformerEncoderLayer
    parts = {'attn': (BEiTAttention,), 'ffn': (MMCVFFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    biases = ('bias', 'q_bias', 'v_bias')
    position_biases = ('relative_position_bias_table',)
    scales = ('gamma_1', 'gamma_2')

    def example(self) -> nn.Module:
        return self.host(img_size=224, out_indices=(3, 5, 7, 11))

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            if block.ffn.add_identity:
                raise PETLError(
                    f'{path}.ffn adds its input (add_identity=True); the site map '
                    'knows shortcuts outside of it'
                )


@BACKBONES.register_module()
class MMSegMAE(MMSegBEiT):
    """``mmseg.MAE``."""

    host = MAE
    host_block = MAETransformerEncoderLayer
    swapped = PETLMAE
    swapped_block = PETLMAETransformerEncoderLayer
    parts = {'attn': (MAEAttention,), 'ffn': (MMCVFFN,)}
