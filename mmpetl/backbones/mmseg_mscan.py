"""Sites of mmseg's MSCAN, the trunk of SegNeXt."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from mmseg.models.backbones.mscan import (
    MSCAN,
    Mlp,
    MSCABlock,
    MSCASpatialAttention,
    OverlapPatchEmbed,
    StemConv,
)
from torch import Tensor, nn

from mmpetl.core import (
    FFN,
    BlockHost,
    Context,
    PyramidBackboneHost,
    PyramidSiteMap,
    Rows,
    Stage,
    to_maps,
)
from mmpetl.registry import BACKBONES

NO_SCORES = (
    'its attention multiplies by what large convolutions give, and has no queries, '
    'keys and values'
)
ABSENT = {
    **dict.fromkeys(('attn.qkv', 'attn.q', 'attn.k', 'attn.v', 'attn.core'), NO_SCORES),
    'tokens': 'its attention is convolutions over the grid, where extra tokens have no '
    'place',
    'feature': PyramidSiteMap.absent['feature'],
    'embed.proj': 'the stem is made of several convolutions',
}


def stages_of(backbone: MSCAN) -> list[Stage]:
    """The stages; the first is opened by a stem of two convolutions."""
    found = []
    for i in range(1, backbone.num_stages + 1):
        embed = getattr(backbone, f'patch_embed{i}')
        stem = isinstance(embed, StemConv)
        found.append(
            Stage(
                f'block{i}',
                list(enumerate(getattr(backbone, f'block{i}'))),
                None if stem else embed.proj,
                None if stem else embed.norm,
                getattr(backbone, f'norm{i}'),
            )
        )
    return found


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C), a view: the channels stay first in memory.

    Depth-wise convolutions with long kernels are slow on maps with the channels last.
    """
    return x.flatten(2).transpose(1, 2)


def on_tokens(
    module: Callable[[Tensor], Tensor], ctx: Context
) -> Callable[[Tensor], Tensor]:
    """A module of maps as a function of (B, N, C)."""
    return lambda x: tokens_of(module(to_maps(x, ctx.grid)))


def linear(conv: nn.Module) -> Rows:
    """A 1x1 convolution as a linear map of (B, N, C), computed on maps."""
    return Rows(
        conv.weight,
        conv.bias,
        lambda x: tokens_of(conv(to_maps(x, rectangle(x.shape[1])))),
    )


@functools.cache
def rectangle(count: int) -> tuple[int, int]:
    """The sides of a map of so many cells, as near to a square as can be.

    A 1x1 convolution is slower on a map of a single column.
    """
    short = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return short, count // short


class PETLMSCABlock(BlockHost, MSCABlock):
    """An MSCAN block that runs sites."""

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        norm1, norm2 = (on_tokens(norm, ctx) for norm in self.norms())
        x = self.sublayer(1, 'attn', norm1, self.attention, x, ctx)
        return self.sublayer(2, 'ffn', norm2, self.ffn_network, x, ctx)

    def attention_parts(self) -> dict[str, Any]:
        return {'proj': linear(self.attn.proj_2)}

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        attn = self.attn
        h = linear(attn.proj_1)(x)
        # The activation is faster on maps, which lie in order in memory.
        h = on_tokens(lambda m: attn.spatial_gating_unit(attn.activation(m)), ctx)(h)
        return self.through('attn.proj', linear(attn.proj_2), h, ctx) + x

    def ffn_parts(self) -> FFN:
        mlp = self.mlp
        return FFN(linear(mlp.fc1), self.between, linear(mlp.fc2), mlp.drop)

    def between(self, x: Tensor, ctx: Context) -> Tensor:
        """The depth-wise convolution, activation and dropout."""
        mlp = self.mlp
        return on_tokens(lambda m: mlp.drop(mlp.act(mlp.dwconv(m))), ctx)(x)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        scale = self.layer_scale_1 if branch == 1 else self.layer_scale_2
        return self.drop_path(scale * x)


class PETLMSCAN(PyramidBackboneHost, MSCAN):
    """An MSCAN that runs sites."""

    channels_first = True

    def pyramid(self) -> list[Stage]:
        return stages_of(self)

    def leaves(self, index: int) -> bool:
        return True

    def token_norm(self, norm: nn.Module, ctx: Context) -> Callable[[Tensor], Tensor]:
        return on_tokens(norm, ctx)

    def embedded(self, first: Stage, x: Tensor) -> tuple[Tensor, Context]:
        maps = self.patch_embed1.proj(x)
        ctx = self.new_context(tuple(maps.shape[2:]))
        ctx.images = x
        x = tokens_of(maps)
        return self.after('embed', x, x, ctx), ctx

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.run_stages(x)


@BACKBONES.register_module()
class MMSegMSCAN(PyramidSiteMap):
    """``mmseg.MSCAN``."""

    host = MSCAN
    host_block = MSCABlock
    swapped = PETLMSCAN
    swapped_block = PETLMSCABlock
    scales = ('layer_scale_1', 'layer_scale_2')
    mixers = ('proj_1', 'conv3')
    absent = ABSENT
    parts = {'attn': (MSCASpatialAttention,), 'mlp': (Mlp,)}

    def example(self) -> nn.Module:
        return MSCAN(
            embed_dims=[64, 128, 320, 512],
            mlp_ratios=[8, 8, 4, 4],
            depths=[3, 5, 27, 3],
            norm_cfg={'type': 'BN'},
        )

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for i in range(1, backbone.num_stages + 1):
            known = (StemConv if i == 1 else OverlapPatchEmbed,)
            path = f'patch_embed{i}'
            self.check_class(path, getattr(backbone, path), known)

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return stages_of(backbone)

    def width(self, stage: Stage) -> int:
        return stage.norm.normalized_shape[0]

    def leaving(self, backbone: nn.Module) -> set[int]:
        return set(range(backbone.num_stages))

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        kinds = ('attn.qkv', 'attn.q', 'attn.k', 'attn.v', 'attn.core', 'tokens')
        return {'mlp_dims': block.mlp.fc1.out_channels, 'without': kinds}
