"""Sites of mmpretrain's SwinTransformer, for classification and for dense tasks."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed, PatchMerging
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinTransformer
from mmpretrain.models.utils import ShiftWindowMSA, WindowMSA, resize_pos_embed
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_swin import MMSwinBackbone, MMSwinBlock, MMSwinMap
from mmpetl.core import Context, Partition, PETLError
from mmpetl.registry import BACKBONES


class PETLSwinBlock(MMSwinBlock, SwinBlock):
    """A Swin block that runs sites."""

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size, shift = self.attn.window_size, self.attn.shift_size
        if min(grid) < size and not self.attn.pad_small_map:
            raise PETLError(
                f'the map {grid} is smaller than the window ({size}); set '
                'pad_small_map=True, or use larger inputs'
            )
        if min(grid) == size and not self.attn.pad_small_map:
            shift = 0
        return Partition(tuple(grid), (size, size), (shift, shift))


class PETLSwinTransformer(MMSwinBackbone, SwinTransformer):
    """A Swin Transformer that runs sites."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(x))

    def padding_of(self, module: nn.Module) -> nn.Module | None:
        return module.adaptive_padding

    def add_positions(self, x: Tensor, ctx: Context) -> Tensor:
        return x + resize_pos_embed(
            self.absolute_pos_embed,
            self.patch_resolution,
            ctx.grid,
            self.interpolate_mode,
            self.num_extra_tokens,
        )


@BACKBONES.register_module()
class MMPretrainSwin(MMSwinMap):
    """``mmpretrain.SwinTransformer``."""

    host = SwinTransformer
    host_block = SwinBlock
    swapped = PETLSwinTransformer
    swapped_block = PETLSwinBlock
    parts = {'attn': (ShiftWindowMSA,), 'attn.w_msa': (WindowMSA,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    merging = PatchMerging

    def example(self) -> nn.Module:
        return SwinTransformer(arch='base')
