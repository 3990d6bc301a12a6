"""LST: a small transformer beside the frozen one, fed with its outputs.

Paper: Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer
Learning", NeurIPS 2022, https://arxiv.org/abs/2206.06522, sections 3.2 and 3.3.
Differs from the authors' code: theirs is for language models and for CLIP's ResNet. For
vision transformers the side block is one of the host's kind with the host's heads, and
what leaves the side network is the feature. Side blocks start from the channels of the
host that are largest in magnitude (theirs: largest Fisher information, which needs
data). Windowed backbones (a side width per stage, a patch merging of its own) and dense
outputs are our extension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    from_windows,
    shift_mask,
    softmax_attention,
    split_heads,
    to_windows,
    without_extra,
)
from mmpetl.registry import METHODS

INITS = ('magnitude', 'random')
TEMPERATURE = 0.1


class SideStream(nn.Module):
    """Holds nothing; its identity tells one side network from another."""


@lru_cache(maxsize=64)
def table_rows(
    window: tuple[int, ...], full: tuple[int, ...], device: torch.device
) -> Tensor:
    """Rows of a table made for windows ``full``, for each token pair of ``window``.

    Returns:
        (N * N,) with N = prod(window).
    """
    axes = [torch.arange(w, device=device) for w in window]
    at = torch.stack(torch.meshgrid(*axes, indexing='ij')).flatten(1)
    rows = torch.zeros((), dtype=torch.long, device=device)
    for d, w in zip(at[:, :, None] - at[:, None, :], full, strict=True):
        rows = rows * (2 * w - 1) + d + w - 1
    return rows.flatten()


class SideBlock(nn.Module):
    """A pre-norm transformer block, windowed where the host's is.

    h: (B, own prefix + prod(grid), dims), ``dims`` the host's width over the reduction.
    """

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        dims, hidden = site.in_dims // reduction, site.mlp_dims // reduction
        self.num_heads = site.num_heads
        self.window, self.shift = site.window, site.shift
        self.norm1 = nn.LayerNorm(dims)
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)
        self.norm2 = nn.LayerNorm(dims)
        self.fc1 = nn.Linear(dims, hidden)
        self.fc2 = nn.Linear(hidden, dims)
        if self.window is not None:
            rows = math.prod(2 * w - 1 for w in self.window)
            self.table = nn.Parameter(torch.empty(rows, self.num_heads))
            nn.init.trunc_normal_(self.table, std=0.02)

    def attend(
        self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attention with both projections, (B, N, dims) -> (B, N, dims)."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        o = softmax_attention(q, k, v, bias, mask)
        return self.proj(o.transpose(1, 2).flatten(2))

    def attention(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Attention over all tokens, or within (shifted) windows of the grid."""
        if self.window is None:
            return self.attend(x)
        # An axis that is no longer than the window is one window, unshifted.
        axes = list(zip(grid, self.window, self.shift, strict=True))
        window = tuple(min(n, w) for n, w, _ in axes)
        shift = tuple(0 if n <= w else s for n, w, s in axes)
        rows = self.table[table_rows(window, self.window, x.device)]
        n = math.prod(window)
        bias = rows.view(n, n, -1).permute(2, 0, 1)
        mask = shift_mask(grid, window, shift, x.device)
        y = self.attend(to_windows(x, grid, window, shift), bias, mask)
        return from_windows(y, grid, window, shift)

    def forward(self, h: Tensor, grid: tuple[int, ...]) -> Tensor:
        h = h + self.attention(self.norm1(h), grid)
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))


class EntryDelta(Delta):
    """``h_0 = D_0 z_0``."""

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(site.out_dims, site.out_dims // reduction)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        ctx.scratch[self.shared] = self.down(without_extra(y, ctx))
        return y


class LadderDelta(Delta):
    """``h_i = SideBlock(mu h_{i-1} + (1 - mu) D_i z_i)``, ``mu = sigmoid(alpha / T)``.

    z_i: (B, num_prefix + prod(grid), C), what leaves block i, and leaves it unchanged.
    """

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(site.out_dims, site.out_dims // reduction)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.block = SideBlock(site, reduction)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        mu = torch.sigmoid(self.alpha / TEMPERATURE)
        fed = self.down(without_extra(y, ctx))
        h = torch.lerp(fed, ctx.scratch[self.shared].to(fed.dtype), mu.to(fed.dtype))
        ctx.scratch[self.shared] = self.block(h, ctx.grid)
        return y


class MergeDelta(Delta):
    """Patch merging of the side stream: ``Linear(norm([h of 2 x 2 neighbours]))``."""

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        wide = 4 * (site.in_dims // reduction)
        self.norm = nn.LayerNorm(wide)
        self.down = nn.Linear(wide, site.out_dims // reduction, bias=False)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        # The grid is still the one in front of the merging.
        *_, height, width = ctx.grid
        h = ctx.scratch[self.shared]
        maps = h.view(-1, height, width, h.shape[-1])
        maps = F.pad(maps, (0, 0, 0, width % 2, 0, height % 2))
        near = [maps[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        h = torch.cat(near, dim=-1).reshape(len(h), -1, 4 * h.shape[-1])
        ctx.scratch[self.shared] = self.down(self.norm(h))
        return x


class ExitDelta(Delta):
    """``U norm(h)`` leaves the backbone in place of y."""

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(site.out_dims // reduction)
        self.up = nn.Linear(site.out_dims // reduction, site.out_dims)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.up(self.norm(ctx.scratch[self.shared]))


PARTS = {
    'embed': EntryDelta,
    'block': LadderDelta,
    'downsample': MergeDelta,
    'out': ExitDelta,
}


@METHODS.register_module()
class LST(Method):
    """Ladder side-tuning.

    Args:
        reduction: Width of the backbone over that of the side network; 8 in the
            paper.
        init: Where side blocks start. ``'magnitude'`` copies the channels of the
            host's blocks that have the largest weights; ``'random'`` draws them.
    """

    targets = ('embed', 'block', 'out')
    optional = ('downsample',)
    starts_as_identity = False
    family = 'side'

    def __init__(
        self, reduction: int = 8, init: Literal['magnitude', 'random'] = 'magnitude'
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        if init not in INITS:
            raise PETLError(f'LST has init {" and ".join(INITS)}, got {init!r}')
        self.reduction = reduction
        self.init = init

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            parts = self.reduction * (site.num_heads or 1)
            if site.in_dims % parts:
                raise PETLError(
                    f'LST needs widths that {self.reduction} x heads divides; {site} '
                    f'has {site.in_dims} channels and {site.num_heads or 1} heads, so '
                    'take a smaller reduction'
                )

    def share(self, sites: list[Site]) -> SideStream:
        return SideStream()

    def build(self, site: Site) -> Delta:
        return PARTS[site.kind](site, self.reduction)

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[[str, str], Affine]
    ) -> None:
        stages: dict[int, list[Site]] = {}
        for site in deltas:
            if site.kind == 'block':
                stages.setdefault(site.stage, []).append(site)
        for sites in stages.values():
            hosts = [HostBlock(site, weights) for site in sites]
            blocks = [deltas[site].block for site in sites]
            for block, host in zip(blocks, hosts, strict=True):
                block.norm1.eps = host.norm1.eps
                block.norm2.eps = host.norm2.eps
            if self.init == 'magnitude':
                total = sum(host.residual_size() for host in hosts)
                # One set per stage: all its blocks share the residual stream.
                kept = largest(total, len(total) // self.reduction)
                for block, host in zip(blocks, hosts, strict=True):
                    host.prune_into(block, kept)


def largest(size: Tensor, count: int) -> Tensor:
    """Indices of the largest entries along the last axis, ascending."""
    return size.topk(count, dim=-1).indices.sort(dim=-1).values


class HostBlock:
    """The weights of a host's block, and how large each channel is.

    The size of a channel is the sum of the magnitudes of all weights attached to it.
    """

    def __init__(self, site: Site, weights: Callable[[str, str], Affine]) -> None:
        self.heads = site.num_heads
        self.norm1 = weights(site.host, 'norm1')
        self.qkv = weights(site.host, 'attn.qkv')
        self.proj = weights(site.host, 'attn.proj')
        self.norm2 = weights(site.host, 'norm2')
        self.fc1 = weights(site.host, 'ffn.fc1')
        self.fc2 = weights(site.host, 'ffn.fc2')

    def residual_size(self) -> Tensor:
        """Of each channel of the residual stream, (C,)."""
        into = [a.weight.abs().sum(0) for a in (self.qkv, self.fc1)]
        out = [
            a.weight.abs().sum(1) + a.full_bias().abs() for a in (self.proj, self.fc2)
        ]
        norms = [a.weight.abs() + a.full_bias().abs() for a in (self.norm1, self.norm2)]
        return sum(into + out + norms)

    def prune_into(self, block: SideBlock, kept: Tensor) -> None:
        """Copy the kept residual channels, and the largest inner ones, to ``block``."""
        for norm, host in ((block.norm1, self.norm1), (block.norm2, self.norm2)):
            norm.weight.copy_(host.weight[kept])
            norm.bias.copy_(host.full_bias()[kept])

        # Queries and keys of a head meet channel by channel, values and the output
        # projection likewise, so each pair keeps channels of its own in every head.
        weight, bias = self.qkv.weight, self.qkv.full_bias()
        rows = weight.abs().sum(1) + bias.abs()
        q, k, v = rows.view(3, self.heads, -1)
        v = v + self.proj.weight.abs().sum(0).view(self.heads, -1)
        width = block.proj.in_features // self.heads
        first = torch.arange(self.heads, device=rows.device)[:, None] * q.shape[-1]
        qk, v = ((largest(size, width) + first).flatten() for size in (q + k, v))
        inner = self.heads * q.shape[-1]
        rows = torch.cat((qk, qk + inner, v + 2 * inner))
        block.qkv.weight.copy_(weight[rows][:, kept])
        block.qkv.bias.copy_(bias[rows])
        block.proj.weight.copy_(self.proj.weight[kept][:, v])
        block.proj.bias.copy_(self.proj.full_bias()[kept])

        size = self.fc1.weight.abs().sum(1) + self.fc1.full_bias().abs()
        size = size + self.fc2.weight.abs().sum(0)
        hidden = largest(size, block.fc1.out_features)
        block.fc1.weight.copy_(self.fc1.weight[hidden][:, kept])
        block.fc1.bias.copy_(self.fc1.full_bias()[hidden])
        block.fc2.weight.copy_(self.fc2.weight[kept][:, hidden])
        block.fc2.bias.copy_(self.fc2.full_bias()[kept])
