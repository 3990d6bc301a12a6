"""Conv-Adapter: a thin convolution beside attention, or beside a depth-wise one.

Paper: Chen et al., "Conv-Adapter: Exploring Parameter Efficient Transfer Learning for
ConvNets", CVPR Workshops 2024, https://arxiv.org/abs/2208.07463, section 3.
Differs from the authors' code: the norms that train there beside the adapters (the last
of the trunk) stay frozen. On ConvNeXt the adapters beside its down-sampling, and those
in ResNets, are not offered. Plain transformers (class tokens pass) and video (frame by
frame) are our extension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, PETLError, Site, check_range
from mmpetl.registry import METHODS


class ConvAdapterDelta(Delta):
    """``y + gamma * point(relu(conv(x)))`` on the grid.

    x, y: (B, num_prefix + prod(grid), C), what enters and leaves attention. ``conv``
    has as many groups as outputs, C / rho, so that each sees rho channels.
    """

    def __init__(
        self, dims: int, reduction: int, kernel_size: int, zero_init: bool
    ) -> None:
        super().__init__()
        hidden = dims // reduction
        self.conv = nn.Conv2d(
            dims, hidden, kernel_size, padding=kernel_size // 2, groups=hidden
        )
        self.point = nn.Conv2d(hidden, dims, 1)
        self.gamma = nn.Parameter(torch.ones(dims))
        if zero_init:
            nn.init.zeros_(self.point.weight)
            nn.init.zeros_(self.point.bias)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        p, (h, w) = ctx.num_prefix, ctx.grid[-2:]
        if not h * w:
            return y  # tokens in front of no grid
        maps = x[:, p:].reshape(-1, h, w, x.shape[-1]).permute(0, 3, 1, 2)
        update = self.point(F.relu(self.conv(maps))).permute(0, 2, 3, 1)
        update = self.gamma * update.reshape(x.shape[0], -1, x.shape[-1])
        return torch.cat((y[:, :p], y[:, p:] + update), dim=1) if p else y + update


@METHODS.register_module()
class ConvAdapter(Method):
    """Conv-Adapter, in parallel to what mixes the tokens of a block.

    That is attention, or the depth-wise convolution of a block without it (ConvNeXt).

    Args:
        reduction: Width of the trunk over that of the adapter, rho >= 1, which divides
            every width; 8 in the authors' code.
        kernel_size: Extent of the convolution, odd; 3 there.
        zero_init: Start at the frozen model, with the point-wise convolution at zero
            (ours); theirs does not.
    """

    targets = ('attn',)
    substitutes = {'attn': ('mix',)}
    family = 'adapter'
    reads_grid = True
    placed = 'grid'
    sized = ('reduction',)

    def __init__(
        self, reduction: int = 8, kernel_size: int = 3, zero_init: bool = False
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        check_range(self, 'kernel_size', kernel_size, 1)
        if kernel_size % 2 == 0:
            raise PETLError(f'ConvAdapter needs an odd kernel_size, got {kernel_size}')
        self.reduction = reduction
        self.kernel_size = kernel_size
        self.zero_init = zero_init
        self.starts_as_identity = zero_init

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if site.in_dims % self.reduction:
                raise PETLError(
                    f'ConvAdapter needs a reduction that divides the width of {site} '
                    f'({site.in_dims}), got {self.reduction}'
                )

    def build(self, site: Site) -> ConvAdapterDelta:
        return ConvAdapterDelta(
            site.in_dims, self.reduction, self.kernel_size, self.zero_init
        )
