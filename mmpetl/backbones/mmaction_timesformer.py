"""Sites of mmaction's TimeSformer, with each of its kinds of attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmaction.models.backbones.timesformer import PatchEmbed, TimeSformer
from mmaction.models.common.transformer import (
    DividedSpatialAttentionWithNorm,
    DividedTemporalAttentionWithNorm,
    FFNWithNorm,
)
from mmcv.cnn.bricks import transformer as bricks
from mmcv.cnn.bricks.wrappers import Conv2d
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    BackboneHost,
    BlockHost,
    Context,
    Partition,
    PETLError,
    Rows,
    Site,
    SiteMap,
    WindowBlockHost,
    block_sites,
    patches_of,
)
from mmpetl.core.stack import affine_of
from mmpetl.core.window_host import numbers
from mmpetl.registry import BACKBONES


def torch_attention(mha: nn.MultiheadAttention) -> dict[str, Any]:
    """What ``attend`` reads of torch's attention, which never calls ``out_proj``."""
    return {
        'num_heads': mha.num_heads,
        'qkv': Rows(mha.in_proj_weight, mha.in_proj_bias),
        'proj': mha.out_proj,
        'dropout': mha.dropout if mha.training else 0.0,
    }


class DividedAttention(WindowBlockHost):
    """One of two attentions of a block, a sub-layer with its own norm and shortcut.

    It is attention in windows: all frames of one place, or all places of one frame.
    Stochastic depth drops windows, so it lies inside of ``attn``.
    """

    norm: nn.Module
    num_frames: int

    def attention_parts(self) -> dict[str, Any]:
        return torch_attention(self.attn)

    def window_terms(
        self, partition: Partition, ctx: Context, device: torch.device
    ) -> dict[str, Tensor | None]:
        return {'bias': None, 'mask': None}

    def attend(self, x: Tensor, ctx: Context, **parts: Any) -> Tensor:
        x = super().attend(x, ctx, **parts)
        return self.dropout_layer(self.proj_drop(x))

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return x

    def affine(self, name: str, kind: str) -> Affine | None:
        if kind == 'norm1':
            return affine_of(name, self.norm)
        return super().affine(name, kind) if kind.startswith('attn') else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.sublayer(1, 'attn', self.norm, self.attention, x, ctx)


class PETLDividedTemporalAttentionWithNorm(
    DividedAttention, DividedTemporalAttentionWithNorm
):
    """Attention over the frames of each place; class tokens pass it by.

    Tokens that deltas have added join the frames of every place, and what the places
    make of them is averaged. ``temporal_fc`` lies inside of ``attn``.
    """

    def partition(self, grid: tuple[int, ...]) -> Partition:
        return Partition(tuple(grid), (grid[0], 1, 1), (0, 0, 0))

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        own = ctx.num_prefix - ctx.num_extra
        if not all(ctx.grid):
            return torch.zeros_like(x)
        inside = ctx.fork()
        # Not in place: to TorchScript's trace numbers are tensors, which a fork shares.
        inside.num_prefix = inside.num_prefix - own
        y = super().attention(x[:, own:], inside)
        return torch.cat((torch.zeros_like(x[:, :own]), y), dim=1)

    def attend(self, x: Tensor, ctx: Context, **parts: Any) -> Tensor:
        return self.temporal_fc(super().attend(x, ctx, **parts))


class PETLDividedSpatialAttentionWithNorm(
    DividedAttention, DividedSpatialAttentionWithNorm
):
    """Attention in each frame.

    The class token joins every frame, as do tokens that deltas have added, and what
    the frames make of them is averaged.
    """

    def partition(self, grid: tuple[int, ...]) -> Partition:
        return Partition(tuple(grid), (1, *grid[1:]), (0, 0, 0))

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        if all(ctx.grid):
            return super().attention(x, ctx)
        frames = x[:, None].expand(-1, self.num_frames, -1, -1).flatten(0, 1)
        y = self.attend(frames, ctx, **self.attention_parts())
        return y.unflatten(0, (-1, self.num_frames)).mean(1)


class PETLBaseTransformerLayer(BlockHost, bricks.BaseTransformerLayer):
    """A layer that runs sites, with one attention or two divided ones.

    Divided attentions are hosts of their own, and this one then runs the feed-forward
    network only.
    """

    # A method of BlockHost has the name of the list that paths lead through.
    norms = property(lambda self: self._modules['norms'])

    def attention_norm(self) -> nn.Module:
        return self.norms[0]

    @property
    def divided(self) -> bool:
        """Whether space and time have an attention each."""
        return len(self.attentions) == 2

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        if self.divided:
            for attention in self.attentions:
                x = attention(x, ctx)
        else:
            x = self.sublayer(1, 'attn', self.norms[0], self.attention, x, ctx)
        norm = self.ffns[0].norm if self.divided else self.norms[1]
        return self.sublayer(2, 'ffn', norm, self.ffn_network, x, ctx)

    def attention_parts(self) -> dict[str, Any]:
        return torch_attention(self.attentions[0].attn)

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attentions[0].proj_drop(x)

    def ffn_parts(self):
        (fc1, *between), fc2, behind = self.ffns[0].layers
        return fc1, between, fc2, behind

    def residual(self, branch: int, x: Tensor) -> Tensor:
        if branch == 1:
            return self.attentions[0].dropout_layer(x)
        ffn = self.ffns[0]
        return ffn.dropout_layer(ffn.gamma2(x))

    def affine(self, name: str, kind: str) -> Affine | None:
        if self.divided and kind.startswith('attn'):
            raise PETLError(
                f'{name} is none of one attention: attentions.0 and attentions.1 of '
                'the block divide it over time and space'
            )
        if kind not in ('norm1', 'norm2'):
            return super().affine(name, kind)
        if not self.divided:
            return affine_of(name, self.norms[int(kind[-1]) - 1])
        first = self.attentions[0] if kind == 'norm1' else self.ffns[0]
        return affine_of(name, first.norm)


class PETLTimeSformer(BackboneHost, TimeSformer):
    """A TimeSformer that runs sites.

    Its tokens are in the order of frames, rows and columns; upstream has frames last.
    With ``space_only`` frames are images of a batch until behind ``out``; then they are
    averaged, and the norm comes last.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, ctx = self.embedded(x)
        for layer in self.transformer_layers.layers:
            x = layer(x, ctx)
        last = len(self.transformer_layers.layers) - 1
        if self.attention_type == 'space_only':
            x = self.emit(x, None, ctx, last)[1]
            x = x.unflatten(0, (-1, self.num_frames)).mean(1)
            return self.through('out.norm', self.norm, x, ctx.own(), last)[:, 0]
        x = self.emit(x, self.norm, ctx, last)[1]
        return self.feature(x[:, 0], ctx, last)

    def embedded(self, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first layer, and the facts of the pass."""
        clips, folded = x.shape[0], self.attention_type == 'space_only'
        projection = self.patch_embed.projection
        frames = x.transpose(1, 2).flatten(0, 1)
        maps = projection(frames)
        grid = numbers(maps.shape[2:])
        ctx = self.new_context(grid if folded else (int(x.shape[2]), *grid))
        ctx.frames = int(x.shape[2]) if folded else 1
        ctx.images = frames if folded else x
        tokens, cells = math.prod(ctx.grid), math.prod(grid)
        x = maps.flatten(2).transpose(1, 2)
        if self.plugged('embed.proj'):
            patches = patches_of(projection, frames)
            patches = patches.reshape(-1, tokens, patches.shape[-1])
            x = x.reshape(-1, tokens, x.shape[-1])
            x = self.after('embed.proj', patches, x, ctx)
            x = x.reshape(-1, cells, x.shape[-1])
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.drop_after_pos(x + self.pos_embed)
        ctx.num_prefix = 1
        if not folded:
            first = x[:clips, :1]  # dropout aside, all class tokens are equal
            x = x[:, 1:].unflatten(0, (clips, -1)) + self.time_embed.unsqueeze(2)
            x = self.drop_after_time(x).flatten(1, 2)
            x = torch.cat((first, x), dim=1)
        return self.after('embed', x, x, ctx), ctx


@BACKBONES.register_module()
class MMActionTimeSformer(SiteMap):
    """``mmaction.TimeSformer``.

    With ``divided_space_time`` a block has two sub-layers of attention, each with all
    sites ``attn.*``. The weights of an image model leave ``temporal_fc`` at zero: then
    time has no part in the features, and what is plugged into its attention gets no
    gradient. Load a checkpoint of videos, or let each block's ``temporal_fc`` train by
    naming it in ``head``.
    """

    host = TimeSformer
    swapped = PETLTimeSformer
    blocks_served = {
        bricks.BaseTransformerLayer: PETLBaseTransformerLayer,
        DividedTemporalAttentionWithNorm: PETLDividedTemporalAttentionWithNorm,
        DividedSpatialAttentionWithNorm: PETLDividedSpatialAttentionWithNorm,
    }
    outer_parts = {
        'patch_embed': (PatchEmbed,),
        'patch_embed.projection': (nn.Conv2d, Conv2d),
        'transformer_layers': (bricks.TransformerLayerSequence,),
    }
    biases = ('bias', 'in_proj_bias')
    weights = ('weight', 'in_proj_weight')
    mixers = ('temporal_fc',)
    positions = ('pos_embed', 'time_embed')
    scales = ('gamma2',)

    def example(self) -> nn.Module:
        with DefaultScope.overwrite_default_scope('mmaction'):
            return TimeSformer(num_frames=8, img_size=224, patch_size=16)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, layer in enumerate(backbone.transformer_layers.layers):
            yield f'transformer_layers.layers.{i}', layer

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path, layer in self.blocks(backbone):
            if len(layer.attentions) == 2:
                for i, attention in enumerate(layer.attentions):
                    yield f'{path}.attentions.{i}', attention

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        if backbone.attention_type == 'divided_space_time':
            order = ('self_attn', 'self_attn', 'ffn')
            first, ffn = (DividedTemporalAttentionWithNorm,), (FFNWithNorm,)
        else:
            order = ('norm', 'self_attn', 'norm', 'ffn')
            first, ffn = (bricks.MultiheadAttention,), (bricks.FFN,)
        for path, layer in self.blocks(backbone):
            if tuple(layer.operation_order) != order:
                raise PETLError(
                    f'{path} runs {", ".join(layer.operation_order)}; the site map of '
                    f'mmaction.TimeSformer knows {", ".join(order)} with '
                    f'attention_type={backbone.attention_type!r}'
                )
            attentions = layer.attentions
            self.check_class(f'{path}.attentions.0', attentions[0], first)
            if len(attentions) == 2:
                spatial = (DividedSpatialAttentionWithNorm,)
                self.check_class(f'{path}.attentions.1', attentions[1], spatial)
            self.check_class(f'{path}.ffns.0', layer.ffns[0], ffn)
            if layer.ffns[0].num_fcs != 2:
                raise PETLError(
                    f'{path}.ffns.0 has {layer.ffns[0].num_fcs} linear layers; the '
                    'site map knows 2'
                )

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        if kind == 'feature' and backbone.attention_type == 'space_only':
            return (
                'space_only takes frames as images and averages them in front of the '
                'last norm, so the vector that leaves belongs to no sequence of the '
                'blocks'
            )
        return super().why_absent(backbone, kind)

    def sites(self, backbone: nn.Module) -> list[Site]:
        d, folded = backbone.embed_dims, backbone.attention_type == 'space_only'
        embed = backbone.patch_embed
        patch = embed.projection.in_channels * math.prod(embed.projection.kernel_size)
        depth = len(backbone.transformer_layers.layers)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        facts['timed'] = not folded
        facts['frames'] = backbone.num_frames if folded else 1
        grid = {**facts, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, d, **grid)]
        sites.append(Site('embed', '', d, d, **grid))
        rows, columns = (
            size // step
            for size, step in zip(embed.img_size, embed.patch_size, strict=True)
        )
        windows = ((backbone.num_frames, 1, 1), (1, rows, columns))
        for i, (path, layer) in enumerate(self.blocks(backbone)):
            mlp, attentions = layer.ffns[0].feedforward_channels, layer.attentions
            at = {**facts, 'block': i, 'num_heads': attentions[0].num_heads}
            whole = block_sites(path, d, mlp, **at)
            if len(attentions) == 1:
                sites += whole
                continue
            cut = next(j for j, site in enumerate(whole) if site.kind == 'norm1')
            end = next(j for j, site in enumerate(whole) if site.kind == 'norm2')
            sites += whole[:cut]
            for j, (attention, window) in enumerate(
                zip(attentions, windows, strict=True)
            ):
                heads = {'num_heads': attention.num_heads}
                inside = block_sites(
                    f'{path}.attentions.{j}',
                    d,
                    mlp,
                    windowed=True,
                    window=window,
                    shift=(0, 0, 0),
                    **at | heads,
                )
                sites += inside[cut:end]
            sites += whole[end:]
        grid['index'] = facts['index'] = depth - 1
        leaving, out = (Site(kind, '', d, d, **grid) for kind in ('out.norm', 'out'))
        if folded:  # the norm stands behind the mean over frames
            return [*sites, out, leaving]
        return [*sites, leaving, out, Site('feature', '', d, d, **facts)]

    def _kind(self, name: str, owner: nn.Module, *where: Any) -> str:
        kind = super()._kind(name, owner, *where)
        # Norms lie in attentions, networks and lists, and yet all in front of one.
        return 'norm' if kind == 'inner_norm' else kind

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        last = len(backbone.transformer_layers.layers) - 1
        return {
            'embed_proj': backbone.patch_embed.projection,
            f'out_norm_{last}': backbone.norm,
        }
