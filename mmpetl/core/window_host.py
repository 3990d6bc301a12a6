"""What a swapped backbone inherits whose attention runs in windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from mmpetl.core.context import Context
from mmpetl.core.errors import PETLError
from mmpetl.core.host import BackboneHost, BlockHost, run_in
from mmpetl.core.site import Site
from mmpetl.core.sitemap import SiteMap, block_sites
from mmpetl.core.windows import Partition


def numbers(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Extents as numbers, which windows need; to TorchScript's trace they are tensors.

    A trace holds for images of one size, and for any number of them.
    """
    return tuple(map(int, grid))


class WindowBlockHost(BlockHost):
    """A block whose attention runs in (shifted) windows.

    Extra tokens of the stream join every window of their image; what the windows
    make of them is averaged. They take part in no relative position bias. A sequence
    that passes a block apart from the grid (:meth:`Context.apart`) is in no window, and
    looks at itself.

    Attributes:
        proj_in_windows: Whether the output projection sees windows, or the map that is
            put together of them, without its padding.
    """

    proj_in_windows = True

    def partition(self, grid: tuple[int, ...]) -> Partition:
        """How this grid is cut into windows."""
        raise NotImplementedError

    def cut(self, ctx: Context) -> Partition:
        """How the grid of this pass is cut into windows."""
        return self.partition(ctx.grid)

    def partition_behind(self, partition: Partition) -> Partition:
        """How the grid of what leaves is put together of the same windows.

        Another one where queries are pooled.
        """
        return partition

    def position_bias(self, num_tokens: int) -> Tensor:
        """(heads, N, N), the relative position bias of a window."""
        raise NotImplementedError

    def window_terms(
        self, partition: Partition, ctx: Context, device: torch.device
    ) -> dict[str, Tensor | None]:
        """Position bias and shift mask of the windows, as :meth:`attend` takes them."""
        return {
            'bias': self.position_bias(partition.tokens),
            'mask': partition.mask_in(ctx, device),
        }

    def score_terms(
        self, q: Tensor, ctx: Context
    ) -> tuple[Tensor | None, Tensor | None, float]:
        terms = self.window_terms(self.cut(ctx), ctx, q.device)
        parts = self.attention_parts()
        bias = self.position_terms(q, ctx, terms['bias'], 0)
        scale = parts.get('scale')
        return bias, terms['mask'], q.shape[-1] ** -0.5 if scale is None else scale

    def attention(self, x: Tensor, ctx: Context) -> Tensor:
        if not all(ctx.grid):
            return super().attention(x, ctx)
        partition = self.cut(ctx)
        p, count = ctx.num_prefix, partition.count
        w = partition.split(x[:, p:])
        if p:
            prefix = x[:, None, :p].expand(-1, count, -1, -1).flatten(0, 1)
            w = torch.cat((prefix, w), dim=1)
        parts = self.attention_parts()
        if not self.proj_in_windows:
            proj, parts['proj'] = parts['proj'], None
        o = self.attend(w, ctx, **self.window_terms(partition, ctx, x.device), **parts)
        y = self.partition_behind(partition).join(o[:, p:])
        if p:
            prefix = o[:, :p].unflatten(0, (-1, count)).mean(1)
            y = torch.cat((prefix, y), dim=1)
        if not self.proj_in_windows:
            y = self.through('attn.proj', proj, y, ctx)
        return self.drop_projection(y)


class WindowBackboneHost(BackboneHost):
    """A backbone of stages with patch merging between them.

    Extra tokens cross a merging as if each stood four times in its neighbourhood.

    Attributes:
        opening: Whether a merging is kept in the stage that it opens, and not in the
            one that it closes. Its sites are those behind the stage before in any case.
    """

    out_indices: tuple[int, ...]
    out_after_downsample: bool = False
    opening = False

    @staticmethod
    def norm_behind(merge: nn.Module) -> bool:
        """Whether the norm of a merging stands behind its reduction."""
        return False

    def check_windows_free(self, asker: str) -> None:
        """Refuse what would change windows that a method has taken over.

        Args:
            asker: What would change them, for the message.

        Raises:
            PETLError: Deltas have windows of their own, which their sites gave them.
        """
        for name, slot in self._petl.slots.items():
            if slot.method.reads_windows and slot.sites:
                raise PETLError(
                    f'{type(slot.method).__name__} in slot {name!r} has windows of its '
                    f'own, those of the blocks, which {asker} changes; call it before '
                    'inject'
                )

    def renew_sites(self) -> None:
        """Let the record tell windows and shifts as the blocks now have them."""
        record = self._petl
        now = {site.path: site for site in record.site_map.sites_of(self)}

        def renewed(sites: tuple[Site, ...]) -> tuple[Site, ...]:
            return tuple(now.get(site.path, site) for site in sites)

        record.sites = renewed(record.sites)
        for slot in record.slots.values():
            slot.sites = renewed(slot.sites)

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
        ctx.rerun = partial(run_in, x.dtype, partial(self.merged, index, merge))
        x = self.before('downsample', x, ctx, index)
        y = self.merged(index, merge, x, ctx)
        return self.after('downsample', x, y, ctx, index)

    def merged(self, index: int, merge: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """What lies between the two ports of ``downsample``; it moves ``ctx.grid``."""
        p = ctx.num_prefix
        h, grid = self.gather(merge, x[:, p:], ctx.grid)
        ctx.grid = numbers(grid)
        if p:
            h = torch.cat((self.repeat_four(x[:, :p]), h), dim=1)
        steps = [('downsample.reduction', merge.reduction)]
        if merge.norm is not None:
            steps.insert(int(self.norm_behind(merge)), ('downsample.norm', merge.norm))
        for kind, step in steps:
            h = self.through(kind, step, h, ctx, index)
        return h

    def run_blocks(self, stage: nn.Module, x: Tensor, ctx: Context) -> Tensor:
        """The blocks of a stage, without its merging."""
        for block in stage.blocks:
            x = block(x, ctx)
        return x

    def run_stages(
        self, stages: nn.ModuleList, x: Tensor, ctx: Context
    ) -> list[Tensor]:
        """Every stage in turn; outputs are (B, C, *grid), contiguous."""
        outs = []
        ctx.grid = numbers(ctx.grid)
        for i, stage in enumerate(stages):
            x = self.run_blocks(stage, x, ctx)
            merge = merging(stages, i, self.opening)
            if merge is not None and self.out_after_downsample:
                x = self.merge_patches(i, merge, x, ctx)
            if i in self.out_indices:
                y = self.emit(x, getattr(self, f'norm{i}'), ctx, i)[1]
                outs.append(y.transpose(1, 2).unflatten(2, ctx.grid).contiguous())
            if merge is not None and not self.out_after_downsample:
                x = self.merge_patches(i, merge, x, ctx)
        return outs


def merging(stages: nn.ModuleList, index: int, opening: bool) -> nn.Module | None:
    """The patch merging behind a stage, None where there is none.

    Args:
        stages: The stages of a backbone.
        index: Of the stage in front of the merging.
        opening: See :class:`WindowBackboneHost`.
    """
    index += opening
    merge = stages[index].downsample if index < len(stages) else None
    return None if isinstance(merge, nn.Identity) else merge


class WindowSiteMap(SiteMap):
    """Site map of a backbone whose stages hold windowed blocks."""

    stages_name: str
    channels_first: bool
    absent = {'feature': 'outputs of a trunk of windows are maps'}
    position_biases = ('relative_position_bias_table',)

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        self.check_outputs(backbone)

    def projection(self, backbone: nn.Module) -> nn.Module:
        """Convolution of the patch embedding."""
        raise NotImplementedError

    def stage_dims(self, stage: nn.Module) -> int:
        """Width of the blocks of a stage."""
        return stage.embed_dims

    def block_facts(
        self, block: nn.Module
    ) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """Heads, hidden width, window and shift of a block."""
        raise NotImplementedError

    def attention_dims(self, block: nn.Module) -> int | None:
        """Width of all heads, None where it is that of the stream."""
        return None

    def out_dims(self, backbone: nn.Module, index: int) -> int:
        """Width of the output of a stage."""
        return backbone.num_features[index]

    def mergings(self, backbone: nn.Module) -> Iterator[tuple[int, nn.Module]]:
        """Index of the stage in front, and module, of every patch merging."""
        stages = self.stages(backbone)
        for i in range(len(stages)):
            merge = merging(stages, i, self.swapped.opening)
            if merge is not None:
                yield i, merge

    def stages(self, backbone: nn.Module) -> nn.ModuleList:
        """The stages, in the order of the forward pass."""
        return getattr(backbone, self.stages_name)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, stage in enumerate(self.stages(backbone)):
            for j, block in enumerate(stage.blocks):
                yield f'{self.stages_name}.{i}.blocks.{j}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = self.projection(backbone)
        embed = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        stages = self.stages(backbone)
        depth = sum(len(stage.blocks) for stage in stages)
        facts = {'num_blocks': depth, 'embed_dims': embed, 'patch_dims': patch}
        facts['timed'] = len(projection.kernel_size) == 3
        first = {**facts, 'stage': 0, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, embed, **first)]
        if not isinstance(backbone.patch_embed.norm, nn.Identity | None):
            sites.append(Site('embed.norm', '', embed, embed, **first))
        sites.append(Site('embed', '', embed, embed, **first))
        counter = 0
        mergings = dict(self.mergings(backbone))
        for i, stage in enumerate(stages):
            facts['stage'] = i
            d = self.stage_dims(stage)
            for j, block in enumerate(stage.blocks):
                heads, mlp, window, shift = self.block_facts(block)
                sites += block_sites(
                    f'{self.stages_name}.{i}.blocks.{j}',
                    d,
                    mlp,
                    windowed=True,
                    attn_dims=self.attention_dims(block),
                    block=counter,
                    num_heads=heads,
                    window=window,
                    shift=shift,
                    **facts,
                )
                counter += 1
            behind = []
            if i in mergings:
                behind = self.merging_sites(mergings[i], d, {**facts, 'index': i})
            leaving = self.exits(backbone, {**facts, 'index': i, 'window': window})
            late = getattr(backbone, 'out_after_downsample', False)
            sites += behind + leaving if late else leaving + behind
        return sites

    def merging_sites(self, merge: nn.Module, dims: int, facts: dict) -> list[Site]:
        """The sites of a patch merging of features of width ``dims``."""
        wide, out = 4 * dims, merge.reduction.out_features
        at = {**facts, 'has_grid': True, 'channels_first': self.channels_first}
        at['merged'] = (1, 2, 2) if facts.get('timed') else (2, 2)
        sites = [Site('downsample.reduction', '', wide, out, **at)]
        if merge.norm is not None:
            late = self.swapped.norm_behind(merge)
            n = out if late else wide
            sites.insert(int(late), Site('downsample.norm', '', n, n, **at))
        return [*sites, Site('downsample', '', dims, out, **at)]

    def exits(self, backbone: nn.Module, facts: dict) -> list[Site]:
        """The sites of the output of a stage.

        Args:
            backbone: The backbone.
            facts: Fields of :class:`Site`, with the stage as ``index``, and the window
                of its blocks.
        """
        i = facts['index']
        if i not in backbone.out_indices:
            return []
        n = self.out_dims(backbone, i)
        facts = {**facts, 'has_grid': True}
        pooled = len(backbone.out_indices) == 1
        sites = [Site('out', '', n, n, pooled=pooled, **facts)]
        if not isinstance(getattr(backbone, f'norm{i}'), nn.Identity):
            del facts['window']
            sites.insert(0, Site('out.norm', '', n, n, **facts))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        modules = {
            'embed_proj': self.projection(backbone),
            'embed_norm': backbone.patch_embed.norm,
        }
        for i, merge in self.mergings(backbone):
            modules[f'downsample_norm_{i}'] = merge.norm
            modules[f'downsample_reduction_{i}'] = merge.reduction
        return modules | self.exit_norms(backbone)

    def exit_norms(self, backbone: nn.Module) -> dict[str, nn.Module]:
        """The norms of the outputs, by :attr:`Site.key`."""
        taken = backbone.out_indices
        return {f'out_norm_{i}': getattr(backbone, f'norm{i}') for i in taken}
