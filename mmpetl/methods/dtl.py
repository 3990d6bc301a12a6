"""DTL: one low-rank residual beside the frozen blocks, fed back into the late ones.

Paper: Fu et al., "DTL: Disentangled Transfer Learning for Visual Recognition",
AAAI 2024, https://arxiv.org/abs/2312.07856; with ``kernel_size`` its DTL+.
Differs from the authors' code: none in the algebra; the sigmoid is computed in float32
under mixed precision, and only stages with additions have a convolution. The mean over
patches takes the place of the class token in front of the final norm, so that a head on
the class token reads what theirs reads. Video and dense tasks are our extension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    add_to_own,
    check_range,
    kaiming_uniform_,
    on_maps,
    without_extra,
)
from mmpetl.registry import METHODS

# The authors add from block 6 of 12 (ViT-B/16) and from block 14 of 24 (Swin-B).
FIRST_ADDED_WINDOWED = {24: 14}


class Fusion(nn.ModuleDict):
    """``F`` of DTL+ per stage, a depthwise convolution; empty in DTL."""

    def __init__(self, dims: dict[int, int], kernel_size: int | None) -> None:
        super().__init__()
        if kernel_size is not None:
            for stage, d in dims.items():
                self[str(stage)] = nn.Conv2d(
                    d, d, kernel_size, padding='same', groups=d, bias=False
                )


class DTLDelta(Delta):
    """``h += x A^T B^T`` in front of a block, ``y + F(h * sigmoid(beta h))`` behind it.

    x, y: (B, num_prefix + prod(grid), dims); h starts at zero in every stage. It
    belongs to the base's own tokens; those that other deltas have added, which may
    change from block to block, pass by.
    """

    def __init__(
        self, dims: int, rank: int, beta: float, stage: int, adds: bool
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, dims))
        self.B = nn.Parameter(torch.zeros(dims, rank))
        kaiming_uniform_(self.A)
        self.beta = beta
        self.stage = stage
        self.adds = adds

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        notes = self.notes(ctx)
        h = F.linear(F.linear(without_extra(x, ctx), self.A), self.B)
        notes[self.stage] = notes[self.stage] + h if self.stage in notes else h
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if not self.adds:
            return y
        h = self.notes(ctx)[self.stage]
        at_least = torch.promote_types(h.dtype, torch.float32)
        h = h * torch.sigmoid(self.beta * h.to(at_least)).to(h.dtype)
        if len(self.shared):
            h = on_maps(self.shared[str(self.stage)], h, ctx.own())
        return add_to_own(y, h, ctx)


class PatchMeanDelta(Delta):
    """In front of the final norm, the mean over the grid replaces the class token."""

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        p = ctx.num_prefix
        if p == ctx.num_extra:
            return x
        return torch.cat((x[:, p:].mean(1, keepdim=True), x[:, 1:]), dim=1)


@METHODS.register_module()
class DTL(Method):
    """Disentangled transfer learning.

    Args:
        rank: Rank of each update, 1 <= rank < width; 2 for ViT-B, 4 for Swin-B.
        add_after: Blocks behind which the side state is added, counted over the whole
            backbone. None takes the second half, as published for ViT-B, and from
            block 14 on in windowed backbones of 24 blocks, as published for Swin-B.
            Every block of a stage with an addition feeds the side state.
        beta: Steepness of the gate, 100 in the paper.
        kernel_size: None is DTL. A number is DTL+, with one depthwise convolution of
            that size per stage; 3 to 5 in the paper.
        patch_mean: Whether the feature of a class token is the mean over patches, as
            published. Features that are averaged anyway stay as they are.
    """

    targets = ('block',)
    optional = ('out',)
    family = 'side'
    reads_grid = True
    apart = False

    def __init__(
        self,
        rank: int = 2,
        add_after: Sequence[int] | None = None,
        beta: float = 100.0,
        kernel_size: int | None = None,
        patch_mean: bool = True,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'beta', beta, 0)
        if kernel_size is not None:
            check_range(self, 'kernel_size', kernel_size, 1)
        if add_after is not None and not len(add_after):
            raise PETLError('DTL needs at least one block in add_after; None chooses')
        self.rank = rank
        self.add_after = None if add_after is None else tuple(add_after)
        self.beta = beta
        self.kernel_size = kernel_size
        self.patch_mean = patch_mean
        self.windowed = False
        self.starts_as_identity = not patch_mean

    def adds(self, site: Site) -> bool:
        """Whether the side state is added behind this block."""
        if self.add_after is not None:
            return site.block in self.add_after
        first = site.num_blocks // 2
        if self.windowed:
            first = FIRST_ADDED_WINDOWED.get(site.num_blocks, first)
        return site.block >= first

    def choose(self, sites: list[Site]) -> list[Site]:
        blocks = [site for site in sites if site.kind == 'block']
        there = {site.block for site in blocks}
        # Of the trunk, as some blocks of a windowed one attend to all.
        self.windowed = any(site.window is not None for site in blocks)
        for block in self.add_after or ():
            if block not in there:
                raise PETLError(
                    f'DTL is to add behind block {block}; this backbone has blocks '
                    f'0 to {len(there) - 1}'
                )
        fed = {site.stage for site in blocks if self.adds(site)}
        chosen = [site for site in blocks if site.stage in fed]
        if self.patch_mean:
            chosen += [
                site
                for site in sites
                if site.kind == 'out' and site.window is None and not site.pooled
            ]
        # Their feature is another one only where a mean takes the class token's place.
        self.starts_as_identity = all(site.kind != 'out' for site in chosen)
        return chosen

    def check(self, sites: list[Site]) -> None:
        narrow = min(site.in_dims for site in sites)
        if self.rank >= narrow:
            raise PETLError(
                f'DTL needs rank below the width ({narrow}), got {self.rank}'
            )

    def share(self, sites: list[Site]) -> Fusion:
        dims = {site.stage: site.in_dims for site in sites if site.kind == 'block'}
        return Fusion(dims, self.kernel_size)

    def build(self, site: Site) -> Delta:
        if site.kind == 'out':
            return PatchMeanDelta()
        return DTLDelta(site.in_dims, self.rank, self.beta, site.stage, self.adds(site))
