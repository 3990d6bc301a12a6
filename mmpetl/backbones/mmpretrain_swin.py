"""Sites of mmpretrain's SwinTransformer, for classification and for dense tasks."""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.transformer import FFN, PatchEmbed, PatchMerging
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.swin_transformer import SwinBlock, SwinTransformer
from mmpretrain.models.utils import (
    ShiftWindowMSA,
    WindowMSA,
    resize_pos_embed,
    to_2tuple,
)
from torch import Tensor, nn

from mmpetl.core import (
    Partition,
    PETLError,
    WindowBackboneHost,
    WindowBlockHost,
    WindowSiteMap,
)
from mmpetl.registry import BACKBONES


class PETLSwinBlock(WindowBlockHost, SwinBlock):
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

    def position_bias(self, num_tokens: int) -> Tensor:
        msa = self.attn.w_msa
        rows = msa.relative_position_bias_table[msa.relative_position_index.flatten()]
        return rows.view(num_tokens, num_tokens, -1).permute(2, 0, 1)

    def attention_parts(self) -> dict[str, Any]:
        msa = self.attn.w_msa
        return {
            'num_heads': msa.num_heads,
            'qkv': msa.qkv,
            'proj': msa.proj,
            'dropout': msa.attn_drop.p if msa.training else 0.0,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.w_msa.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return fc1, lambda x: between[1](between[0](x)), fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.drop(x)
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class PETLSwinTransformer(WindowBackboneHost, SwinTransformer):
    """A Swin Transformer that runs sites."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        embed = self.patch_embed
        if embed.adaptive_padding:
            x = embed.adaptive_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        if self.use_abs_pos_embed:
            x = x + resize_pos_embed(
                self.absolute_pos_embed,
                self.patch_resolution,
                ctx.grid,
                self.interpolate_mode,
                self.num_extra_tokens,
            )
        x = self.drop_after_pos(x)
        x = self.after('embed', x, x, ctx)
        return tuple(self.run_stages(self.stages, x, ctx))

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        x = x.transpose(1, 2).unflatten(2, grid)
        if merge.adaptive_padding:
            x = merge.adaptive_padding(x)
        grid = tuple(n // 2 for n in x.shape[2:])
        return merge.sampler(x).transpose(1, 2), grid

    def repeat_four(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(4, dim=-1)


@BACKBONES.register_module()
class MMPretrainSwin(WindowSiteMap):
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
    positions = ('absolute_pos_embed',)
    scales = ('gamma2',)
    stages_name = 'stages'
    channels_first = True

    def example(self) -> nn.Module:
        return SwinTransformer(arch='base')

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            msa = block.attn.w_msa
            if msa.scale != (msa.embed_dims // msa.num_heads) ** -0.5:
                raise PETLError(f'{path}.attn has its own qk_scale; no sites for it')
            if block.ffn.num_fcs != 2 or not block.ffn.add_identity:
                raise PETLError(
                    f'{path}.ffn has {block.ffn.num_fcs} linear layers and '
                    f'add_identity={block.ffn.add_identity}; the site map knows 2 and '
                    'True'
                )
        for i, stage in enumerate(backbone.stages):
            if stage.downsample is not None:
                self.check_merging(f'stages.{i}.downsample', stage.downsample)

    def check_merging(self, path: str, merge: nn.Module) -> None:
        """Refuse a patch merging that does not take each 2 x 2 neighbours once."""
        self.check_class(path, merge, (PatchMerging,))
        cut = merge.sampler
        sizes = {to_2tuple(n) for n in (cut.kernel_size, cut.stride)}
        plain = sizes == {(2, 2)} and to_2tuple(cut.padding) == (0, 0)
        if not plain or to_2tuple(cut.dilation) != (1, 1) or merge.norm is None:
            raise PETLError(
                f'{path} is no merging of 2 x 2 patches with a norm, the only one that '
                'the site map knows; leave kernel_size, stride, padding, dilation and '
                'norm_cfg of downsample_cfg as they are'
            )

    def projection(self, backbone: nn.Module) -> nn.Module:
        return backbone.patch_embed.projection

    def block_facts(self, block: nn.Module):
        attn = block.attn
        window, shift = attn.window_size, attn.shift_size
        heads, mlp = attn.w_msa.num_heads, block.ffn.feedforward_channels
        return heads, mlp, (window, window), (shift, shift)
