"""What a swapped pyramid inherits: stages whose keys and values come from fewer tokens.

A stage is opened by a patch embedding, which from the second on is the patch merging,
and closed by a norm that the next stage reads too::

    downsample of stage i - 1:
        x = out.norm(x)                 the norm that closes the stage, where it has one
        x = downsample.norm(downsample.reduction(x))
        x = x + positions, dropout
    blocks, with keys and values of x_kv = norm(reduction(x))
    out: out.norm(x), and what leaves of it

Extra tokens skip the reduction of keys and stand in front of it, as they are; they pass
a convolution inside of a block by. A patch embedding meets each as if it filled the
whole kernel: ``W_sum t + b``, W_sum being the sum of the weight over the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core.context import Context
from mmpetl.core.conv_host import from_maps, norm_tokens, to_maps
from mmpetl.core.errors import PETLError
from mmpetl.core.host import (
    BackboneHost,
    BlockHost,
    patches_of,
    run_in,
    without_extra,
)
from mmpetl.core.site import Site
from mmpetl.core.sitemap import SiteMap, block_sites

REDUCED_KEYS = (
    'keys and values come from a reduced map, so no input is common to all three rows; '
    'take attn.q, attn.k and attn.v'
)


WIDENS = 'blocks widen from stage to stage, so none is made of what all of them see'


@dataclass(frozen=True)
class Stage:
    """A stage of a pyramid, by its parts.

    Attributes:
        path: Path of the list that holds its blocks.
        blocks: Its blocks and their place in that list.
        conv: Convolution that opens it; None in a first stage with another stem.
        conv_norm: Norm behind that, None without one.
        norm: Norm that closes it, None without one.
        pad: What pads its input, (B, C, H, W), in front of the convolution.
    """

    path: str
    blocks: Sequence[tuple[int, nn.Module]]
    conv: nn.Module | None
    conv_norm: nn.Module | None
    norm: nn.Module | None
    pad: Callable[[Tensor], Tensor] | None = None


class ReducedKeysHost(BlockHost):
    """A block whose keys and values come from a smaller map.

    :meth:`key_reduction` says how it is made, and :meth:`reduced` goes to
    ``kv_source`` where it says anything.
    """

    def key_reduction(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        """What makes a map smaller, and the norm of (B, N, C) behind; None: nothing."""
        raise NotImplementedError

    def kv_source(self) -> Callable[[Tensor, Context], Tensor] | None:
        """What keys and values are made from, as ``attend`` takes it."""
        return None if self.key_reduction() is None else self.reduced

    def reduced(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, num_prefix + prod(grid), C) -> (B, num_prefix + fewer, C)."""
        p, (height, width) = ctx.num_prefix, ctx.grid
        if not height * width:
            return x  # tokens in front of no grid
        reduce, norm = self.key_reduction()
        kernel = getattr(reduce, 'kernel_size', (1, 1))
        if height < kernel[0] or width < kernel[1]:
            raise PETLError(
                f'a map of {height} x {width} is smaller than the {kernel[0]} x '
                f'{kernel[1]} tokens that one key stands for; take a larger input'
            )
        y = norm(from_maps(reduce(to_maps(x[:, p:], ctx.grid))))
        return torch.cat((x[:, :p], y), dim=1) if p else y


class PyramidBackboneHost(BackboneHost):
    """Stages with a patch embedding in front and a norm behind, in the stream.

    Attributes:
        channels_first: Whether the channels of a stream, (B, N, C), stand first in
            memory, as large depth-wise convolutions want them.
    """

    out_indices: Sequence[int]
    channels_first = False

    def pyramid(self) -> list[Stage]:
        """The stages, in the order of the forward pass."""
        raise NotImplementedError

    def token_norm(self, norm: nn.Module, ctx: Context) -> Callable[[Tensor], Tensor]:
        """The norm of a patch embedding as a function of (B, N, C)."""
        return norm_tokens(norm, ctx)

    def entered(self, index: int, x: Tensor, ctx: Context) -> Tensor:
        """Positions and dropout of a stage, behind its patch embedding."""
        return x

    def between_blocks(self, index: int, place: int, x: Tensor, ctx: Context) -> Tensor:
        """What follows a block and is part of none; ``place`` counts in the stage."""
        return x

    def maps(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """An output, (B, N, C) -> (B, C, H, W), in order in memory."""
        return to_maps(x, grid).contiguous()

    def leaves(self, index: int) -> bool:
        """Whether the features of a stage are an output."""
        return index in self.out_indices

    def embedded(self, first: Stage, x: Tensor) -> tuple[Tensor, Context]:
        """What enters the first block, (B, N, C), and the context of the pass."""
        if first.pad is not None:
            x = first.pad(x)
        x, ctx = self.embed_patches(first.conv, first.conv_norm, x)
        x = self.entered(0, x, ctx)
        return self.after('embed', x, x, ctx), ctx

    def run_stages(self, x: Tensor) -> list[Tensor]:
        """Every stage in turn; outputs are those that :meth:`leaves` names."""
        return [self.maps(y, grid) for _, y, grid in self.stage_outputs(x)[0]]

    def stage_outputs(
        self, x: Tensor, also: Collection[int] = (), until: int | None = None
    ) -> tuple[list[tuple[int, Tensor, tuple[int, ...]]], Context]:
        """Stage, tokens (B, N, C) and grid of every output; the context at the end.

        Args:
            x: Images.
            also: Stages that are no outputs, and whose normed tokens are asked for.
            until: The last stage that runs, all by default.
        """
        stages = self.pyramid()
        x, ctx = self.embedded(stages[0], x)
        found, normed = [], None
        for i, stage in enumerate(stages):
            if i:
                x = self.open_stage(i - 1, stages, x, normed, ctx)
            for j, (_, block) in enumerate(stage.blocks):
                x = self.between_blocks(i, j, block(x, ctx), ctx)
            normed = self.closed(i, stage, x, ctx)
            if self.leaves(i):
                found.append((i, self.output(i, stage, x, normed, ctx), ctx.grid))
            elif i in also:
                found.append((i, without_extra(normed, ctx), ctx.grid))
            if i == until:
                break
        return found, ctx

    def closed(self, index: int, stage: Stage, x: Tensor, ctx: Context) -> Tensor:
        """The stream behind the norm of a stage."""
        if stage.norm is None:
            return x
        return self.through('out.norm', stage.norm, x, ctx, index)

    def output(
        self, index: int, stage: Stage, x: Tensor, normed: Tensor, ctx: Context
    ) -> Tensor:
        """What leaves behind a stage, (B, N, C).

        A delta at ``out`` changes what leaves, and not what the next stage reads.
        """
        h = self.before('out', x, ctx, index)
        seen = normed if h is x else self.closed(index, stage, h, ctx)
        return self.after('out', seen, without_extra(seen, ctx), ctx, index)

    def open_stage(
        self,
        index: int,
        stages: Sequence[Stage],
        x: Tensor,
        normed: Tensor | None,
        ctx: Context,
    ) -> Tensor:
        """Open stage ``index + 1``, with its sites; it moves ``ctx.grid``.

        Args:
            index: The stage in front.
            stages: All of them.
            x: What leaves its last block.
            normed: The same behind its norm.
            ctx: Facts of this forward pass.
        """
        run = partial(self.opened, index, stages)
        ctx.rerun = partial(run_in, x.dtype, run)
        h = self.before('downsample', x, ctx, index)
        y = run(h, ctx, normed if h is x else None)
        return self.after('downsample', h, y, ctx, index)

    def opened(
        self,
        index: int,
        stages: Sequence[Stage],
        x: Tensor,
        ctx: Context,
        normed: Tensor | None = None,
    ) -> Tensor:
        """What lies between the two ports of ``downsample``."""
        if normed is None:
            normed = self.closed(index, stages[index], x, ctx)
        x = self.reduction(index, stages[index + 1], normed, ctx)
        norm = stages[index + 1].conv_norm
        if norm is not None:
            norm = self.token_norm(norm, ctx)
            x = self.through('downsample.norm', norm, x, ctx, index)
        return self.entered(index + 1, x, ctx)

    def reduction(self, index: int, stage: Stage, x: Tensor, ctx: Context) -> Tensor:
        """The convolution that opens a stage, (B, P + N, C) -> (B, P + N', C')."""
        p, conv, kind = ctx.num_prefix, stage.conv, 'downsample.reduction'
        maps = to_maps(x[:, p:], ctx.grid)
        if self.channels_first:
            maps = maps.contiguous()
        if stage.pad is not None:
            maps = stage.pad(maps)
        y = conv(maps)
        ctx.grid = tuple(y.shape[2:])
        y = y.flatten(2).transpose(1, 2)
        plugged = self.plugged(kind, index, ctx)
        if not (p or plugged):
            return y
        run = partial(F.linear, weight=conv.weight.flatten(1), bias=conv.bias)
        extra = x[:, :p].repeat_interleave(conv.weight[0, 0].numel(), dim=-1)
        if p:
            y = torch.cat((run(extra), y), dim=1)
        if not plugged:
            return y
        seen = torch.cat((extra, patches_of(conv, maps)), dim=1)
        h = self.before(kind, seen, ctx, index)
        return self.after(kind, h, y if h is seen else run(h), ctx, index)


class PyramidSiteMap(SiteMap):
    """Site map of such a backbone."""

    absent = {'attn.qkv': REDUCED_KEYS, 'feature': WIDENS}
    tokens = ()
    positions = ()

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        """The stages, in the order of the forward pass."""
        raise NotImplementedError

    def width(self, stage: Stage) -> int:
        """Channels of a stage."""
        return stage.conv.out_channels

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        """``mlp_dims``, ``num_heads`` and what else ``block_sites`` is to know."""
        raise NotImplementedError

    def leaving(self, backbone: nn.Module) -> set[int]:
        """Stages whose features are outputs."""
        there = range(len(self.pyramid(backbone)))
        return {i for i in backbone.out_indices if i in there}

    def check(self, backbone: nn.Module) -> None:
        super().check(backbone)
        self.check_outputs(backbone)
        for i, stage in enumerate(self.pyramid(backbone)):
            if stage.conv is not None:
                name = f'the patch embedding of stage {i}'
                self.check_class(name, stage.conv, self.convolutions)

    convolutions: tuple[type[nn.Module], ...] = (nn.Conv2d,)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for stage in self.pyramid(backbone):
            for j, block in stage.blocks:
                yield f'{stage.path}.{j}', block

    def sites(self, backbone: nn.Module) -> list[Site]:
        stages = self.pyramid(backbone)
        leaving = self.leaving(backbone)
        first = self.width(stages[0])
        facts = {
            'num_blocks': sum(len(stage.blocks) for stage in stages),
            'embed_dims': first,
            'patch_dims': _patch_dims(stages[0].conv),
        }
        sites = self.entry(stages[0], {**facts, 'stage': 0, 'has_grid': True})
        counter = 0
        for i, stage in enumerate(stages):
            d = self.width(stage)
            for j, block in stage.blocks:
                inside = {**facts, 'stage': i, 'block': counter}
                inside |= self.block_facts(block)
                sites += block_sites(f'{stage.path}.{j}', d, **inside)
                counter += 1
            at = {**facts, 'stage': i, 'index': i, 'has_grid': True}
            at['in_stream'] = i + 1 < len(stages) and stage.norm is not None
            if stage.norm is not None and (at['in_stream'] or i in leaving):
                sites.append(Site('out.norm', '', d, d, **at))
            if i in leaving:
                alone = len(leaving) == 1
                sites.append(Site('out', '', d, d, pooled=alone, **at))
            if i + 1 < len(stages):
                sites += self.merging(d, stages[i + 1], {**at, 'in_stream': False})
        return sites

    def entry(self, first: Stage, at: dict[str, Any]) -> list[Site]:
        """The sites in front of the first block."""
        d = self.width(first)
        sites = []
        if first.conv is not None:
            sites.append(Site('embed.proj', '', at['patch_dims'], d, **at))
        if first.conv is not None and first.conv_norm is not None:
            sites.append(Site('embed.norm', '', d, d, **at))
        return [*sites, Site('embed', '', d, d, **at)]

    def merging(self, dims: int, stage: Stage, at: dict[str, Any]) -> list[Site]:
        """The sites of a patch embedding that opens a later stage."""
        wide, d = _patch_dims(stage.conv), self.width(stage)
        at |= {'channels_first': True, 'stride': tuple(stage.conv.stride)}
        at['merged'] = tuple(stage.conv.kernel_size)
        sites = [Site('downsample.reduction', '', wide, d, **at)]
        if stage.conv_norm is not None:
            sites.append(Site('downsample.norm', '', d, d, **at))
        return [*sites, Site('downsample', '', dims, d, **at)]

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module | None] = {}
        for i, stage in enumerate(self.pyramid(backbone)):
            conv, norm = 'embed_proj', 'embed_norm'
            if i:
                conv, norm = f'downsample_reduction_{i - 1}', f'downsample_norm_{i - 1}'
            if stage.conv is not None:
                modules |= {conv: stage.conv, norm: stage.conv_norm}
            modules[f'out_norm_{i}'] = stage.norm
        return {key: module for key, module in modules.items() if module is not None}


def _patch_dims(conv: nn.Module | None) -> int:
    return 0 if conv is None else conv.weight[0].numel()
