"""Sites of mmaction's SwinTransformer3D (Video Swin)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmaction.models.backbones.swin import (
    Mlp,
    PatchEmbed3D,
    PatchMerging,
    SwinTransformer3D,
    SwinTransformerBlock3D,
    WindowAttention3D,
)
from mmcv.cnn.bricks.wrappers import Conv3d
from torch import Tensor, nn

from mmpetl.core import (
    Partition,
    WindowBackboneHost,
    WindowBlockHost,
    WindowSiteMap,
)
from mmpetl.registry import BACKBONES


class PETLSwinTransformerBlock3D(WindowBlockHost, SwinTransformerBlock3D):
    """A Video Swin block that runs sites."""

    def partition(self, grid: tuple[int, ...]) -> Partition:
        return Partition.shrunk(grid, self.window_size, self.shift_size)

    def position_bias(self, num_tokens: int) -> Tensor:
        attn, n = self.attn, num_tokens
        index = attn.relative_position_index[:n, :n].flatten()
        rows = attn.relative_position_bias_table[index]
        return rows.view(n, n, -1).permute(2, 0, 1)

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.training else 0.0,
            'scale': attn.scale,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def ffn_parts(self):
        mlp = self.mlp
        return mlp.fc1, (mlp.act, mlp.drop), mlp.fc2, mlp.drop

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x)


class PETLSwinTransformer3D(WindowBackboneHost, SwinTransformer3D):
    """A Video Swin Transformer that runs sites."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        embed = self.patch_embed
        sizes = zip(x.shape[2:], embed.patch_size, strict=True)
        pads = [-n % p for n, p in sizes]
        if any(pads):
            x = F.pad(x, (0, pads[2], 0, pads[1], 0, pads[0]))
        x, ctx = self.embed_patches(embed.proj, embed.norm, x)
        x = self.pos_drop(x)
        x = self.after('embed', x, x, ctx)
        outs = self.run_stages(self.layers, x, ctx)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        x = x.unflatten(1, grid)
        if grid[1] % 2 or grid[2] % 2:
            x = F.pad(x, (0, 0, 0, grid[2] % 2, 0, grid[1] % 2))
        near = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = torch.cat(near, dim=-1)
        return x.flatten(1, 3), tuple(x.shape[1:4])

    def repeat_four(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, 4)


@BACKBONES.register_module()
class MMActionSwin3D(WindowSiteMap):
    """``mmaction.SwinTransformer3D``."""

    host = SwinTransformer3D
    host_block = SwinTransformerBlock3D
    swapped = PETLSwinTransformer3D
    swapped_block = PETLSwinTransformerBlock3D
    parts = {'attn': (WindowAttention3D,), 'mlp': (Mlp,)}
    outer_parts = {
        'patch_embed': (PatchEmbed3D,),
        'patch_embed.proj': (nn.Conv3d, Conv3d),
    }
    stages_name = 'layers'
    channels_first = False

    def example(self) -> nn.Module:
        return SwinTransformer3D(
            arch='base', pretrained2d=False, patch_size=(2, 4, 4), window_size=(8, 7, 7)
        )

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for i, stage in enumerate(backbone.layers):
            if stage.downsample is not None:
                path = f'layers.{i}.downsample'
                self.check_class(path, stage.downsample, (PatchMerging,))

    def projection(self, backbone: nn.Module) -> nn.Module:
        return backbone.patch_embed.proj

    def block_facts(self, block: nn.Module):
        mlp = block.mlp.fc1.out_features
        return block.num_heads, mlp, tuple(block.window_size), tuple(block.shift_size)
