"""Adapter+: a bottleneck behind the block, scaled by channel.

Paper: Steitz and Roth, "Adapters Strike Back", CVPR 2024,
https://arxiv.org/abs/2406.06820, section 3.
Differs from the authors' code: its position 'pfeiffer' is the sum of ``'post'`` with a
norm inside of the adapter, so it is ``position='post', norm=True`` here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Method,
    PETLError,
    Site,
    check_range,
    drop_path,
)
from mmpetl.core.bottleneck import Bottleneck
from mmpetl.registry import METHODS

POSITIONS = {
    'post': ('block',),
    'pre': ('attn.sum',),
    'parallel': ('ffn.sum',),
    'intermediate': ('ffn.branch',),
    'houlsby': ('attn.branch', 'ffn.branch'),
}
SCALES = ('channel', 'learned')
INITS = ('houlsby', 'lora')


class AdapterPlusDelta(Bottleneck):
    """``y + A(y)`` with ``A(z) = gamma * drop_path(Wu gelu(Wd z + bd) + bu)``.

    y: (B, N, C). gamma: (C,), (1,), or a number that stays.

    Args:
        dims: Width C.
        hidden_dims: Width of the bottleneck.
        scale: See :class:`AdapterPlus`.
        drop_path_rate: Stochastic depth of the adapter.
        norm: Whether a norm of its own stands in front of Wd.
        init: See :class:`AdapterPlus`.
    """

    def __init__(
        self,
        dims: int,
        hidden_dims: int,
        scale: str | float,
        drop_path_rate: float,
        norm: bool,
        init: str,
    ) -> None:
        super().__init__(dims, hidden_dims, 'gelu', 0.0)
        self.drop_path_rate = drop_path_rate
        self.norm = nn.LayerNorm(dims) if norm else nn.Identity()
        self.gamma: Tensor | float = scale
        if scale in SCALES:
            size = dims if scale == 'channel' else 1
            self.gamma = nn.Parameter(torch.ones(size))
        if init == 'houlsby':
            for linear in (self.down, self.up):
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
        else:
            self.down.reset_parameters()

    def adapter(self, z: Tensor) -> Tensor:
        """A(z), (B, N, C)."""
        z = self.update(self.norm(z))
        if self.training and self.drop_path_rate:
            z = drop_path(z, self.drop_path_rate)
        return z * self.gamma

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.adapter(y)


class ParallelDelta(AdapterPlusDelta):
    """``y + A(x)``: it reads the stream in front of the residual that it joins.

    x, y: (B, N, C), the stream in front of and behind the residual.
    """

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return y + self.adapter(x)


@METHODS.register_module()
class AdapterPlus(Method):
    """Adapter+, and the other positions that its paper compares.

    Args:
        position: ``'post'`` behind the block, ``'pre'`` in front of the second norm,
            both on the stream; ``'parallel'`` from there to behind the block;
            ``'intermediate'`` on what the feed-forward network adds, and
            ``'houlsby'`` on what attention adds as well.
        hidden_dims: Width of the bottleneck, 1 to 32 per task in the paper.
        scale: ``'channel'``: a factor for each channel, ``'learned'``: one for all,
            both from one on; or a number that stays.
        drop_path_rate: Stochastic depth of the adapters, the same in every block; 0.1
            in the paper.
        norm: Whether a norm that trains stands inside of the adapter.
        init: ``'houlsby'``: both projections near zero; ``'lora'``: the first as any
            Linear and the second at zero, so that the model starts as the frozen one.
    """

    family = 'adapter'
    placed = ''
    sized = ('hidden_dims',)

    def __init__(
        self,
        position: Literal[
            'post', 'pre', 'parallel', 'intermediate', 'houlsby'
        ] = 'post',
        hidden_dims: int = 8,
        scale: Literal['channel', 'learned'] | float = 'channel',
        drop_path_rate: float = 0.1,
        norm: bool = False,
        init: Literal['houlsby', 'lora'] = 'houlsby',
    ) -> None:
        if position not in POSITIONS:
            raise PETLError(
                f'AdapterPlus needs position {", ".join(POSITIONS)}, got {position!r}'
            )
        if init not in INITS:
            raise PETLError(
                f'AdapterPlus needs init {" or ".join(INITS)}, got {init!r}'
            )
        if isinstance(scale, str) and scale not in SCALES:
            raise PETLError(
                f'AdapterPlus needs scale {" or ".join(SCALES)} or a number, '
                f'got {scale!r}'
            )
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'drop_path_rate', drop_path_rate, 0, 0.99)
        if not isinstance(scale, str):
            check_range(self, 'scale', scale, 0)
        self.position = position
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.drop_path_rate = drop_path_rate
        self.norm = norm
        self.init = init
        self.targets = POSITIONS[position]
        self.starts_as_identity = init == 'lora'
        self.across = position != 'parallel'

    def build(self, site: Site) -> AdapterPlusDelta:
        cls = ParallelDelta if self.position == 'parallel' else AdapterPlusDelta
        return cls(
            site.out_dims,
            self.hidden_dims,
            self.scale,
            self.drop_path_rate,
            self.norm,
            self.init,
        )
