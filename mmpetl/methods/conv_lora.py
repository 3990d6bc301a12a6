"""Conv-LoRA: a low-rank sum that convolves its map, at a scale chosen for each image.

Paper: Zhong et al., "Convolution Meets LoRA: Parameter Efficient Finetuning for Segment
Anything Model", ICLR 2024, https://arxiv.org/abs/2401.17868, section 3.
Differs from the public code: the sum over the one chosen expert is taken as it is, not
as the logarithm of its exponential, which is the same and overflows; tokens in front of
the grid have the low-rank sum alone; losses are summed over blocks. What is no square
map, and video (frame by frame), is our extension.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_range,
    check_rank,
    kaiming_uniform_,
)
from mmpetl.registry import METHODS


class Gate(nn.Module):
    """Which expert an image takes, by noisy logits of its mean.

    In training ``m Wg + n (softplus(m Wn) + 0.01)``, n normal; else ``m Wg``.

    Args:
        rank: Width of the mean m.
        num_experts: Experts, 2 or more.
    """

    def __init__(self, rank: int, num_experts: int) -> None:
        super().__init__()
        self.clean = nn.Parameter(torch.zeros(rank, num_experts))
        self.noise = nn.Parameter(torch.zeros(rank, num_experts))

    def forward(self, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """(M, rank) -> the expert of each, (M,), and in training how uneven that is."""
        clean = mean @ self.clean
        if not self.training:
            return clean.argmax(-1), None
        deviation = F.softplus(mean @ self.noise) + 0.01
        noisy = clean + torch.randn_like(clean) * deviation
        chosen = noisy.argmax(-1)
        # How probable it is that an expert is chosen when its noise is drawn again.
        first, second = noisy.topk(2, dim=-1).values.split(1, dim=-1)
        rival = torch.where(noisy > second, second, first)
        load = torch.special.ndtr((clean - rival) / deviation).sum(0)
        importance = F.one_hot(chosen, clean.shape[-1]).sum(0).to(load.dtype)
        return chosen, unevenness(importance) + unevenness(load)


def unevenness(x: Tensor) -> Tensor:
    """The squared coefficient of variation, ``var(x) / mean(x)^2``."""
    return x.var() / (x.mean() ** 2 + 1e-10)


class ScaledConv(nn.Conv2d):
    """``down(gelu(conv3x3(up(m))))``, up and down bicubic by ``scale``.

    The weight starts as PyTorch's, the bias at zero.
    """

    def __init__(self, dims: int, scale: int) -> None:
        super().__init__(dims, dims, 3, padding=1)
        self.scale = scale
        nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        h, w = maps.shape[-2:]
        large = F.gelu(
            super().forward(self._resize(maps, h * self.scale, w * self.scale))
        )
        return self._resize(large, h, w)

    def _resize(self, maps: Tensor, h: int, w: int) -> Tensor:
        if self.scale == 1 or maps.shape[0] == 0:
            return maps
        return F.interpolate(maps, (h, w), mode='bicubic').to(maps.dtype)


class ConvLoRADelta(Delta):
    """``y + s (z + conv_e(z)) B^T`` with ``z = x A^T``, e the expert of the map.

    x: (B, N, in_dims), y: (B, N, out_dims), in windowed attention (B * windows, N, C);
    A: (rank, in_dims), B: (out_dims, rank).
    """

    def __init__(self, site: Site, rank: int, num_experts: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_dims))
        self.B = nn.Parameter(torch.zeros(site.out_dims, rank))
        self.gate = Gate(rank, num_experts)
        self.experts = nn.ModuleList(
            ScaledConv(rank, e + 1) for e in range(num_experts)
        )
        self.scale, self.site = scale, site
        kaiming_uniform_(self.A)

    def extents(self, tokens: int, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Of the map, or window, that so many tokens make."""
        window = self.site.window
        found = [grid]
        if window is not None:
            found = [window, tuple(map(min, grid, window))]
        for extents in found:
            if math.prod(extents) == tokens:
                return extents
        raise PETLError(
            f'ConvLoRA reads a map at {self.site}, and {tokens} tokens make none of '
            f'{" or ".join(map(str, found))}'
        )

    def convolve(self, maps: Tensor) -> Tensor:
        """Each map by its expert, (M, rank, H, W) -> the same shape."""
        chosen, uneven = self.gate(maps.mean((2, 3)))
        if uneven is not None:
            self.add_term('balance', uneven)
        if maps.is_meta:
            # Without numbers none is chosen: each expert gets its share.
            count = len(self.experts)
            parts = (e(maps[at::count]) for at, e in enumerate(self.experts))
            return torch.cat([part.to(maps.dtype) for part in parts])
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            # A graph holds every expert, whichever the example's maps have chosen.
            every = torch.stack([e(maps).to(maps.dtype) for e in self.experts])
            which = chosen.view(1, -1, 1, 1, 1).expand(1, *maps.shape)
            return every.gather(0, which)[0]
        out = torch.zeros_like(maps)
        for e, expert in enumerate(self.experts):
            # One that no map has chosen runs on none, so that its gradient is zero.
            which = (chosen == e).nonzero()[:, 0]
            out = out.index_add(0, which, expert(maps[which]).to(out.dtype))
        return out

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z, p = F.linear(x, self.A), ctx.num_prefix
        if all(ctx.grid):
            grid = z[:, p:]
            h, w = self.extents(grid.shape[1], ctx.grid)[-2:]
            maps = grid.reshape(-1, h, w, z.shape[-1]).permute(0, 3, 1, 2)
            maps = self.convolve(maps).permute(0, 2, 3, 1)
            z = z + F.pad(maps.reshape(grid.shape), (0, 0, p, 0))
        return y + F.linear(z, self.B) * self.scale


@METHODS.register_module()
class ConvLoRA(Method):
    """Low-rank adaptation with a mixture of convolutions in between.

    A loss of its own, ``conv_lora_balance``, keeps the experts in use: a Runner of
    MMEngine adds and logs it; a loop of one's own adds
    :func:`mmpetl.core.collect_losses`. Gates learn by it alone.

    Args:
        rank: Rank of the update, 1 <= rank < width; 3 in the public example.
        alpha: The update is scaled by ``alpha / rank``; None means ``alpha = rank``.
        num_experts: Convolutions, the e-th at the e-fold of the map; 2 or more, 8 in
            the public example.
        balance: Factor of the loss, 0.01 in the public code.
    """

    family = 'reparameterisation'
    targets = ('attn.qkv',)
    losses = ('balance',)
    reads_grid = True
    sized = ('rank',)

    def __init__(
        self,
        rank: int = 3,
        alpha: float | None = None,
        num_experts: int = 8,
        balance: float = 0.01,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        check_range(self, 'num_experts', num_experts, 2)
        check_range(self, 'balance', balance, 0)
        if alpha is not None:
            check_range(self, 'alpha', alpha, 0)
        self.rank = rank
        self.alpha = alpha
        self.num_experts = num_experts
        self.balance = balance

    def check(self, sites: list[Site]) -> None:
        check_rank(self, self.rank, sites)

    def build(self, site: Site) -> ConvLoRADelta:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return ConvLoRADelta(site, self.rank, self.num_experts, scale)

    def loss(self, name: str, terms: list[Tensor]) -> Tensor:
        return self.balance * super().loss(name, terms)
