"""PATT and BAPAT: a bottleneck corrects keys and values; with AdaptFormer at the MLP.

Paper: Yu et al., "Towards a Unified View on Visual Parameter-Efficient Transfer
Learning", 2022, https://arxiv.org/abs/2210.00788.
Differs from the authors' code: attention has its softmax, position bias and mask in
every mode (theirs skips all three outside of three modes). Plain transformers and
images are our extension. That BAPAT is PATT with AdaptFormer is read off code and
count; the name is not explained.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmpetl.core import Context, Delta, Method, PETLError, Site, check_range
from mmpetl.core.bottleneck import Bottleneck
from mmpetl.core.lean import add_product
from mmpetl.registry import METHODS

ADJACENT = {'kv': ('kv',), 'qv': ('q', 'v'), 'qk': ('qk',), 'qkv': ('qkv',)}
"""What is corrected, in groups of rows that stand next to each other, by mode."""
MODES = tuple(ADJACENT)


class PATTDelta(Delta):
    """``[K V] + scale * (W_b tanh(W_a x + b_a) + b_b)``, or what ``mode`` names.

    x: (B, N, C), what enters the fused projection; y: (B, N, 3 C) with rows q, k, v.
    """

    def __init__(
        self, dims: int, hidden_dims: int, scale: float, mode: str, zero_init: bool
    ) -> None:
        super().__init__()
        self.a = nn.Linear(dims, hidden_dims)
        self.b = nn.Linear(hidden_dims, len(mode) * dims)
        self.scale = scale
        self.mode = mode
        if zero_init:
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        h, dims = torch.tanh(self.a(x)), x.shape[-1]
        row = 0  # of b
        for names in ADJACENT[self.mode]:
            rows = slice(row, row := row + dims * len(names))
            first = 'qkv'.index(names) * dims
            weight, bias = self.b.weight[rows], self.b.bias[rows]
            y = add_product(y, h, weight, self.scale, bias, first)
        return y


class ParallelDelta(Bottleneck):
    """``y + scale * update(x)``.  x, y: (B, N, C), what enters and leaves the MLP."""

    scale: float

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        h = self.drop(self.act(self.down(x)))
        return add_product(y, h, self.up.weight, self.scale, self.up.bias)


def check_mode(method: Method, mode: str) -> None:
    """Raise PETLError unless ``mode`` names projections that can be corrected."""
    if mode not in MODES:
        raise PETLError(
            f'{type(method).__name__} has mode {", ".join(MODES)}, got {mode!r}'
        )


def check_widths(method: Method, sites: list[Site]) -> None:
    """Raise PETLError where keys or values are not as wide as the stream."""
    for site in sites:
        if site.kind == 'attn.qkv' and site.out_dims != 3 * site.in_dims:
            raise PETLError(
                f'{type(method).__name__} corrects queries, keys and values of the '
                f'width of the stream; {site} maps {site.in_dims} channels to '
                f'{site.out_dims} rows, not {3 * site.in_dims}'
            )


@METHODS.register_module()
class PATT(Method):
    """Parallel attention: keys and values that depend on the input twice.

    Args:
        hidden_dims: Width of the bottleneck, m; 128 in the authors' recipe.
        scale: Factor of the correction; 0.8 in the authors' recipe.
        mode: Which projections are corrected.
        zero_init: Whether the second layer starts at zero, so that the model starts as
            the frozen one; PyTorch's own start in the authors' code.
    """

    targets = ('attn.qkv',)
    family = 'prefix'

    def __init__(
        self,
        hidden_dims: int = 128,
        scale: float = 0.8,
        mode: Literal['kv', 'qv', 'qk', 'qkv'] = 'kv',
        zero_init: bool = False,
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_mode(self, mode)
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.mode = mode
        self.zero_init = zero_init
        self.starts_as_identity = zero_init or scale == 0

    def check(self, sites: list[Site]) -> None:
        check_widths(self, sites)

    def build(self, site: Site) -> PATTDelta:
        return PATTDelta(
            site.in_dims, self.hidden_dims, self.scale, self.mode, self.zero_init
        )


@METHODS.register_module()
class BAPAT(Method):
    """PATT in every attention, and a parallel adapter in every MLP.

    Args:
        hidden_dims: Width of PATT's bottleneck; 128 in the authors' recipe.
        scale: Factor of PATT's correction; 0.8 in the authors' recipe.
        mode: Which projections PATT corrects.
        zero_init: Whether PATT's second layer starts at zero, so that the model starts
            as the frozen one; PyTorch's own start in the authors' code.
        adapter_dims: Width of the adapter, 64 in the authors' code.
        adapter_scale: Factor of the adapter, 0.1 in the authors' code.
        drop_rate: Dropout in the adapter.
    """

    targets = ('attn.qkv', 'ffn')
    family = 'prefix'

    def __init__(
        self,
        hidden_dims: int = 128,
        scale: float = 0.8,
        mode: Literal['kv', 'qv', 'qk', 'qkv'] = 'kv',
        zero_init: bool = False,
        adapter_dims: int = 64,
        adapter_scale: float = 0.1,
        drop_rate: float = 0.0,
    ) -> None:
        check_range(self, 'hidden_dims', hidden_dims, 1)
        check_range(self, 'scale', scale, 0)
        check_mode(self, mode)
        check_range(self, 'adapter_dims', adapter_dims, 1)
        check_range(self, 'adapter_scale', adapter_scale, 0)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.mode = mode
        self.zero_init = zero_init
        self.adapter_dims = adapter_dims
        self.adapter_scale = adapter_scale
        self.drop_rate = drop_rate
        self.starts_as_identity = zero_init or scale == 0

    def check(self, sites: list[Site]) -> None:
        check_widths(self, sites)

    def build(self, site: Site) -> Delta:
        if site.kind == 'attn.qkv':
            return PATTDelta(
                site.in_dims, self.hidden_dims, self.scale, self.mode, self.zero_init
            )
        delta = ParallelDelta(site.out_dims, self.adapter_dims, 'relu', self.drop_rate)
        delta.scale = self.adapter_scale
        return delta
