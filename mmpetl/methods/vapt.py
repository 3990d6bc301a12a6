"""VAPT: prompts that are made of the patches in front of each block.

Paper: Le et al., "Revisit Visual Prompt Tuning: The Expressiveness of Prompt Experts",
2025, https://arxiv.org/abs/2501.18936, section 4.
Differs from the authors' code: the grid that the linear map over places is for is an
argument, where theirs is 14 x 14, and a stream on another grid is resampled to it
(ours). Variants of that code by which parts are compared are left out. Video (the mean
over frames) is our extension. Windows and trunks of several stages are refused: a
prompt per window is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Prompts,
    Site,
    check_range,
    join_tokens,
)
from mmpetl.core.dropout import Dropout
from mmpetl.registry import METHODS


class Refinement(nn.Module):
    """``z + drop(relu(z Wd^T)) Wu^T``, one pair for all blocks."""

    def __init__(self, dims: int, hidden_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims, bias=False)
        self.up = nn.Linear(hidden_dims, dims, bias=False)
        self.drop = Dropout(drop_rate)

    def forward(self, z: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)."""
        return z + self.up(self.drop(F.relu(self.down(z))))


class AdaptivePrompts(Delta):
    """``[class; refine(linear(drop(conv(LN(grid))))); grid]``.

    The convolution is depth-wise and valid, (C, h, w) -> (C, n) with n places left; the
    linear map runs over places, n -> P. It starts at zero, so that prompts do.
    """

    def __init__(
        self,
        dims: int,
        num_tokens: int,
        kernel_size: int,
        one_kernel: bool,
        grid_size: tuple[int, int],
        drop_rate: float,
    ) -> None:
        super().__init__()
        k = kernel_size
        self.grid_size = grid_size
        self.norm = nn.LayerNorm(dims)
        self.kernel = nn.Parameter(torch.empty(1 if one_kernel else dims, 1, k, k))
        nn.init.normal_(self.kernel)
        self.drop = nn.Dropout2d(drop_rate)
        height, width = grid_size
        self.linear = nn.Linear((height - k + 1) * (width - k + 1), num_tokens)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        p, (h, w) = ctx.num_prefix, ctx.grid[-2:]
        dims = x.shape[-1]
        maps = self.norm(x[:, p:]).reshape(-1, h, w, dims).permute(0, 3, 1, 2)
        if (h, w) != self.grid_size:
            maps = F.interpolate(maps, self.grid_size, mode='bilinear')
        kernel = self.kernel.expand(dims, -1, -1, -1)
        places = self.drop(F.conv2d(maps, kernel, groups=dims)).flatten(2)
        z = self.linear(places).transpose(1, 2)  # (B * frames, P, C)
        z = z.unflatten(0, (-1, prod(ctx.grid[:-2]))).mean(1)
        return join_tokens(x, self.shared(z), ctx, self.slot)


@METHODS.register_module()
class VAPT(Method):
    """Visual adaptive prompt tuning.

    Args:
        num_tokens: Prompts per block, P >= 1; 5 or 10 in the paper's defaults.
        kernel_size: Extent of the convolution, k >= 1; 2 there.
        hidden_dims: Width of the refinement, h >= 1; 8 there.
        one_kernel: Whether all channels share the kernel, as published; else each has
            its own.
        grid_size: Rows and columns of patches that the linear map is for; a stream on
            another grid is resampled. 14 x 14 is that of patches of 16 in images of
            224.
        drop_rate: Dropout on the prompts of the first block, on whole channels behind
            the convolution, and inside of the refinement; 0.1 there.
    """

    targets = ('tokens',)
    starts_as_identity = False
    family = 'prompt'
    apart = False
    reads_grid = True

    def __init__(
        self,
        num_tokens: int = 10,
        kernel_size: int = 2,
        hidden_dims: int = 8,
        one_kernel: bool = True,
        grid_size: Sequence[int] = (14, 14),
        drop_rate: float = 0.1,
    ) -> None:
        check_range(self, 'num_tokens', num_tokens, 1)
        check_range(self, 'kernel_size', kernel_size, 1)
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        grid_size = tuple(grid_size)
        if len(grid_size) != 2 or min(grid_size) < kernel_size:
            raise PETLError(
                'VAPT needs a grid_size of rows and columns, each at least the '
                f'kernel_size of {kernel_size}, got {grid_size}'
            )
        self.num_tokens = num_tokens
        self.kernel_size = kernel_size
        self.hidden_dims = hidden_dims
        self.one_kernel = one_kernel
        self.grid_size = grid_size
        self.drop_rate = drop_rate

    def choose(self, sites: list[Site]) -> list[Site]:
        chosen = [site for site in sites if self.wants(site)]
        for site in chosen:
            if site.window is not None or site.stage:
                what = 'windows' if site.window is not None else 'several stages'
                raise PETLError(
                    'VAPT makes prompts of all patches of one grid, and this trunk has '
                    f'{what} ({site}); take a plain transformer, or VPTDeep '
                    '(docs/methods/vapt.md)'
                )
        return chosen

    def share(self, sites: list[Site]) -> Refinement:
        return Refinement(sites[0].in_dims, self.hidden_dims, self.drop_rate)

    def build(self, site: Site) -> Delta:
        if site.block == 0:
            bound = (6 / (site.patch_dims + site.embed_dims)) ** 0.5
            return Prompts(site.in_dims, self.num_tokens, bound, self.drop_rate)
        return AdaptivePrompts(
            site.in_dims,
            self.num_tokens,
            self.kernel_size,
            self.one_kernel,
            self.grid_size,
            self.drop_rate,
        )
