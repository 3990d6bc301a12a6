"""Sites of mmpretrain's ViTSAM, the image encoder of Segment Anything."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmcv.cnn.bricks.wrappers import Conv2d
from mmpretrain.models.backbones.vit_sam import (
    Attention,
    TransformerEncoderLayer,
    ViTSAM,
    get_rel_pos,
)
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mmpetl.backbones.shared import mm_plain
from mmpetl.core import BackboneHost, Context, Partition, WindowBlockHost
from mmpetl.registry import BACKBONES


class PETLTransformerEncoderLayer(WindowBlockHost, TransformerEncoderLayer):
    """A block that runs sites; where attention is global, the grid is its one window.

    Windows are padded behind the norm, and the padding attends.
    """

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size = self.window_size
        return Partition(tuple(grid), (size, size) if size else tuple(grid), (0, 0))

    def window_terms(
        self, partition: Partition, ctx: Context, device: torch.device
    ) -> dict[str, Any]:
        own = partial(self.relative_bias, partition.window)
        return {'bias': own if self.attn.use_rel_pos else None, 'mask': None}

    def relative_bias(self, window: tuple[int, int], q: Tensor, ctx: Context) -> Tensor:
        """What queries make of the tables of both axes, (B * windows, heads, N, N)."""
        h, w = window
        attn, maps = self.attn, q[:, :, -h * w :].unflatten(2, window)
        rows, columns = (
            get_rel_pos(n, n, table.to(q.device))
            for n, table in ((h, attn.rel_pos_h), (w, attn.rel_pos_w))
        )
        by_row = torch.einsum('bnhwc,hkc->bnhwk', maps, rows)
        by_column = torch.einsum('bnhwc,wkc->bnhwk', maps, columns)
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
        return bias.flatten(4).flatten(2, 3)

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'scale': attn.scale,
        }

    def ffn_parts(self):
        return mm_plain.parts_of_ffn(self.ffn)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return x if branch == 1 else self.ffn.dropout_layer(self.ffn.gamma2(x))


class PETLViTSAM(BackboneHost, ViTSAM):
    """A ViTSAM that runs sites; its neck is part of the base."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        embed = self.patch_embed
        if embed.adaptive_padding:
            x = embed.adaptive_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        ctx.grid = tuple(map(int, ctx.grid))
        if self.use_abs_pos:
            x = x + resize_pos_embed(
                self.pos_embed.flatten(1, 2),
                self.patch_resolution,
                ctx.grid,
                mode=self.interpolate_mode,
                num_extra_tokens=0,
            )
            x = self.drop_after_pos(x)
        x = self.after('embed', x, x, ctx)
        outs = []
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                y = self.emit(x, None, ctx, i)[1]
                y = y.transpose(1, 2).unflatten(2, ctx.grid)
                if self.out_channels > 0:
                    y = self.channel_reduction(y)
                outs.append(self._format_output(y))
        return tuple(outs)


@BACKBONES.register_module()
class MMPretrainSAM(mm_plain.MMPlainMap):
    """``mmpretrain.ViTSAM``."""

    host = ViTSAM
    host_block = TransformerEncoderLayer
    swapped = PETLViTSAM
    swapped_block = PETLTransformerEncoderLayer
    parts = {'attn': (Attention,), 'ffn': (FFN,)}
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
    }
    absent = {'feature': 'it attends in windows and gives maps, through a neck'}
    position_biases = ('rel_pos_h', 'rel_pos_w')
    scales = ('gamma2',)

    def example(self) -> nn.Module:
        return ViTSAM(arch='base', img_size=1024)

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        size = block.window_size
        if not size:
            return {}
        return {'windowed': True, 'window': (size, size), 'shift': (0, 0)}

    def pools(self, backbone: nn.Module) -> bool:
        # Where a neck stands in front of the mean, extra tokens have no share in it.
        return backbone.out_type == 'avg_featmap' and not backbone.out_channels

    def gives_vectors(self, backbone: nn.Module) -> bool:
        return False
