"""What the Swin Transformers of OpenMMLab share: windows, patch mergings, checks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Partition,
    PETLError,
    WindowBackboneHost,
    WindowBlockHost,
    WindowSiteMap,
)


class MMSwinBlock(WindowBlockHost):
    """A block of ``norm1``, ``attn.w_msa``, ``norm2`` and mmcv's ``ffn``.

    Windows are padded, and shifted however small the map is.
    """

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size, shift = self.attn.window_size, self.attn.shift_size
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
            'scale': msa.scale,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.w_msa.proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return fc1, between, fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attn.drop(x)
        return self.ffn.dropout_layer(self.ffn.gamma2(x))


class MMSwinBackbone(WindowBackboneHost):
    """A patch embedding, stages with ``nn.Unfold`` between them, a norm per output."""

    out_after_downsample = False

    def padding_of(self, module: nn.Module) -> nn.Module | None:
        """What pads the input of a patch embedding or merging, None where nothing."""
        return module.adap_padding

    def add_positions(self, x: Tensor, ctx: Context) -> Tensor:
        """Add the absolute position table, of one size only."""
        table = self.absolute_pos_embed
        if table.shape[1] != x.shape[1]:
            raise PETLError(
                f'the position table is for {table.shape[1]} patches, and the input '
                f'has {x.shape[1]}; set pretrain_img_size to the size of the input'
            )
        return x + table

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Every output, (B, C, H, W)."""
        embed = self.patch_embed
        padding = self.padding_of(embed)
        if padding:
            x = padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        if self.use_abs_pos_embed:
            x = self.add_positions(x, ctx)
        x = self.drop_after_pos(x)
        x = self.after('embed', x, x, ctx)
        return self.run_stages(self.stages, x, ctx)

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        x = x.unflatten(1, grid)
        padding = self.padding_of(merge)
        if padding:
            x = padding(x.movedim(-1, 1)).movedim(1, -1)
        height, width = (n // 2 for n in x.shape[1:3])
        x = x[:, : 2 * height, : 2 * width]
        # What `merge.sampler` gives. Behind that function gradients are maps in memory,
        # and stay so down the stage, where each sum and product has to turn them.
        x = x.unflatten(2, (width, 2)).unflatten(1, (height, 2))
        return x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2), (height, width)

    def repeat_four(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(4, dim=-1)


class MMSwinMap(WindowSiteMap):
    """Site map of such a backbone.

    Attributes:
        merging: Class of the patch mergings.
        adds_identity: Whether feed-forward networks add their input themselves.
    """

    merging: type[nn.Module]
    adds_identity = True
    positions = ('absolute_pos_embed',)
    scales = ('gamma2',)
    stages_name = 'stages'
    channels_first = True

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            ffn = block.ffn
            if ffn.num_fcs != 2 or ffn.add_identity is not self.adds_identity:
                raise PETLError(
                    f'{path}.ffn has {ffn.num_fcs} linear layers and '
                    f'add_identity={ffn.add_identity}; the site map knows 2 and '
                    f'{self.adds_identity}'
                )
        for i, stage in enumerate(backbone.stages):
            if stage.downsample is not None:
                self.check_merging(f'stages.{i}.downsample', stage.downsample)

    def check_merging(self, path: str, merge: nn.Module) -> None:
        """Refuse a patch merging that does not take each 2 x 2 neighbours once."""
        self.check_class(path, merge, (self.merging,))
        cut = merge.sampler
        sizes = {_pair(n) for n in (cut.kernel_size, cut.stride)}
        plain = sizes == {(2, 2)} and _pair(cut.padding) == (0, 0)
        if not plain or _pair(cut.dilation) != (1, 1):
            raise PETLError(
                f'{path} is no merging of 2 x 2 patches, the only one that the site '
                'map knows; leave its kernel_size, stride, padding and dilation (and '
                'strides of the backbone) as they are'
            )

    def projection(self, backbone: nn.Module) -> nn.Module:
        return backbone.patch_embed.projection

    def stage_dims(self, stage: nn.Module) -> int:
        return stage.blocks[0].attn.w_msa.embed_dims

    def block_facts(self, block: nn.Module):
        attn = block.attn
        window, shift = attn.window_size, attn.shift_size
        heads, mlp = attn.w_msa.num_heads, block.ffn.feedforward_channels
        return heads, mlp, (window, window), (shift, shift)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
