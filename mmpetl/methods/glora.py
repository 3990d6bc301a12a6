"""GLoRA: weight, bias and input of a frozen projection, each adjusted by a path.

Paper: Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient
Fine-tuning", 2023, https://arxiv.org/abs/2306.07967.
Differs from the authors' code: none in the algebra of a layer, and what no path uses is
not stored. The step, not the forward pass, draws the paths of a supernet; the search
scores on validation data (there: on the test set); what it finds is trained afresh.

Its first two phases are loops of :mod:`mmpetl.engine.loops.glora`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
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
from mmpetl.core.boundary import checked, read_json
from mmpetl.core.injection import Place
from mmpetl.core.lean import add_product, lean, scale_shift
from mmpetl.core.supernet import Evolution
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

    Attributes:
        paths: What each part is. Where more is stored than that, as in a supernet, a
            vector is the first column of the left factor, and a constant the first
            number of it.
    """

    reads_base = True

    def __init__(self, site: Site, rank: int, paths: Mapping[str, str]) -> None:
        super().__init__()
        self.site = site
        self.paths = dict(paths)
        sizes = {'A': site.out_dims, 'B': site.out_dims, 'C': site.in_dims}
        self.lengths = {name: sizes.get(name, site.out_dims) for name in paths}
        ends = {'A': site.in_dims, 'B': site.in_dims, 'C': 1}
        for name, path in self.paths.items():
            if path == 'none':
                continue
            size = 1 if path == 'constant' else self.lengths[name]
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
        if self.paths[name] != 'lora':
            rows = self.rows(name)
            return (rows.double() if as_double else rows)[:, None]
        down, up = getattr(self, f'{name}d'), getattr(self, f'{name}u')
        return down.double() @ up.double() if as_double else down @ up

    def rows(self, name: str) -> Tensor | None:
        """A vector (rows,) or a constant (1,) of a part, None for nothing."""
        if self.paths[name] == 'none':
            return None
        held = getattr(self, f'{name}d' if name in 'ABC' else name)
        if held is None:
            return None
        held = held[:, 0] if held.ndim > 1 else held
        return held[:1] if self.paths[name] == 'constant' else held

    def size(self, name: str, path: str) -> int:
        """Parameters of a part if it were this."""
        if path == 'none' or getattr(self, name, self) is None:
            return 0
        if path == 'lora':
            both = getattr(self, f'{name}d'), getattr(self, f'{name}u')
            return sum(factor.numel() for factor in both)
        return 1 if path == 'constant' else self.lengths[name]

    def shift(
        self, weight: Tensor, bias: Tensor, as_double: bool = False
    ) -> Tensor | None:
        """``b * D + E + W c``, (out,), of a weight (out, in); None for nothing."""
        c = self.part('C', as_double)
        shift = None if c is None else (weight @ c).squeeze(1)
        for name, times in (('D', bias), ('E', 1.0)):
            value = self.rows(name)
            if value is not None:
                term = value * times
                shift = term if shift is None else shift + term
        return None if shift is None else shift.expand(len(weight))

    def within(
        self, module: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
    ) -> Tensor | None:
        # Scales of single weights make another weight: one product with that one costs
        # what the frozen one would, and no second beside it.
        if self.paths['A'] != 'lora' or self.site.kernel:
            return None
        if not getattr(module, 'is_plain', False):  # of Rows
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
            rows = self.rows('A')
            less = bias * rows
            shift = -less if shift is None else shift - less
            y = scale_shift(y, (1 + rows).expand_as(bias), shift)
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
        rows = self.rows('B').expand(self.site.out_dims)[:, None]
        return add_product(y, sums, rows, bias=shift)


def check_paths(paths: Mapping[str, str]) -> None:
    """Raise PETLError unless these are parts, each as it may be."""
    for name, path in paths.items():
        if name not in PATHS:
            raise PETLError(f'GLoRA has paths {", ".join(PATHS)}, got {name!r}')
        if path not in PATHS[name]:
            raise PETLError(
                f'GLoRA needs path {name} {" or ".join(PATHS[name])}, got '
                f'{path!r}.{suggest(str(path), PATHS[name])}'
            )


@dataclass(frozen=True)
class Subnet:
    """What the parts are at each site, in the order of :data:`PATHS`."""

    paths: tuple[tuple[str, tuple[str, ...]], ...]

    def as_dict(self) -> dict[str, Any]:
        """``{'paths': {'layers.0:attn.qkv': {'A': 'lora', ...}, ...}}``."""
        return {
            'paths': {
                site: dict(zip(PATHS, paths, strict=True)) for site, paths in self.paths
            }
        }


@dataclass(frozen=True)
class SearchSpace:
    """Every part of every site by itself.

    Attributes:
        rank: Of the products.
        choices: What each part may be, the largest first.
        sites: Names of the sites.
        bare: Those whose base has no bias, and so nothing for D.
    """

    rank: int
    choices: tuple[tuple[str, ...], ...]
    sites: tuple[str, ...]
    bare: frozenset[str] = frozenset()

    def at(self, site: str) -> list[tuple[str, ...]]:
        """What each part of a site may be."""
        return [
            ('none',) if name == 'D' and site in self.bare else choices
            for name, choices in zip(PATHS, self.choices, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """The space, the rank and the sites."""
        space = {name: [*c] for name, c in zip(PATHS, self.choices, strict=True)}
        return {'space': space, 'rank': self.rank, 'sites': [*self.sites]}

    def read(self, given: Mapping[str, Any], place: str) -> Subnet:
        """A subnet from a mapping that holds ``paths``, and perhaps more."""
        paths = checked_paths(given.get('paths'), place)
        if [*paths] != [*self.sites]:
            raise PETLError(f'{place} has paths of other sites than the supernet')
        return Subnet(tuple((site, tuple(p.values())) for site, p in paths.items()))

    def _of(self, choose: Callable[[str, int, tuple[str, ...]], str]) -> Subnet:
        return Subnet(
            tuple(
                (site, tuple(choose(site, i, c) for i, c in enumerate(self.at(site))))
                for site in self.sites
            )
        )

    def draw(self, rng: random.Random) -> Subnet:
        """A subnet at random."""
        return self._of(lambda site, part, choices: rng.choice(choices))

    def smallest(self) -> Subnet:
        """The subnet with the fewest parameters."""
        return self._of(lambda site, part, choices: choices[-1])

    def largest(self) -> Subnet:
        """The subnet with the most parameters."""
        return self._of(lambda site, part, choices: choices[0])

    def mutate(self, rng: random.Random, parent: Subnet, plan: Evolution) -> Subnet:
        """A parent, each part of each site drawn anew with probability ``touch``."""
        old = dict(parent.paths)
        return self._of(
            lambda site, part, choices: (
                rng.choice(choices) if rng.random() < plan.touch else old[site][part]
            )
        )

    def cross(self, rng: random.Random, one: Subnet, other: Subnet) -> Subnet:
        """Each part of each site from one of the two."""
        a, b = dict(one.paths), dict(other.paths)
        return self._of(
            lambda site, part, choices: rng.choice((a[site][part], b[site][part]))
        )


@dataclass(frozen=True)
class GLoRAEvolution(Evolution):
    """Settings of GLoRA's search; defaults are those of the authors' code."""

    generations: int = 20


class GLoRASupernet:
    """The deltas of ``GLoRA(space=...)``, of which one path of each part acts."""

    def __init__(self, place: Place) -> None:
        method: GLoRA = place.method
        self.deltas = {str(site): place.delta(site) for site in place.sites}
        bare = {n for n, d in self.deltas.items() if getattr(d, 'D', d) is None}
        choices = tuple(tuple(method.space[name]) for name in PATHS)
        self.space = SearchSpace(
            method.rank, choices, tuple(self.deltas), frozenset(bare)
        )

    def activate(self, subnet: Subnet) -> None:
        """Let the paths of a subnet act."""
        for site, paths in subnet.paths:
            self.deltas[site].paths = dict(zip(PATHS, paths, strict=True))

    def size(self, subnet: Subnet) -> int:
        """Parameters of a subnet, heads excluded."""
        return sum(
            self.deltas[site].size(name, path)
            for site, paths in subnet.paths
            for name, path in zip(PATHS, paths, strict=True)
        )


@METHODS.register_module()
class GLoRA(Method):
    """Generalised low-rank adaptation: paths fixed, found, or a supernet of them.

    Args:
        rank: Rank of the products, 1 <= rank < width; up to 4 in the paper. By layer:
            ``{'*.attn.qkv': 8, '*': 4}``, where the first pattern that fits counts; of
            a supernet one number.
        paths: What each part is, ``dict(A='vector', C='none')``; what is not named is
            as large as it can be. A scales weights and B adds to them, each by
            ``'lora'`` (a product), ``'vector'`` (a number for each row), ``'constant'``
            or ``'none'``; C adds to the input, by ``'lora'``, ``'vector'`` or
            ``'none'``; D scales the bias and E adds to it, by ``'vector'``,
            ``'constant'`` or ``'none'``. Where a base has no bias there is no D.
        targets: Projections that are adapted. In a model that no file describes they
            are every Linear and convolution.
        space: What the parts may be in a supernet, ``dict(A=['lora', 'none'])``; a part
            that is not named may be all it can, so ``dict()`` is the published space.
            None: no supernet.
        found: File that the search wrote (``found.json``), or the paths in it by site;
            they take the place of ``paths``, and a site of which nothing is left has no
            delta.
    """

    leaf_kinds = ('layer.linear', 'layer.conv')
    sized = ('rank',)
    family = 'reparameterisation'
    substitutes = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v')}
    targets_any = True
    phases = ('mmpetl.GLoRASupernetLoop', 'mmpetl.GLoRASearchLoop')

    def __init__(
        self,
        rank: int = 4,
        paths: Mapping[str, str] | None = None,
        targets: Sequence[str] = LINEAR,
        space: Mapping[str, Sequence[str]] | None = None,
        found: str | Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        check_range(self, 'rank', rank, 1)
        self.rank = rank
        self.space = None if space is None else _space_of(space)
        if space is None:
            self.phases = ()
        elif paths is not None or found is not None or isinstance(rank, Mapping):
            raise PETLError(
                'GLoRA takes a space (supernet), whose rank is one number, without '
                'paths and without found'
            )
        check_paths(dict(paths or {}))
        largest = {name: known[0] for name, known in (self.space or PATHS).items()}
        self._fixed = largest | dict(paths or {})
        if set(self._fixed.values()) == {'none'}:
            raise PETLError('GLoRA needs a path that is not none')
        self.paths = self._fixed if space is None else None
        self.targets = check_kinds(self, targets, PROJECTIONS)
        self.found = found if found is None or isinstance(found, str) else _read(found)

    @classmethod
    def after_phases(cls, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        # The paths themselves, so that config and delta of the run can be moved.
        found = read_found(str(folder / 'found.json'))
        return {k: v for k, v in args.items() if k != 'space'} | {'found': found}

    def supernet(self, place: Place) -> GLoRASupernet | None:
        return None if self.space is None else GLoRASupernet(place)

    def choose(self, sites: list[Site]) -> list[Site]:
        return self._chosen(super().choose(sites))

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        return self._chosen(super().choose_leaves(sites))

    def _chosen(self, sites: list[Site]) -> list[Site]:
        """Those of the wanted sites where a path is left."""
        if self.found is None:
            return sites
        if isinstance(self.found, str):
            # From here on the method holds the paths, so that what is saved with it
            # does not depend on a file.
            self.found = read_found(self.found)
        lacking = self.found.keys() - {str(site) for site in sites}
        if lacking:
            raise PETLError(
                f'GLoRA found paths at {len(self.found)} projections, and this '
                f'backbone lacks {sorted(lacking)[0]}; was it found on another one?'
            )
        return [s for s in sites if set(self._paths_at(s).values()) != {'none'}]

    def _paths_at(self, site: Site) -> Mapping[str, str]:
        if self.found is None:
            return self._fixed
        return self.found.get(str(site), dict.fromkeys(PATHS, 'none'))

    def check(self, sites: list[Site]) -> None:
        wide = [site for site in sites if 'lora' in self._paths_at(site).values()]
        if wide:
            check_rank(self, self.rank, wide)

    def has_room(self, site: Site) -> bool:
        return 'lora' not in self._fixed.values() or is_wider(site, self.rank)

    def build(self, site: Site) -> GLoRADelta:
        return GLoRADelta(site, self.rank, self._paths_at(site))

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[..., Affine]
    ) -> None:
        for site, delta in deltas.items():
            bias = weights(site.host, site.kind, site.index).bias
            if all(part.bias is None for part in bias):
                delta.D = None  # it scales a bias, and there is none

    def __repr__(self) -> str:
        if not isinstance(self.found, Mapping):
            return super().__repr__()
        args = {k: v for k, v in self.config().items() if k not in ('type', 'found')}
        inside = ', '.join(f'{k}={v!r}' for k, v in args.items())
        return f'GLoRA({inside}, found at {len(self.found)} projections)'

    @property
    def folds(self) -> bool:
        """Not a supernet, whose paths change."""
        return self.space is None

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
        scales = Ad @ Au
        # Memory of whole weights is what costs here, so it is used again, unless this
        # is to be differentiated once more.
        out = None if torch.is_grad_enabled() else scales
        whole = torch.addcmul(frozen, frozen, scales, out=out)
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
        again = torch.is_grad_enabled()
        to_A = to_weight * frozen if again else to_weight.mul_(frozen)
        return to_x, None, to_bias, to_A @ Au.t(), Ad.t() @ to_A, *to_B


def _space_of(space: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What each part may be, the largest first."""
    if not isinstance(space, Mapping):
        raise PETLError(
            "GLoRA needs space=dict(A=['lora', 'none'], ...), dict() for all that the "
            f'parts can be, or None for fixed paths; got {space!r}'
        )
    found = {name: [*known] for name, known in PATHS.items()}
    for name, given in space.items():
        asked = [given] if isinstance(given, str) else [*given]
        for path in asked:
            check_paths({name: path})
        if not asked:
            raise PETLError(f'GLoRA needs a choice for {name} in its space, got none')
        found[name] = [path for path in PATHS[name] if path in asked]
    return found


def checked_paths(given: Any, place: str) -> dict[str, dict[str, str]]:
    """Paths by site, each with all parts in their order.

    Raises:
        PETLError: They are none; ``place`` says where they came from.
    """
    found = checked(given, dict[str, dict[str, str]], f'{place}: paths')
    for site, paths in found.items():
        check_paths(paths)
        if paths.keys() != PATHS.keys():
            raise PETLError(f'{place}: {site} needs paths {", ".join(PATHS)}')
    return {site: {n: paths[n] for n in PATHS} for site, paths in found.items()}


def _read(found: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    paths = checked_paths(msgspec.to_builtins(found), 'found of GLoRA')
    if all(set(part.values()) == {'none'} for part in paths.values()):
        raise PETLError('GLoRA has found no path that is not none; search anew')
    return paths


def read_found(path: str) -> dict[str, dict[str, str]]:
    """The paths that a search has written, by site.

    Raises:
        PETLError: There is no such file, or it is none of a search.
    """
    file = Path(path)
    if not file.is_file():
        raise PETLError(
            f'there are no found paths {path}; run the search first '
            '(docs/methods/glora.md), or give paths'
        )
    return _read(read_json(file, _Found, 'found paths').paths)


class _Found(msgspec.Struct):
    """What is read of a search; a file may say more."""

    paths: dict[str, dict[str, str]]
