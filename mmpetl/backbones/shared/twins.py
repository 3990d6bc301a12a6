"""What both Twins of both packages share: windows without shift, and positions."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN as MMFFN
from torch import Tensor, nn

from mmpetl.backbones.shared.mm_pyramid import MMPyramidMap
from mmpetl.core import (
    FFN,
    BlockHost,
    Context,
    Partition,
    PyramidBackboneHost,
    Stage,
    WindowBlockHost,
    on_maps,
    padded_grid,
)


class TwinsFFN(BlockHost):
    """A block with mmcv's FFN at ``ffn``."""

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffn.layers
        return FFN.of(fc1, between, fc2, behind)


class LocalBlock(TwinsFFN, WindowBlockHost):
    """A block whose attention runs in windows (LSA).

    Windows are padded behind ``norm1``, neither shifted nor biased. What leaves them is
    put together to a map before the output projection. Where the map is padded on both
    axes, cells of the padding and others do not see each other; where on one only, the
    padding takes part, as upstream has it.
    """

    proj_in_windows = False

    def partition(self, grid: tuple[int, ...]) -> Partition:
        size = self.attn.window_size
        return Partition(tuple(map(int, grid)), (size, size), (0, 0))

    def window_terms(
        self, partition: Partition, ctx: Context, device: torch.device
    ) -> dict[str, Tensor | None]:
        key = 'padding', partition
        if key not in ctx.masks:
            ctx.masks[key] = padding_mask(partition, device)
        return {'bias': None, 'mask': ctx.masks[key]}

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attn
        return {
            'num_heads': attn.num_heads,
            'qkv': attn.qkv,
            'proj': attn.proj,
            'dropout': attn.attn_drop.p if attn.attn_drop.training else 0.0,
            'scale': attn.scale,
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x if branch == 1 else self.ffn.dropout_layer(x))


def padding_mask(partition: Partition, device: torch.device) -> Tensor | None:
    """What keeps cells of a map and of its padding apart.

    Returns:
        (windows, tokens, tokens), 0 within either and -1000 across, or None where an
        axis is not padded.
    """
    grid = partition.grid
    full = padded_grid(grid, partition.window)
    if any(f == g for f, g in zip(full, grid, strict=True)):
        return None
    height, width = (
        torch.arange(f, device=device) >= g for f, g in zip(full, grid, strict=True)
    )
    outside = (height[:, None] | width[None]).reshape(1, -1, 1)
    cut = Partition(full, partition.window, partition.shift)
    outside = cut.split(outside).squeeze(-1)
    return (outside.unsqueeze(1) != outside.unsqueeze(2)) * -1000.0


class TwinsBackbone(PyramidBackboneHost):
    """A Twins trunk: a position convolution follows the first block of each stage."""

    def entered(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        return self.position_encoding_drops[index](x)

    def between_blocks(self, index: int, place: int, x: Tensor, ctx: Context) -> Tensor:
        if place:
            return x
        encoding = self.position_encodings[index]

        def positions(maps: Tensor) -> Tensor:
            y = encoding.proj(maps)
            return y + maps if encoding.stride == 1 else y

        return on_maps(positions, x, ctx)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run_stages(x))


class TwinsMap(MMPyramidMap):
    """Site map of a Twins trunk.

    Attributes:
        local: Foreign class of the attention in windows.
    """

    local: type[nn.Module]
    parts = {'ffn': (MMFFN,)}

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            self.check_ffn(f'{path}.ffn', block.ffn)

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        facts = super().block_facts(block)
        if isinstance(block.attn, self.local):
            size = block.attn.window_size
            facts |= {
                'windowed': True,
                'proj_in_windows': False,
                'window': (size, size),
                'shift': (0, 0),
            }
        return facts


def stages_of(
    path: str,
    embeds: nn.ModuleList,
    lists: nn.ModuleList,
    norms: list[nn.Module | None],
    pads: list[nn.Module | None],
) -> list[Stage]:
    """The stages.

    Args:
        path: Name of the list of lists of blocks.
        embeds: Patch embedding of each stage.
        lists: Blocks of each stage.
        norms: Norm behind each stage, None without one.
        pads: Padding in front of each patch embedding.
    """
    rows = zip(embeds, lists, norms, pads, strict=True)
    return [
        Stage(
            f'{path}.{i}',
            list(enumerate(blocks)),
            embed.projection,
            embed.norm,
            norm,
            pad,
        )
        for i, (embed, blocks, norm, pad) in enumerate(rows)
    ]
