"""Conv-Adapter: a thin convolution beside attention, or beside a convolution.

Paper: Chen et al., "Conv-Adapter: Exploring Parameter Efficient Transfer Learning for
ConvNets", CVPR Workshops 2024, https://arxiv.org/abs/2208.07463, section 3.
Differs from the authors' code: the norms that train there beside the adapters (the last
of the trunk) stay frozen; every convolution starts as PyTorch's do, on ConvNeXt and
ResNets too; in the bottlenecks of ResNets the branch joins right behind the convolution
that it stands beside, in the code behind the norm and the activation that follow. Plain
transformers (class tokens pass) and video (frame by frame) are our extension.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, PETLError, Site, check_range
from mmpetl.core.bottleneck import ACTIVATIONS, check_activation
from mmpetl.registry import METHODS

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvAdapterDelta(Delta):
    """``A(x) = gamma * point(act(conv(x)))``, on maps.

    ``conv`` has as many groups as outputs, C / rho, so that each sees rho channels.

    Args:
        method: The method, whose reduction, activation and start are taken.
        widths: Channels C that enter, and those that leave.
        kernel: Extents of ``conv``.
        stride: Per axis, or one for all.
        padding: Likewise.
        dilation: Likewise.
    """

    def __init__(
        self,
        method: ConvAdapter,
        widths: tuple[int, int],
        kernel: tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
    ) -> None:
        super().__init__()
        dims, out_dims = widths
        cls, hidden = CONVOLUTIONS[len(kernel)], dims // method.reduction
        shape = kernel, stride, padding, dilation
        self.conv = cls(dims, hidden, *shape, groups=hidden)
        self.point = cls(hidden, out_dims, 1)
        self.act = ACTIVATIONS[method.activation]()
        self.gamma = nn.Parameter(torch.ones(out_dims))
        if method.zero_init:
            nn.init.zeros_(self.point.weight)
            nn.init.zeros_(self.point.bias)

    def update(self, maps: Tensor) -> Tensor:
        """(B, C, *extents) -> (B, *extents, C'), channels last."""
        y = self.point(self.act(self.conv(maps)))
        return self.gamma * y.movedim(-1 - len(self.conv.kernel_size), -1)


class GridDelta(ConvAdapterDelta):
    """``y + A(x)`` on the grid.

    x, y: (B, num_prefix + prod(grid), C), what enters and leaves attention, or what
    mixes tokens without it.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        p, (h, w) = ctx.num_prefix, ctx.grid[-2:]
        if not h * w:
            return y  # tokens in front of no grid
        maps = x[:, p:].reshape(-1, h, w, x.shape[-1]).permute(0, 3, 1, 2)
        update = self.update(maps).reshape(y[:, p:].shape)
        return torch.cat((y[:, :p], y[:, p:] + update), dim=1) if p else y + update


class MergingDelta(ConvAdapterDelta):
    """``y + A(x)`` where each neighbourhood becomes a cell, so that maps shrink.

    x: (B, prod(grid), C * prod(kernel)), neighbourhoods behind the norm, channel-major;
    y: (B, prod(grid), C'), on the grid behind. They are laid out as a map again, over
    which ``conv`` goes by steps as long as its kernel.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        rows = x.unflatten(-1, (-1, *self.conv.kernel_size)).unflatten(1, ctx.grid)
        maps = rows.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return y + self.update(maps).flatten(1, 2)


class LayerDelta(ConvAdapterDelta):
    """``y + A(x)`` beside a convolution of any model.

    x: (B, C, *extents), its map; y: (B, *extents, C'), channels last.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.update(x)


@METHODS.register_module()
class ConvAdapter(Method):
    """Conv-Adapter, in parallel to what mixes the tokens of a block.

    That is attention, or the depth-wise convolution of a block without it (ConvNeXt),
    which has one at each down-sampling too. In a model that no file describes, as the
    ResNets, it is every convolution over several places inside of a block.

    Args:
        reduction: Width of the trunk over that of the adapter, rho >= 1, which divides
            every width; 8 in the authors' code.
        kernel_size: Extent of the convolution, odd. By default that of the convolution
            beside it (7 in blocks of ConvNeXt, 3 in ResNets), and 3 beside attention,
            as in the authors' code. At a down-sampling it is always that of the
            down-sampling, and steps as it does.
        zero_init: Start at the frozen model, with the point-wise convolution at zero
            (ours); theirs does not.
        activation: ``'relu'``; the authors' code has ``'gelu'`` on ConvNeXt.
    """

    targets = ('attn',)
    substitutes = {'attn': ('mix', 'downsample.reduction')}
    family = 'adapter'
    leaf_kinds = ('layer.conv',)
    reads_grid = True
    placed = 'grid'
    sized = ('reduction',)

    def __init__(
        self,
        reduction: int = 8,
        kernel_size: int | None = None,
        zero_init: bool = False,
        activation: Literal['gelu', 'relu'] = 'relu',
    ) -> None:
        check_range(self, 'reduction', reduction, 1)
        if kernel_size is not None:
            check_range(self, 'kernel_size', kernel_size, 1)
            if kernel_size % 2 == 0:
                raise PETLError(
                    f'ConvAdapter needs an odd kernel_size, got {kernel_size}'
                )
        check_activation(self, activation)
        self.reduction = reduction
        self.kernel_size = kernel_size
        self.zero_init = zero_init
        self.activation = activation
        self.starts_as_identity = zero_init

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        """Convolutions in front of all blocks are the stem, which has no adapter."""
        return [
            site
            for site in super().choose_leaves(sites)
            if site.kind != 'layer.conv' or site.block is not None
        ]

    def has_room(self, site: Site) -> bool:
        return site.kind != 'layer.conv' or channels_of(site) % self.reduction == 0

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if channels_of(site) % self.reduction:
                raise PETLError(
                    f'ConvAdapter needs a reduction that divides the width of {site} '
                    f'({channels_of(site)}), got {self.reduction}'
                )
            if site.kind == 'layer.conv' and self.kernel_size and not keeps(site):
                raise PETLError(
                    f'ConvAdapter with kernel_size={self.kernel_size} stands beside '
                    'convolutions that keep the extents of their map, or divide them '
                    f'by a stride, and {site} does not; leave kernel_size out'
                )

    def build(self, site: Site) -> ConvAdapterDelta:
        widths = channels_of(site), site.out_dims
        if site.merged:
            return MergingDelta(self, widths, site.merged, site.merged)
        own = self.kernel_size or 3
        if site.kind != 'layer.conv':
            kernel = site.kernel if site.kernel and not self.kernel_size else (own, own)
            return GridDelta(self, widths, kernel, 1, tuple(k // 2 for k in kernel))
        if self.kernel_size is None:
            steps = site.stride, site.padding, site.dilation
            return LayerDelta(self, widths, site.kernel, *steps)
        kernel = (own,) * len(site.kernel)
        return LayerDelta(self, widths, kernel, site.stride, own // 2)


def channels_of(site: Site) -> int:
    """Channels of what enters, of which a convolution sees several places."""
    seen = site.kernel if site.kind == 'layer.conv' else site.merged
    return site.in_dims // math.prod(seen or ())


def keeps(site: Site) -> bool:
    """Whether a convolution gives a cell for each of its map, or for each stride."""
    each = zip(site.kernel, site.padding, site.dilation, strict=True)
    return all(2 * pad == gap * (size - 1) for size, pad, gap in each)
