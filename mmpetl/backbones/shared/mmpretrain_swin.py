"""What mmpretrain's Swin Transformers share: small maps, paddings, positions."""

from __future__ import annotations

from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_swin import MMSwinBackbone, MMSwinBlock
from mmpetl.core import Context, Partition, PETLError


class MMPretrainSwinBlock(MMSwinBlock):
    """A block that shifts no map of one window, unless it pads small maps."""

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


class MMPretrainSwinBackbone(MMSwinBackbone):
    """A backbone that resizes its position table, and gives a tuple."""

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
