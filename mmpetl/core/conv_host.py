"""What a swapped backbone of convolutional blocks inherits (ConvNeXt and its kin)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.context import Context
from mmpetl.core.host import BackboneHost, BlockHost, patches_of, run_in
from mmpetl.core.site import Site
from mmpetl.core.sitemap import SiteMap, block_sites

NO_ATTENTION = 'a convolutional trunk has no attention'
NO_TOKENS = 'a convolution moves over the grid, where extra tokens have no place'


def to_maps(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, prod(grid), C) -> (B, C, *grid), a view with channels last in memory."""
    return x.transpose(1, 2).unflatten(2, grid)


def from_maps(x: Tensor) -> Tensor:
    """(B, C, *grid) -> (B, prod(grid), C), in order in memory."""
    return x.flatten(2).transpose(1, 2).contiguous()


def norm_tokens(norm: nn.Module, ctx: Context) -> Callable[[Tensor], Tensor]:
    """A norm of maps as a function of (B, N, C).

    Layer norms over channels are called without going through a map; a subclass for
    maps differs from ``nn.LayerNorm`` in the order of the axes only.
    """
    if isinstance(norm, nn.LayerNorm):
        return partial(nn.LayerNorm.forward, norm)
    if isinstance(norm, nn.Identity):
        return norm
    return lambda x: from_maps(norm(to_maps(x, ctx.grid)))


class ConvBlockHost(BlockHost):
    """A block of one residual: mixer, norm, feed-forward network.

    Streams are (B, prod(grid), C). ``mixer`` and :meth:`residual` with branch 2 say
    where the parts are.
    """

    norm: nn.Module

    def mixer(self) -> nn.Module:
        """What mixes the tokens, (B, C, H, W) -> (B, C, H, W)."""
        raise NotImplementedError

    def norms(self) -> tuple[nn.Module | None, nn.Module]:
        return None, self.norm

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        mixer = self.mixer()
        h = self.through(
            'mix', lambda x: from_maps(mixer(to_maps(x, ctx.grid))), x, ctx
        )
        h = self.through('norm2', norm_tokens(self.norms()[1], ctx), h, ctx)
        h = self.before('ffn', h, ctx)
        b = self.after('ffn', h, self.ffn_network(h, ctx), ctx)
        r = self.through('ffn.branch', partial(self.residual, 2), b, ctx)
        y = self.through('ffn.skip', partial(self.shortcut, 2, h), x, ctx) + r
        return self.after('ffn.sum', x, y, ctx)


class ConvBackboneHost(BackboneHost):
    """Stages of such blocks, each opened by a norm and a convolution of 2 x 2."""

    def downsample(
        self, index: int, norm: nn.Module, conv: nn.Module, x: Tensor, ctx: Context
    ) -> Tensor:
        """The opening of stage ``index + 1``, with its sites; it moves ``ctx.grid``."""
        run = partial(self.reduced, index, norm, conv)
        ctx.rerun = partial(run_in, x.dtype, run)
        x = self.before('downsample', x, ctx, index)
        return self.after('downsample', x, run(x, ctx), ctx, index)

    def reduced(
        self, index: int, norm: nn.Module, conv: nn.Module, x: Tensor, ctx: Context
    ) -> Tensor:
        """What lies between the two ports of ``downsample``."""
        x = self.through('downsample.norm', norm_tokens(norm, ctx), x, ctx, index)
        # As a product of matrices whether a delta looks on or not: the same sums.
        patches = patches_of(conv, to_maps(x, ctx.grid))
        sizes = zip(ctx.grid, conv.kernel_size, conv.stride, strict=True)
        ctx.grid = tuple((n - k) // s + 1 for n, k, s in sizes)
        run = partial(F.linear, weight=conv.weight.flatten(1), bias=conv.bias)
        return self.through('downsample.reduction', run, patches, ctx, index)


class ConvSiteMap(SiteMap):
    """Site map of such a backbone."""

    absent = {
        **dict.fromkeys(('attn', 'attn.core', 'attn.qkv', 'attn.proj'), NO_ATTENTION),
        **dict.fromkeys(('attn.q', 'attn.k', 'attn.v', 'norm1'), NO_ATTENTION),
        **dict.fromkeys(('attn.sum', 'attn.skip', 'attn.branch'), NO_ATTENTION),
        'tokens': NO_TOKENS,
    }
    tokens = ()
    positions = ()

    def stages(
        self, backbone: nn.Module
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        """Path of its blocks, blocks, and the opening (norm, conv) of every stage."""
        raise NotImplementedError

    def stem(self, backbone: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
        """Patch projection and its norm, None where the stem is something else."""
        raise NotImplementedError

    def widths(self, block: nn.Module) -> tuple[int, int]:
        """Width of a block and of its feed-forward network."""
        raise NotImplementedError

    def kernel_of(self, block: nn.Module) -> tuple[int, ...] | None:
        """Extents of the kernel that mixes the tokens, None where none does."""
        return getattr(self.swapped_block.mixer(block), 'kernel_size', None)

    def exits(self, backbone: nn.Module, facts: dict) -> list[Site]:
        """The sites behind a stage, whose index is in ``facts``."""
        raise NotImplementedError

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        projection, _ = self.stem(backbone)
        convs = {'the patch projection': projection}
        for path, _, opening in self.stages(backbone):
            convs[f'the convolution that opens {path}'] = opening and opening[1]
        for path, conv in convs.items():
            if conv is not None:
                self.check_class(path, conv, (nn.Conv2d,))

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path, stage, _ in self.stages(backbone):
            for j, block in enumerate(stage):
                yield f'{path}.{j}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        stages = list(self.stages(backbone))
        depth = sum(len(stage) for _, stage, _ in stages)
        projection, norm = self.stem(backbone)
        first = self.widths(stages[0][1][0])[0]
        patch = 0 if projection is None else projection.weight[0].numel()
        facts = {'num_blocks': depth, 'embed_dims': first, 'patch_dims': patch}
        at = {**facts, 'stage': 0, 'has_grid': True}
        sites = []
        if projection is not None:
            sites.append(Site('embed.proj', '', patch, first, **at))
        if norm is not None:
            sites.append(Site('embed.norm', '', first, first, **at))
        sites.append(Site('embed', '', first, first, **at))
        counter, before = 0, first
        for i, (path, stage, opening) in enumerate(stages):
            d = self.widths(stage[0])[0]
            if opening is not None:
                at = {**facts, 'stage': i - 1, 'has_grid': True, 'index': i - 1}
                at |= {'channels_first': True, 'merged': tuple(opening[1].kernel_size)}
                wide = opening[1].weight[0].numel()
                sites += [
                    Site('downsample.norm', '', before, before, **at),
                    Site('downsample.reduction', '', wide, d, **at),
                    Site('downsample', '', before, d, **at),
                ]
            for j, block in enumerate(stage):
                host, inside = f'{path}.{j}', {**facts, 'stage': i, 'block': counter}
                mlp = self.widths(block)[1]
                found = block_sites(host, d, mlp, without=('attn', 'tokens'), **inside)
                inside |= {'mlp_dims': mlp, 'kernel': self.kernel_of(block)}
                mix = Site('mix', host, d, d, has_grid=True, **inside)
                sites += [found[0], mix, *found[1:]]
                counter += 1
            at = {**facts, 'stage': i, 'index': i}
            sites += self.exits(backbone, at)
            before = d
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        projection, norm = self.stem(backbone)
        modules = {'embed_proj': projection, 'embed_norm': norm}
        for i, (_, _, opening) in enumerate(self.stages(backbone)):
            if opening is not None:
                modules[f'downsample_norm_{i - 1}'] = opening[0]
                modules[f'downsample_reduction_{i - 1}'] = opening[1]
        return {key: module for key, module in modules.items() if module is not None}
