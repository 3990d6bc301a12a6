"""Windows on a grid of any number of axes, for both Swins and for side networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.attention import attend
from mmpetl.core.context import Context
from mmpetl.core.host import BackboneHost, BlockHost
from mmpetl.core.site import Site
from mmpetl.core.sitemap import SiteMap, block_sites


def padded_grid(grid: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest grid of whole windows that holds ``grid``."""
    return tuple(-(-g // w) * w for g, w in zip(grid, window, strict=True))


def to_windows(
    x: Tensor, grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> Tensor:
    """Pad with zeros at the far ends, shift, and cut into windows.

    Args:
        x: (B, N, C) with N = prod(grid).
        grid: Extents of the grid.
        window: Extents of a window.
        shift: How far the grid is rolled towards the origin, per axis.

    Returns:
        (B * windows, prod(window), C), image-major.
    """
    b, _, c = x.shape
    x = x.view(b, *grid, c)
    full = padded_grid(grid, window)
    if full != grid:
        pads = [p for g, f in zip(grid, full, strict=True) for p in (f - g, 0)]
        x = F.pad(x, (0, 0, *reversed(pads)))
    axes = tuple(range(1, len(grid) + 1))
    if any(shift):
        x = torch.roll(x, tuple(-s for s in shift), axes)
    cut = [n for f, w in zip(full, window, strict=True) for n in (f // w, w)]
    x = x.view(b, *cut, c)
    outer = [2 * i + 1 for i in range(len(grid))]
    inner = [2 * i + 2 for i in range(len(grid))]
    x = x.permute(0, *outer, *inner, x.ndim - 1)
    return x.reshape(-1, math.prod(window), c)


def from_windows(
    x: Tensor, grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> Tensor:
    """Undo :func:`to_windows`: (B * windows, prod(window), C) -> (B, N, C)."""
    c = x.shape[-1]
    full = padded_grid(grid, window)
    counts = [f // w for f, w in zip(full, window, strict=True)]
    x = x.view(-1, *counts, *window, c)
    n = len(grid)
    order = [a for i in range(n) for a in (1 + i, 1 + n + i)]
    x = x.permute(0, *order, 2 * n + 1).reshape(-1, *full, c)
    if any(shift):
        x = torch.roll(x, shift, tuple(range(1, n + 1)))
    if full != grid:
        x = x[(slice(None), *(slice(g) for g in grid))]
    return x.reshape(len(x), -1, c)


@lru_cache(maxsize=64)
def shift_mask(
    grid: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
) -> Tensor | None:
    """What keeps tokens apart that only the cyclic shift brought together.

    Returns:
        (windows, N, N), 0 within a region and -100 across, or None without a shift.
    """
    if not any(shift):
        return None
    full = padded_grid(grid, window)
    region = torch.zeros(full, device=device)
    for axis, (f, w, s) in enumerate(zip(full, window, shift, strict=True)):
        at = torch.arange(f, device=device)
        part = (at >= f - w).float() + (at >= f - s).float() if s else 0 * at.float()
        shape = [1] * len(full)
        shape[axis] = f
        region = region * 3 + part.view(shape)
    none = (0,) * len(full)
    rows = to_windows(region.reshape(1, -1, 1), full, window, none).squeeze(-1)
    apart = rows.unsqueeze(1) != rows.unsqueeze(2)
    return torch.zeros(apart.shape, device=device).masked_fill(apart, -100.0)


def relative_index(window: tuple[int, ...]) -> Tensor:
    """Row of the relative position table for each pair of tokens of a window.

    Returns:
        (N, N) with values in [0, prod(2 * w - 1)), row-major over the axes.
    """
    axes = [torch.arange(w) for w in window]
    at = torch.stack(torch.meshgrid(*axes, indexing='ij')).flatten(1)
    offset = at[:, :, None] - at[:, None, :]
    index = torch.zeros_like(offset[0])
    for d, w in zip(offset, window, strict=True):
        index = index * (2 * w - 1) + d + w - 1
    return index


class WindowBlockHost(BlockHost):
    """A block whose attention runs in (shifted) windows.

    Extra tokens of the stream join every window of their image; what the windows
    make of them is averaged. They take part in no relative position bias.
    """

    def window_and_shift(
        self, grid: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The window and its shift on this grid."""
        raise NotImplementedError

    def position_bias(self, num_tokens: int) -> Tensor:
        """(heads, N, N), the relative position bias of a window."""
        raise NotImplementedError

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        window, shift = self.window_and_shift(ctx.grid)
        p = ctx.num_prefix
        w = to_windows(x[:, p:], ctx.grid, window, shift)
        count = len(w) // len(x)
        if p:
            prefix = x[:, None, :p].expand(-1, count, -1, -1).flatten(0, 1)
            w = torch.cat((prefix, w), dim=1)
        o = attend(
            self,
            w,
            ctx,
            bias=self.position_bias(math.prod(window)),
            mask=shift_mask(ctx.grid, window, shift, x.device),
            **self.attention_parts(),
        )
        y = from_windows(o[:, p:], ctx.grid, window, shift)
        if p:
            prefix = o[:, :p].unflatten(0, (-1, count)).mean(1)
            y = torch.cat((prefix, y), dim=1)
        return self.drop_projection(y)


class WindowBackboneHost(BackboneHost):
    """A backbone of stages with patch merging between them.

    Extra tokens cross a merging as if each stood four times in its neighbourhood.
    """

    out_indices: tuple[int, ...]
    out_after_downsample: bool

    def gather(
        self, merge: nn.Module, x: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Bring neighbours together: (B, N, C) -> (B, N / 4, 4 C), and the new grid."""
        raise NotImplementedError

    def repeat_four(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, 4 C) in the channel order of :meth:`gather`."""
        raise NotImplementedError

    def merge_patches(
        self, index: int, merge: nn.Module, x: Tensor, ctx: Context
    ) -> Tensor:
        """Patch merging behind stage ``index``, with its sites."""
        ctx.again = partial(self.merged, index, merge)
        x = self.before('downsample', x, ctx, index)
        y = self.merged(index, merge, x, ctx)
        return self.after('downsample', x, y, ctx, index)

    def merged(self, index: int, merge: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the two ports of ``downsample``; it moves ``ctx.grid``."""
        p = ctx.num_prefix
        h, ctx.grid = self.gather(merge, x[:, p:], ctx.grid)
        if p:
            h = torch.cat((self.repeat_four(x[:, :p]), h), dim=1)
        h = self.through('downsample.norm', merge.norm, h, ctx, index)
        return self.through('downsample.reduction', merge.reduction, h, ctx, index)

    def run_stages(
        self, stages: nn.ModuleList, x: Tensor, ctx: Context
    ) -> list[Tensor]:
        """Every stage in turn; outputs are (B, C, *grid), contiguous."""
        outs = []
        for i, stage in enumerate(stages):
            for block in stage.blocks:
                x = block(x, ctx)
            merge = stage.downsample
            if merge is not None and self.out_after_downsample:
                x = self.merge_patches(i, merge, x, ctx)
            if i in self.out_indices:
                y = self.emit(x, getattr(self, f'norm{i}'), ctx, i)[1]
                outs.append(y.transpose(1, 2).unflatten(2, ctx.grid).contiguous())
            if merge is not None and not self.out_after_downsample:
                x = self.merge_patches(i, merge, x, ctx)
        return outs


class WindowSiteMap(SiteMap):
    """Site map of a backbone whose stages hold windowed blocks."""

    stages_name: str
    channels_first: bool

    def projection(self, backbone: nn.Module) -> nn.Module:
        """Convolution of the patch embedding."""
        raise NotImplementedError

    def block_facts(
        self, block: nn.Module
    ) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """Heads, hidden width, window and shift of a block."""
        raise NotImplementedError

    def stages(self, backbone: nn.Module) -> nn.ModuleList:
        """The stages, in the order of the forward pass."""
        return getattr(backbone, self.stages_name)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, stage in enumerate(self.stages(backbone)):
            for j, block in enumerate(stage.blocks):
                yield f'{self.stages_name}.{i}.blocks.{j}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        embed = backbone.embed_dims
        projection = self.projection(backbone)
        patch = projection.in_channels * math.prod(projection.kernel_size)
        stages = self.stages(backbone)
        depth = sum(len(stage.blocks) for stage in stages)
        facts = {'num_blocks': depth, 'embed_dims': embed, 'patch_dims': patch}
        first = {**facts, 'stage': 0, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, embed, **first)]
        if backbone.patch_embed.norm is not None:
            sites.append(Site('embed.norm', '', embed, embed, **first))
        sites.append(Site('embed', '', embed, embed, **first))
        counter = 0
        pooled = len(backbone.out_indices) == 1
        for i, stage in enumerate(stages):
            facts['stage'] = i
            d = stage.blocks[0].norm1.normalized_shape[0]
            for j, block in enumerate(stage.blocks):
                heads, mlp, window, shift = self.block_facts(block)
                sites += block_sites(
                    f'{self.stages_name}.{i}.blocks.{j}',
                    d,
                    mlp,
                    windowed=True,
                    block=counter,
                    num_heads=heads,
                    window=window,
                    shift=shift,
                    **facts,
                )
                counter += 1
            at = {**facts, 'has_grid': True, 'index': i}
            merging = []
            if stage.downsample is not None:
                wide, out = 4 * d, stage.downsample.reduction.out_features
                order = {'channels_first': self.channels_first}
                merging = [
                    Site('downsample.norm', '', wide, wide, **at, **order),
                    Site('downsample.reduction', '', wide, out, **at, **order),
                    Site('downsample', '', d, out, **at, **order),
                ]
            leaving = []
            if i in backbone.out_indices:
                n = backbone.num_features[i]
                norm = getattr(backbone, f'norm{i}')
                if not isinstance(norm, nn.Identity):
                    leaving.append(Site('out.norm', '', n, n, **at))
                leaving.append(
                    Site('out', '', n, n, pooled=pooled, window=window, **at)
                )
            if backbone.out_after_downsample:
                sites += merging + leaving
            else:
                sites += leaving + merging
        return sites

    def ends(self, backbone: nn.Module) -> dict[str, nn.Module]:
        ends = {
            'embed_proj': self.projection(backbone),
            'embed_norm': backbone.patch_embed.norm,
        }
        for i, stage in enumerate(self.stages(backbone)):
            if stage.downsample is not None:
                ends[f'downsample_norm_{i}'] = stage.downsample.norm
                ends[f'downsample_reduction_{i}'] = stage.downsample.reduction
            if i in backbone.out_indices:
                ends[f'out_norm_{i}'] = getattr(backbone, f'norm{i}')
        return ends
