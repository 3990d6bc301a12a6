"""Convpass: convolutions that pass by attention and feed-forward network.

Paper: Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters",
2022, https://arxiv.org/abs/2207.07039, section 3.
Differs from the authors' code: the identity of the convolution and the grid are read
off the model, where theirs are 8 channels and 14 x 14 tokens. Stochastic depth of the
branch is an argument, since the frozen trunk has none by default. Video (frame by
frame) is our extension.
"""

from __future__ import annotations

from typing import Literal

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
    drop_path,
    on_maps,
)
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product
from mmpetl.registry import METHODS

STYLES = {'both': ('attn', 'ffn'), 'attn': ('attn',)}
INITS = ('identity', 'xavier')


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


class InputDelta(Delta):
    """Keeps what enters a sub-layer, the output of its norm, until the sum."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        self.notes(ctx)[self.name] = x
        return y


class BypassDelta(Delta):
    """``y + scale * up(drop(q(conv(q(down(z))))))`` with the kept z, q quick GELU.

    y: (B, num_prefix + prod(grid), C), the stream behind the sum. The convolution runs
    on the grid; each token in front of it is a map of its own, of which the convolution
    sees the centre and zeros around it.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        hidden_dims: int,
        scale: float,
        drop_rate: float,
        drop_path_rate: float,
        conv_init: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.scale = scale
        self.drop_path_rate = drop_path_rate
        self.down = nn.Linear(site.in_dims, hidden_dims)
        self.conv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1)
        self.drop = Dropout(drop_rate)
        self.up = nn.Linear(hidden_dims, site.out_dims)
        nn.init.xavier_uniform_(self.down.weight)
        if conv_init == 'identity':
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        for tensor in (
            self.down.bias,
            self.conv.bias,
            self.up.weight,
            self.up.bias,
        ):
            nn.init.zeros_(tensor)

    def convolve(self, h: Tensor, ctx: Context) -> Tensor:
        """The convolution on the grid and on every token in front of it."""
        y = on_maps(self.conv, h, ctx)
        p = ctx.num_prefix
        if not p:
            return y
        prefix = F.linear(h[:, :p], self.conv.weight[:, :, 1, 1], self.conv.bias)
        return torch.cat((prefix.to(y.dtype), y[:, p:]), dim=1)

    def hidden(self, z: Tensor, ctx: Context) -> Tensor:
        """What the up projection sees, (B, num_prefix + prod(grid), hidden_dims)."""
        return self.drop(quick_gelu(self.convolve(quick_gelu(self.down(z)), ctx)))

    def branch(self, z: Tensor, ctx: Context) -> Tensor:
        """(B, num_prefix + prod(grid), C) -> the same shape, without the scale."""
        return self.up(self.hidden(z, ctx))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        z = self.own(self.notes(ctx).pop(self.name))
        if self.training and self.drop_path_rate:
            return y + drop_path(self.branch(z, ctx), self.drop_path_rate) * self.scale
        h = self.hidden(z, ctx)
        return add_product(y, h, self.up.weight, self.scale, self.up.bias)


@METHODS.register_module()
class Convpass(Method):
    """Convolutional bypasses.

    Args:
        style: ``'both'`` past attention and feed-forward network, ``'attn'`` past
            attention only.
        hidden_dims: Width of the bottleneck, 8 in the paper.
        scale: Factor of the branches, 0.01 to 100 per task in the authors' code.
        drop_rate: Dropout in front of the up projection, 0.1 there.
        drop_path_rate: Stochastic depth of the branches, drawn apart from the trunk's:
            the rate at the last block, rising linearly from zero at the first.
        conv_init: Start of the convolution: ``'identity'``, or ``'xavier'``, chosen per
            task in the authors' code.
    """

    family = 'adapter'
    reads_grid = True
    sized = ('hidden_dims',)

    def __init__(
        self,
        style: Literal['both', 'attn'] = 'both',
        hidden_dims: int = 8,
        scale: float = 1.0,
        drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        conv_init: Literal['identity', 'xavier'] = 'identity',
    ) -> None:
        if style not in STYLES:
            raise PETLError(
                f'Convpass needs style {" or ".join(STYLES)}, got {style!r}'
            )
        if conv_init not in INITS:
            raise PETLError(
                f'Convpass needs conv_init {" or ".join(INITS)}, got {conv_init!r}'
            )
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        check_range(self, 'drop_path_rate', drop_path_rate, 0, 0.99)
        self.style = style
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.conv_init = conv_init
        names = STYLES[style]
        self.targets = (*names, *(f'{name}.sum' for name in names))

    def build(self, site: Site) -> Delta:
        name, _, place = site.kind.partition('.')
        if not place:
            return InputDelta(name)
        rate = self.drop_path_rate * site.block / max(1, site.num_blocks - 1)
        return BypassDelta(
            site,
            name,
            self.hidden_dims,
            self.scale,
            self.drop_rate,
            rate,
            self.conv_init,
        )
