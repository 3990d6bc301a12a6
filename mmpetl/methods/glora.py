"""GLoRA: weight, bias and input of a frozen projection, each adjusted by a path.

Paper: Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient
Fine-tuning", 2023, https://arxiv.org/abs/2306.07967.
Differs from the authors' code: none in the algebra of a layer. Its paths are fixed
here, the same at every layer, where the paper draws them in a supernet and searches;
what no path uses is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmpetl.core import (
    PROJECTIONS,
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    check_kinds,
    check_range,
    check_rank,
    convolve,
    is_wider,
    suggest,
)
from mmpetl.core.lean import add_product, lean, scale_shift
from mmpetl.core.stack import is_plain_linear
from mmpetl.registry import METHODS

LINEAR = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
PATHS = {
    'A': ('lora', 'vector', 'constant', 'none'),
    'B': ('lora', 'vector', 'constant', 'none'),
    'C': ('lora', 'vector', 'none'),
    'D': ('vector', 'constant', 'none'),
    'E': ('vector', 'constant', 'none'),
}
"""What each part may be, the largest first: a product of two factors, one number for
each output (for C: each input), one number, nothing."""


class GLoRADelta(Delta):
    """``x (W + W * A + B)^T + b + b * D + E + W c``, elementwise products.

    x: (B, N, in_dims), y: (B, N, out_dims); W and b are those of the frozen projection.
    A and B are Ad Au and Bd Bu, (out_dims, rank) and (rank, in_dims), or Ad and Bd as
    one number for each row (out_dims,), or one for all; c is Cd Cu, (in_dims, rank) and
    (rank, 1), or Cd (in_dims,); D and E are (out_dims,) or one number.
    """

    reads_base = True

    def __init__(self, site: Site, rank: int, paths: Mapping[str, str]) -> None:
        super().__init__()
        self.site = site
        self.paths = dict(paths)
        sizes = {'A': site.out_dims, 'B': site.out_dims, 'C': site.in_dims}
        ends = {'A': site.in_dims, 'B': site.in_dims, 'C': 1}
        for name, path in self.paths.items():
            if path == 'none':
                continue
            size = 1 if path == 'constant' else sizes.get(name, site.out_dims)
            if path == 'lora':
                up = nn.Parameter(torch.empty(rank, ends[name]))
                nn.init.xavier_uniform_(up)
                self.register_parameter(f'{name}u', up)
            shape = (size, rank) if path == 'lora' else (size,)
            key = f'{name}d' if name in sizes else name
            self.register_parameter(key, nn.Parameter(torch.zeros(shape)))

    def part(self, name: str, as_double: bool = False) -> Tensor | None:
        """A, B or c as a matrix, columns and rows of which may be one for all."""
        if self.paths[name] == 'none':
            return None
        down = getattr(self, f'{name}d')
        down = down.double() if as_double else down
        if self.paths[name] != 'lora':
            return down[:, None]
        return down @ getattr(self, f'{name}u').to(down.dtype)

    def shift(
        self, weight: Tensor, bias: Tensor, as_double: bool = False
    ) -> Tensor | None:
        """``b * D + E + W c``, (out,), of a weight (out, in); None for nothing."""
        c = self.part('C', as_double)
        shift = None if c is None else (weight @ c).squeeze(1)
        for name, times in (('D', bias), ('E', 1.0)):
            value = getattr(self, name, None)
            if value is not None:
                term = value * times
                shift = term if shift is None else shift + term
        return None if shift is None else shift.expand(len(weight))

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        # Scales of single weights make another weight: one product with that one costs
        # what the frozen one would, and no second beside it.
        if self.paths['A'] != 'lora' or self.site.kernel or not is_plain_linear(module):
            return None
        affine = ctx.affine(self.site.kind)
        weight, bias = affine.weight, affine.full_bias()
        if weight.requires_grad or not lean(x, weight, self.Ad):
            return None
        shift = self.shift(weight, bias)
        factors = (self.Bd, self.Bu) if self.paths['B'] == 'lora' else (None, None)
        whole = bias if shift is None else bias + shift
        y = Rescaled.apply(x, weight, whole, self.Ad, self.Au, *factors)
        return y if self.paths['B'] == 'lora' else self.add_low(x, y)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        affine = ctx.affine(self.site.kind)
        weight, bias = self.own(affine.weight), self.own(affine.full_bias())
        shift = self.shift(weight, bias)
        if self.paths['A'] == 'lora':
            y = y + self.projected(x, weight * (self.Ad @ self.Au))
        elif self.paths['A'] != 'none':
            # A scale of rows is one of what leaves, without the bias.
            less = bias * self.Ad
            shift = -less if shift is None else shift - less
            y = scale_shift(y, (1 + self.Ad).expand_as(bias), shift)
            shift = None
        return self.add_low(x, y, shift)

    def projected(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x W^T``, of a convolution on its patches."""
        if self.site.kernel is not None:
            return convolve(x, weight, self.site)
        return F.linear(x, weight)

    def add_low(self, x: Tensor, y: Tensor, shift: Tensor | None = None) -> Tensor:
        """``y + x B^T + shift`` by the factors of B, of which a row has one number."""
        if self.paths['B'] == 'none':
            return y if shift is None else y + shift
        if self.paths['B'] == 'lora':
            return add_product(y, self.projected(x, self.Bu), self.Bd, bias=shift)
        ones = x.new_ones(1, self.site.in_dims)
        sums = self.projected(x, ones) if self.site.kernel else x.sum(-1, keepdim=True)
        rows = self.Bd.expand(self.site.out_dims)[:, None]
        return add_product(y, sums, rows, bias=shift)


@METHODS.register_module()
class GLoRA(Method):
    """Generalised low-rank adaptation, with fixed paths.

    Args:
        rank: Rank of the products, 1 <= rank < width; up to 4 in the paper. By layer:
            ``{'*.attn.qkv': 8, '*': 4}``, where the first pattern that fits counts.
        paths: What each part is, ``dict(A='vector', C='none')``; what is not named is
            as large as it can be. A scales weights and B adds to them, each by
            ``'lora'`` (a product), ``'vector'`` (a number for each row), ``'constant'``
            or ``'none'``; C adds to the input, by ``'lora'``, ``'vector'`` or
            ``'none'``; D scales the bias and E adds to it, by ``'vector'``,
            ``'constant'`` or ``'none'``. Where a base has no bias there is no D.
        targets: Projections that are adapted. In a model that no file describes they
            are every Linear and convolution.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    family = 'reparameterisation'
    substitutes = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v')}
    targets_any = True

    def __init__(
        self,
        rank: int = 4,
        paths: Mapping[str, str] | None = None,
        targets: Sequence[str] = LINEAR,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        self.rank = rank
        self.paths = {name: known[0] for name, known in PATHS.items()}
        for name, path in dict(paths or {}).items():
            if name not in PATHS:
                raise PETLError(f'GLoRA has paths {", ".join(PATHS)}, got {name!r}')
            if path not in PATHS[name]:
                raise PETLError(
                    f'GLoRA needs path {name} {" or ".join(PATHS[name])}, got '
                    f'{path!r}.{suggest(str(path), PATHS[name])}'
                )
            self.paths[name] = path
        if set(self.paths.values()) == {'none'}:
            raise PETLError('GLoRA needs a path that is not none')
        self.targets = check_kinds(self, targets, PROJECTIONS)

    def check(self, sites: list[Site]) -> None:
        if 'lora' in self.paths.values():
            check_rank(self, self.rank, sites)

    def has_room(self, site: Site) -> bool:
        return 'lora' not in self.paths.values() or is_wider(site, self.rank)

    def build(self, site: Site) -> GLoRADelta:
        return GLoRADelta(site, self.rank, self.paths)

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[..., Affine]
    ) -> None:
        for site, delta in deltas.items():
            bias = weights(site.host, site.kind, site.index).bias
            if all(part.bias is None for part in bias):
                delta.D = None  # it scales a bias, and there is none

    def fold(self, site: Site, delta: GLoRADelta, affine: Affine) -> None:
        weight, bias = affine.base.weight.double(), affine.base.full_bias().double()
        shift = delta.shift(weight, bias, as_double=True)
        A, B = (delta.part(name, as_double=True) for name in 'AB')
        if A is not None:
            affine.add_(weight * A)
        if B is not None:
            affine.add_(B.expand_as(weight))
        if shift is not None:
            affine.shift_(shift)


class Rescaled(Function):
    """``x (W * (1 + Ad Au) + Bd Bu)^T + b`` of a frozen W, which keeps x alone.

    x: (..., in), W: (out, in), b: (out,); Bd and Bu may be None. The weight is made
    anew in the backward pass, which costs a pass over it and not over the tokens.
    """

    @staticmethod
    def weight(
        frozen: Tensor, Ad: Tensor, Au: Tensor, Bd: Tensor | None, Bu: Tensor | None
    ) -> Tensor:
        """(out, in)."""
        one = frozen.new_ones(())
        whole = torch.addmm(one, Ad, Au).mul_(frozen)
        return whole if Bd is None else whole.addmm_(Bd, Bu)

    @staticmethod
    def forward(
        x: Tensor,
        frozen: Tensor,
        bias: Tensor,
        Ad: Tensor,
        Au: Tensor,
        Bd: Tensor | None,
        Bu: Tensor | None,
    ) -> Tensor:
        return F.linear(x, Rescaled.weight(frozen, Ad, Au, Bd, Bu), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, frozen, _, *factors = inputs
        ctx.save_for_backward(x, frozen, *factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, frozen, Ad, Au, Bd, Bu = ctx.saved_tensors
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ Rescaled.weight(frozen, Ad, Au, Bd, Bu)
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        to_B = (None, None)
        to_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if Bd is not None:
            to_B = to_weight @ Bu.t(), Bd.t() @ to_weight
        to_A = to_weight.mul_(frozen)
        return to_x, None, to_bias, to_A @ Au.t(), Ad.t() @ to_A, *to_B
