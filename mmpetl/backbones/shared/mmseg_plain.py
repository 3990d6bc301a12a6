"""What the plain transformers of mmsegmentation share: maps out, one norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmpetl.core import (
    BackboneHost,
    Context,
    PETLError,
    Site,
    SiteMap,
    block_sites,
)


class MMSegPlainBackbone(BackboneHost):
    """Patches with a class token, layers, a norm behind the last one if any.

    The norm stands in the stream, so that only an output of the last layer sees it.
    """

    def patches(self, x: Tensor) -> tuple[Tensor, Context]:
        """Tokens with the class token in front, and the facts of the pass."""
        embed = self.patch_embed
        if embed.adap_padding:
            x = embed.adap_padding(x)
        x, ctx = self.embed_patches(embed.projection, embed.norm, x)
        tokens = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat((tokens, x), dim=1)
        ctx.num_prefix = 1
        return x, ctx

    def run_layers(self, x: Tensor, ctx: Context) -> list[Tensor | list[Tensor]]:
        """Every output in turn."""
        outs = []
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            x = block(x, ctx)
            if i in self.out_indices:
                norm = self.norm1 if i == last and self.final_norm else None
                outs.append(self.output(self.emit(x, norm, ctx, i)[1], ctx))
        return outs

    def output(self, x: Tensor, ctx: Context) -> Tensor | list[Tensor]:
        """(B, own prefix + N, C) -> (B, C, H, W)."""
        return self.as_map(x, ctx.num_prefix - ctx.num_extra, ctx.grid)

    def as_map(self, x: Tensor, own: int, grid: tuple[int, ...]) -> Tensor:
        """The grid of a sequence as a map, contiguous as upstream's is."""
        return x[:, own:].transpose(1, 2).unflatten(2, grid).contiguous()


class MMSegPlainMap(SiteMap):
    """Site map of such a backbone."""

    absent = {'feature': 'what leaves are maps'}

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        for path, block in self.blocks(backbone):
            self.check_ffn(path, block.ffn)

    def check_ffn(self, path: str, ffn: nn.Module) -> None:
        """Refuse a feed-forward network of more than two linears."""
        if ffn.num_fcs != 2:
            raise PETLError(
                f'{path}.ffn has {ffn.num_fcs} linear layers; the site map knows 2'
            )

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.layers):
            yield f'layers.{i}', block

    def heads(self, block: nn.Module) -> int:
        """Attention heads of a block."""
        return block.attn.num_heads

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = backbone.patch_embed.projection
        d = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        depth = len(backbone.layers)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        grid = {**facts, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, d, **grid)]
        if backbone.patch_embed.norm is not None:
            sites.append(Site('embed.norm', '', d, d, **grid))
        sites.append(Site('embed', '', d, d, **grid))
        for i, (path, block) in enumerate(self.blocks(backbone)):
            mlp = block.ffn.feedforward_channels
            heads = self.heads(block)
            sites += block_sites(path, d, mlp, block=i, num_heads=heads, **facts)
        for i in sorted({i for i in backbone.out_indices if i < depth}):
            if i == depth - 1 and backbone.final_norm:
                sites.append(Site('out.norm', '', d, d, index=i, **grid))
            sites.append(Site('out', '', d, d, index=i, **grid))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        embed = backbone.patch_embed
        modules = {'embed_proj': embed.projection, 'embed_norm': embed.norm}
        if backbone.final_norm:
            modules[f'out_norm_{len(backbone.layers) - 1}'] = backbone.norm1
        return modules
