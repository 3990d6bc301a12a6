"""GLoRA: weight, bias and input of a frozen projection, each adjusted by a path.

Paper: Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient
Fine-tuning", 2023, https://arxiv.org/abs/2306.07967.
Differs from the authors' code: none in the algebra of a layer. Its paths are fixed
here, the same at every layer, where the paper draws them in a supernet and searches;
what no path uses is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    def increments(
        self, weight: Tensor, bias: Tensor, as_double: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is added to a weight (out, in) and a bias (out,); None for nothing."""
        A, B, c = (self.part(name, as_double) for name in 'ABC')
        more = None if A is None else weight * A
        if B is not None:
            more = B.expand_as(weight) if more is None else more + B
        shift = None if c is None else (weight @ c).squeeze(1)
        for name, times in (('D', bias), ('E', 1.0)):
            value = getattr(self, name, None)
            if value is not None:
                term = value * times
                shift = term if shift is None else shift + term
        return more, None if shift is None else shift.expand(len(weight))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        affine = ctx.affine(self.site.kind)
        more, shift = self.increments(
            self.own(affine.weight), self.own(affine.full_bias())
        )
        if more is None:
            return y if shift is None else y + shift
        if self.site.kernel is not None:
            return y + convolve(x, more, self.site, shift)
        return y + F.linear(x, more, shift)


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
        base = affine.base
        more, shift = delta.increments(
            base.weight.double(), base.full_bias().double(), as_double=True
        )
        if more is not None:
            affine.add_(more)
        if shift is not None:
            affine.shift_(shift)
