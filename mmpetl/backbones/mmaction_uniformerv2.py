"""Sites of mmaction's UniFormerV2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from mmaction.models.backbones.uniformerv2 import (
    Local_MHRA,
    ResidualAttentionBlock,
    Transformer,
    UniFormerV2,
)
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    BlockHost,
    Context,
    Rows,
    Site,
    SiteMap,
    block_sites,
    patches_of,
    without_extra,
)
from mmpetl.core.window_host import numbers
from mmpetl.registry import BACKBONES


def to_clips(x: Tensor, frames: int, grid: tuple[int, ...]) -> Tensor:
    """(B * T, H * W, C) -> (B, C, T, H, W)."""
    return x.unflatten(1, grid).unflatten(0, (-1, frames)).movedim(-1, 1)


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, H * W, C)."""
    return x.movedim(1, -1).flatten(2, 3).flatten(0, 1)


class PETLResidualAttentionBlock(BlockHost, ResidualAttentionBlock):
    """A block that runs sites; its sequences are frames.

    Local convolutions over frames pass the tokens by that stand in front of the grid,
    and are behind no site. ``ctx.handed`` is the number of frames of a clip.
    """

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.ln_1, self.ln_2

    def attention_parts(self) -> dict[str, Any]:
        mha = self.attn
        return {
            'num_heads': mha.num_heads,
            'qkv': Rows(mha.in_proj_weight, mha.in_proj_bias),
            'proj': mha.out_proj,
            'dropout': mha.dropout if mha.training else 0.0,
        }

    def ffn_parts(self):
        mlp = self.mlp
        return mlp.c_fc, mlp.gelu, mlp.c_proj, nn.Identity()

    def residual(self, branch: int, x: Tensor) -> Tensor:
        # Upstream's first axis is that of tokens, so whole tokens of a batch drop.
        return self.drop_path(x.transpose(0, 1)).transpose(0, 1)

    def local(self, convolution: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """A residual of convolutions over the frames of a clip."""
        if not all(ctx.grid):
            return x
        front, grid = x[:, : ctx.num_prefix], x[:, ctx.num_prefix :]
        clips = to_clips(grid, ctx.handed, ctx.grid).contiguous()
        clips = clips + self.drop_path(convolution(clips))
        return torch.cat((front, to_frames(clips)), dim=1)

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        if not self.no_lmhra:
            x = self.local(self.lmhra1, x, ctx)
        x = self.sublayer(1, 'attn', self.ln_1, self.attention, x, ctx)
        if not self.no_lmhra and self.double_lmhra:
            x = self.local(self.lmhra2, x, ctx)
        return self.sublayer(2, 'ffn', self.ln_2, self.ffn_network, x, ctx)


class PETLUniFormerV2(BackboneHost, UniFormerV2):
    """A UniFormerV2 that runs sites.

    Frames are images of a batch; upstream has their tokens in front of it. ``out`` is
    what the last block makes of a frame, of which the class token leaves. The decoder
    looks at the stream of the blocks, which is one where several features of a clip
    leave (for several tasks); each of them is mixed with its token.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, ctx = self.embedded(x)
        body = self.transformer
        token = body.temporal_cls_token.repeat(1, x.shape[0] // body.T, 1)
        steps = iter(zip(body.dpe, body.dec, strict=True))
        for i, block in enumerate(body.resblocks):
            x = block(x, ctx)
            if i in body.return_list:
                token = self.decoded(*next(steps), token, x, ctx)
        last = len(body.resblocks) - 1
        own = self.emit(x, None, ctx, last)[1][:, 0].unflatten(0, (-1, body.T))
        weight = body.sigmoid(body.balance)
        token = token[0].repeat(own.shape[0] // token.shape[1], 1)
        y = (1 - weight) * token + weight * own.mean(1)
        return self.norm_vector(body.norm, y, ctx, last)

    def embedded(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, and the facts of the pass."""
        maps = self.conv1(x)
        ctx = self.new_context(numbers(maps.shape[3:]))
        ctx.images, ctx.handed = x, self.transformer.T
        tokens = math.prod(ctx.grid)
        y = to_frames(maps)
        if self.plugged('embed.proj'):
            patches = patches_of(self.conv1, x)
            patches = patches.reshape(-1, tokens, patches.shape[-1])
            y = self.after('embed.proj', patches, y, ctx)
        front = self.class_embedding.to(y.dtype).expand(y.shape[0], 1, -1)
        y = torch.cat((front, y), dim=1) + self.positional_embedding.to(y.dtype)
        y = self.ln_pre(y)
        ctx.num_prefix = 1
        return self.after('embed', y, y, ctx), ctx

    def decoded(
        self, dpe: nn.Module, step: nn.Module, token: Tensor, x: Tensor, ctx: Context
    ) -> Tensor:
        """The token of each clip, (1, B, C), having looked at all of its frames."""
        x = without_extra(x, ctx)
        front, grid = x[:, :1], x[:, 1:]
        moved = dpe(to_clips(grid, ctx.handed, ctx.grid).contiguous())
        x = torch.cat((front, grid + to_frames(moved)), dim=1)
        x = x.unflatten(0, (-1, ctx.handed)).flatten(1, 2)
        return step(token, x.transpose(0, 1))


@BACKBONES.register_module()
class MMActionUniFormerV2(SiteMap):
    """``mmaction.UniFormerV2``.

    The blocks of the image trunk are served. The decoder over their tokens
    (``transformer.dec``, ``dpe``, ``balance``, ``temporal_cls_token``, ``norm``) and
    local convolutions are part of the base: they train where a method selects them,
    or where they are named, ``head=('transformer.dec', 'transformer.dpe')``. A file of
    CLIP has no decoder; left at its start it adds nothing to the mean over frames.
    """

    host = UniFormerV2
    host_block = ResidualAttentionBlock
    swapped = PETLUniFormerV2
    swapped_block = PETLResidualAttentionBlock
    absent = {
        'feature': 'frames are images of the batch, and what leaves mixes their class '
        'tokens with one of a decoder, so it belongs to no sequence of the blocks',
    }
    parts = {'attn': (nn.MultiheadAttention,), 'mlp': (nn.Sequential,)}
    outer_parts = {'transformer': (Transformer,)}
    biases = ('bias', 'in_proj_bias')
    weights = ('weight', 'in_proj_weight')
    mixers = ('1', '3')  # pointwise convolutions around those over frames
    positions = ('positional_embedding',)
    tokens = ('class_embedding', 'temporal_cls_token')

    def example(self) -> nn.Module:
        return UniFormerV2(clip_pretrained=False)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.transformer.resblocks):
            yield f'transformer.resblocks.{i}', block

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            for name in ('lmhra1', 'lmhra2'):
                if hasattr(block, name):
                    part = getattr(block, name)
                    self.check_class(f'{path}.{name}', part, (Local_MHRA,))

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = backbone.conv1
        d = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.transformer.resblocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        grid = partial(Site, host='', has_grid=True, **facts)
        sites = [grid('embed.proj', in_dims=patch, out_dims=d)]
        sites.append(grid('embed', in_dims=d, out_dims=d))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            mlp, heads = block.mlp.c_fc.out_features, block.attn.num_heads
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        facts['index'] = depth - 1
        sites.append(grid('out', in_dims=d, out_dims=d, index=depth - 1))
        n = backbone.transformer.norm.normalized_shape[0]
        return [*sites, Site('out.norm', '', n, n, **facts)]

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        last = len(backbone.transformer.resblocks) - 1
        return {
            'embed_proj': backbone.conv1,
            f'out_norm_{last}': backbone.transformer.norm,
        }
