"""SPT: modules where a task is most sensitive, single weights elsewhere.

Paper: He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023,
https://arxiv.org/abs/2303.08566, section 3 and algorithm 1.
Differs from the authors' code: one cut through all sensitivities that meets the budget
best, found by bisection, in place of a sweep in steps of 20,000; norms are counted only
where they train, which is as a whole (there their single entries are counted and do not
train); modules start at zero (there an initialiser of the whole model draws both of
their matrices from a truncated normal of 0.02); the adapter at the output projection
stands behind it with dropout, as the other five do (there it is parallel to it,
without); queries, keys and values draw a dropout mask each.

Its pass over data is the loop of :mod:`mmpetl.engine.loops.spt`.
"""

from __future__ import annotations

import base64
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from msgspec import to_builtins
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Place,
    Role,
    Site,
    check_range,
    check_rank,
    drop_path,
    gradient_at,
    in_rows,
    is_wider,
    kaiming_uniform_,
    one_epoch,
    only_trains,
    parameters_behind,
    task_loss,
)
from mmpetl.core.boundary import checked, read_json
from mmpetl.core.dropout import Dropout
from mmpetl.core.lean import add_product, product
from mmpetl.registry import METHODS

STRUCTURES = ('lora', 'adapter')
INFINITE = 0x7F800000
"""The bits of infinity; those of finite numbers in float32 are ordered as they are."""


class Single(nn.Module):
    """``x D^T + d`` with (D | d) zero but for ``values`` at ``index``.

    values: (K,), zero at the start; index: (K,), places in (out_dims, in_dims + 1).
    """

    index: Tensor

    def __init__(self, in_dims: int, out_dims: int, index: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(len(index)))
        self.register_buffer('index', index.to(torch.int32))
        self.in_dims, self.out_dims = in_dims, out_dims

    def dense(self) -> tuple[Tensor, Tensor]:
        """D and d."""
        flat = self.values.new_zeros(self.out_dims * (self.in_dims + 1))
        whole = flat.scatter(0, self.index.long(), self.values)
        whole = whole.view(self.out_dims, -1)
        return whole[:, :-1], whole[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.dense())


class LowRank(nn.Module):
    """``z + keep(drop(x) A^T B^T)``; keep is stochastic depth."""

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        rank: int,
        drop_rate: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dims))
        self.B = nn.Parameter(torch.zeros(out_dims, rank))
        self.drop = Dropout(drop_rate)
        self.drop_path = drop_path
        kaiming_uniform_(self.A)

    def forward(self, z: Tensor, x: Tensor, ctx: Context) -> Tensor:
        h = product(x, self.A, ctx, self.drop)
        if self.training and self.drop_path:
            h = drop_path(h, self.drop_path)  # the narrow side of what is dropped
        return add_product(z, h, self.B)


class Behind(nn.Module):
    """``z + keep(up(gelu(down(drop(z)))))``; keep is stochastic depth."""

    def __init__(
        self, dims: int, rank: int, drop_rate: float, drop_path: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dims, rank)
        self.up = nn.Linear(rank, dims)
        self.drop = Dropout(drop_rate)
        self.drop_path = drop_path
        kaiming_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, z: Tensor, x: Tensor, ctx: Context) -> Tensor:
        update = self.up(F.gelu(self.down(self.drop(z))))
        if self.training and self.drop_path:
            update = drop_path(update, self.drop_path)
        return z + update


class SPTDelta(Delta):
    """``z = y + (x D^T + d) + bias``, then the module, each where the site has it.

    x: (B, N, in_dims), y: (B, N, out_dims); bias: (out_dims,), zero at the start.
    """

    def __init__(
        self, module: nn.Module | None, single: Single | None, bias: int, found: bool
    ) -> None:
        super().__init__()
        self.module, self.single = module, single
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None
        self.found = found

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        silent = self.found or torch.compiler.is_compiling()  # as no graph can warn
        if self.training and not silent:
            self.found = True  # once
            warnings.warn(
                'SPT trains a module at every projection: no pass has found out where '
                'the task is sensitive. Run mmpetl.SPTLoop, and give SPT what it found',
                stacklevel=2,
            )
        out = y
        if self.single is not None:
            out = out + self.single(x)
        if self.bias is not None:
            out = out + self.bias
        return out if self.module is None else self.module(out, x, ctx)


class Found(msgspec.Struct):
    """Where a pass has put what.

    Attributes:
        structure: Of the modules.
        rank: Of the modules.
        modules: Sites with one.
        single: Sites of whose weight and bias single entries train.
        places: Which these are, as :func:`packed` writes them, one for each of these
            sites.
        biases: Sites whose bias trains as a whole.
        vectors: Names of norms and layer scales in the base that train.
        params: How many parameters that makes, the class token included.
    """

    structure: str
    rank: Annotated[int, msgspec.Meta(ge=1)]
    modules: list[str]
    single: list[str]
    places: list[str]
    biases: list[str]
    vectors: list[str]
    params: int = 0

    @property
    def sites(self) -> set[str]:
        """Sites with anything."""
        return {*self.modules, *self.single, *self.biases}


@dataclass
class Sensitivities:
    """Squared gradients of the task's loss, summed over batches.

    Attributes:
        weights: Of projections, (out_dims, in_dims).
        biases: Of projections that have one, (out_dims,).
        vectors: Of norms and layer scales, by name.
        tokens: Parameters of the class token and its like, which always train.
    """

    weights: dict[Site, Tensor]
    biases: dict[Site, Tensor]
    vectors: dict[str, Tensor]
    tokens: int = 0


@METHODS.register_module()
class SPT(Method):
    """Sensitivity-aware tuning, SPT-LoRA or SPT-Adapter.

    Args:
        structure: ``'lora'``: modules are low-rank sums beside a projection;
            ``'adapter'``: bottlenecks behind it.
        rank: Of the modules, 8 in the paper.
        drop_rate: Dropout on what enters a module.
        drop_path: Stochastic depth of what a module adds; in windowed attention it is
            drawn for each window.
        alpha: A projection gets a module where at least 1 / alpha as many of its
            weights as the module has parameters are among the most sensitive.
        beta: A vector trains as a whole where 1 / beta of it is among them.
        found: File that the pass wrote (``spt.json``), or what is in it. None: a
            module at every projection, as the pass needs it.
    """

    leaf_kinds = ('layer.linear',)
    targets = ('attn.q', 'attn.k', 'attn.v', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
    targets_any = True
    family = 'reparameterisation'
    phases = ('mmpetl.SPTLoop',)

    def __init__(
        self,
        structure: Literal['lora', 'adapter'] = 'lora',
        rank: int = 8,
        drop_rate: float = 0.1,
        drop_path: float = 0.1,
        alpha: float = 10.0,
        beta: float = 5.0,
        found: str | Mapping[str, Any] | None = None,
    ) -> None:
        if structure not in STRUCTURES:
            raise PETLError(
                f'SPT needs structure {" or ".join(STRUCTURES)}, got {structure!r}'
            )
        check_range(self, 'rank', rank, 1)
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        check_range(self, 'drop_path', drop_path, 0, 1)
        check_range(self, 'alpha', alpha, 1)
        check_range(self, 'beta', beta, 1)
        self.structure = structure
        self.rank = rank
        self.drop_rate = drop_rate
        self.drop_path = drop_path
        self.alpha = alpha
        self.beta = beta
        self.found = found
        self._found: Found | None = None
        if found is not None:
            self.phases = ()
        if isinstance(found, Mapping):
            self._take(checked(to_builtins(found), Found, 'found of SPT'))

    @property
    def folds(self) -> bool:
        """Not with adapters, which are no affine maps."""
        return self.structure == 'lora'

    @classmethod
    def after_phases(cls, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        # What was found itself, so that config and delta of the run can be moved.
        return {**args, 'found': to_builtins(read_found(str(folder / 'spt.json')))}

    def _take(self, found: Found) -> None:
        if (found.structure, found.rank) != (self.structure, self.rank):
            raise PETLError(
                f'what SPT found is for structure {found.structure!r} and rank '
                f'{found.rank}, this is {self.structure!r} and {self.rank}; give it '
                'the same, or find anew'
            )
        if len(found.single) != len(found.places):
            raise PETLError(
                f'what SPT found is damaged: places at {len(found.places)} of '
                f'{len(found.single)} sites'
            )
        # From here on it holds what was found, so that what is saved with it does not
        # depend on a file.
        self._found, self.found = found, to_builtins(found)

    def choose(self, sites: list[Site]) -> list[Site]:
        return self._chosen(super().choose(sites))

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        return self._chosen(super().choose_leaves(sites))

    def _chosen(self, sites: list[Site]) -> list[Site]:
        """Those of the wanted sites where something trains."""
        if self.found is not None and self._found is None:
            self._take(read_found(str(self.found)))
        if self._found is None:
            return sites
        lacking = self._found.sites - {str(site) for site in sites}
        if lacking:
            raise PETLError(
                f'SPT found {len(self._found.sites)} projections, and this backbone '
                f'lacks {sorted(lacking)[0]}; was it found on another one?'
            )
        return [site for site in sites if str(site) in self._found.sites]

    def check(self, sites: list[Site]) -> None:
        modules = [site for site in sites if self._has_module(site)]
        if modules:
            check_rank(self, self.rank, modules)

    def has_room(self, site: Site) -> bool:
        return is_wider(site, self.rank)

    def _has_module(self, site: Site) -> bool:
        return self._found is None or str(site) in self._found.modules

    def build(self, site: Site) -> SPTDelta:
        name, found = str(site), self._found
        module, single, bias = None, None, 0
        if self._has_module(site):
            module = self._module(site)
        if found is not None:
            bias = site.out_dims if name in found.biases else 0
            if name in found.single:
                index = self._index(name, site.out_dims * (site.in_dims + 1))
                single = Single(site.in_dims, site.out_dims, index)
        return SPTDelta(module, single, bias, found is not None)

    def _index(self, name: str, size: int) -> Tensor:
        """The places of single entries at a site, below ``size``."""
        found = self._found
        text = dict(zip(found.single, found.places, strict=True))[name]
        return torch.from_numpy(unpacked(text, name, size))

    def __repr__(self) -> str:
        if self._found is None:
            return super().__repr__()
        args = {k: v for k, v in self.config().items() if k not in ('type', 'found')}
        inside = ', '.join(f'{k}={v!r}' for k, v in args.items())
        return f'SPT({inside}, found={self._found.params:,} parameters)'

    def _module(self, site: Site) -> nn.Module:
        args = site.out_dims, self.rank, self.drop_rate, self.drop_path
        if self.structure == 'adapter':
            return Behind(*args)
        return LowRank(site.in_dims, *args)

    def size(self, site: Site) -> int:
        """Parameters of a module."""
        if self.structure == 'adapter':
            return 2 * self.rank * site.out_dims + self.rank + site.out_dims
        return self.rank * (site.in_dims + site.out_dims)

    def selects(self, role: Role) -> bool:
        found = self._found
        return found is not None and (
            role.kind == 'token' or role.name in found.vectors
        )

    def select(self, roles: list[Role]) -> set[str]:
        found = self._found
        lacking = set(found.vectors if found else ()) - {role.name for role in roles}
        if lacking:
            # Whoever freezes some, or narrows the method, means it.
            warnings.warn(
                f'SPT found {len(found.vectors)} norms and scales, of which '
                f'{len(lacking)} are not there or do not train, {min(lacking)} for one',
                stacklevel=2,
            )
        return super().select(roles)

    def fold(self, site: Site, delta: SPTDelta, affine: Affine) -> None:
        if delta.module is not None:
            affine.add_(delta.module.B.double() @ delta.module.A.double())
        if delta.single is not None:
            weight, bias = delta.single.dense()
            affine.add_(weight)
            affine.shift_(bias)
        if delta.bias is not None:
            affine.shift_(delta.bias)

    def sensitivities(
        self, model: nn.Module, batches: Iterable[Any], most: int = 16
    ) -> Sensitivities:
        """Squared gradients of the task's loss, summed over batches; nothing moves.

        Dropout and stochastic depth act, also in the frozen trunk.

        Args:
            model: A model that holds this method, as it is at the start.
            batches: The training data.
            most: How many batches are looked at.

        Raises:
            PETLError: There are no data.
        """
        place = Place(model, self)
        with in_rows(place.module):
            return self._sensitivities(model, place, batches, most)

    def _sensitivities(
        self, model: nn.Module, place: Place, batches: Iterable[Any], most: int
    ) -> Sensitivities:
        module, site_map = place.module, place.record.site_map
        affines = {site: site_map.affine(module, site) for site in place.sites}
        weights = {site: affine.weights for site, affine in affines.items()}
        biases = {
            site: tuple(part.bias for part in affine.bias)
            for site, affine in affines.items()
            if all(part.bias is not None for part in affine.bias)
        }
        roles = site_map.roles(module)
        vectors = {
            role.name: (module.get_parameter(role.name),)
            for role in roles
            if role.kind == 'final_norm'
            or (role.place == 'block' and (role.is_norm or role.kind == 'scale'))
        }
        groups = (weights, biases, vectors)
        views = [v for group in groups for parts in group.values() for v in parts]
        behind = parameters_behind(module, views)
        params = list(dict.fromkeys(behind.values()))
        sums = {view: torch.zeros_like(view, dtype=torch.float32) for view in views}
        seen = 0
        with only_trains(model, params, train_mode=True):
            for (batch,) in one_epoch(batches, shuffle=True):
                if seen == most:
                    break
                seen += 1
                task_loss(model, batch).backward()
                for view, total in sums.items():
                    total += gradient_at(view, behind[view]).float() ** 2
                for param in params:
                    param.grad = None
        if not seen:
            raise PETLError('SPT finds out by data what is sensitive; there are none')
        found = [
            {key: torch.cat([sums[v] for v in parts]) for key, parts in group.items()}
            for group in groups
        ]
        tokens = sum(
            module.get_parameter(r.name).numel() for r in roles if r.kind == 'token'
        )
        return Sensitivities(*found, tokens)

    def allocate(self, given: Sensitivities, budget: int) -> Found:
        """What trains, nearest to a budget of parameters.

        All entries above one threshold count; see ``alpha`` and ``beta``.

        Raises:
            PETLError: Nothing is sensitive.
        """
        low, high = 0, INFINITE
        while low < high:
            middle = (low + high) // 2
            if self._at(given, middle).params <= budget:
                high = middle
            else:
                low = middle + 1
        found = self._at(given, high)
        if high:
            above = self._at(given, high - 1)
            if above.params - budget < budget - found.params:
                found, high = above, high - 1
        if not found.sites:
            raise PETLError(
                f'SPT finds nothing to train within {budget} parameters; give it more, '
                'or data whose loss has a gradient'
            )
        threshold = _number(high)
        for site, weight in given.weights.items():
            name = str(site)
            if name in found.single:
                both = torch.zeros(site.out_dims, site.in_dims + 1, dtype=torch.bool)
                if name not in found.modules:
                    both[:, :-1] = weight > threshold
                if site in given.biases and name not in found.biases:
                    both[:, -1] = given.biases[site] > threshold
                index = both.flatten().nonzero()[:, 0].numpy()
                found.places.append(packed(index.astype(np.int32)))
        return found

    def _at(self, given: Sensitivities, bits: int) -> Found:
        """What trains where the entries above a threshold count."""
        threshold = _number(bits)
        found = Found(self.structure, self.rank, [], [], [], [], [], given.tokens)
        for site, weight in given.weights.items():
            name, count = str(site), int((weight > threshold).sum())
            size, single = self.size(site), 0
            if count and count >= size / self.alpha and self.has_room(site):
                found.modules.append(name)
                found.params += size
            else:
                single = count
            bias = given.biases.get(site)
            count = 0 if bias is None else int((bias > threshold).sum())
            if count and count >= len(bias) / self.beta:
                found.biases.append(name)
                found.params += len(bias)
            else:
                single += count
            if single:
                found.single.append(name)
                found.params += single
        for name, vector in given.vectors.items():
            count = int((vector > threshold).sum())
            if count and count >= len(vector) / self.beta:
                found.vectors.append(name)
                found.params += len(vector)
        return found


def _number(bits: int) -> float:
    """The number in float32 of these bits."""
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()


def packed(index: np.ndarray) -> str:
    """Growing numbers in int32 as text: their differences, compressed."""
    steps = np.diff(index, prepend=np.int32(0)).astype('<i4')
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpacked(text: str, name: str, size: int) -> np.ndarray:
    """Undo :func:`packed`.

    Args:
        text: As it was written.
        name: The site, for messages.
        size: Entries that there are.

    Raises:
        PETLError: It is no such text, or not of growing numbers below ``size``.
    """
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(
            base64.b64decode(text, validate=True), 4 * size + 1
        )
        steps = np.frombuffer(content, '<i4').astype(np.int64)
    except (ValueError, zlib.error) as error:
        raise PETLError(f'what SPT found at {name} is damaged: {error}') from None
    index = steps.cumsum()
    grows = len(steps) and steps[0] >= 0 and (steps[1:] > 0).all()
    if not grows or index[-1] >= size or not inflater.eof or inflater.unused_data:
        raise PETLError(
            f'what SPT found at {name} is damaged: its places are no growing numbers '
            f'below {size}'
        )
    return index.astype(np.int32)


def read_found(path: str) -> Found:
    """What a pass has written.

    Raises:
        PETLError: The file is missing, or it is none of SPT's.
    """
    file = Path(path)
    if not file.is_file():
        raise PETLError(
            f'there is no {path}; run mmpetl.SPTLoop first (docs/methods/spt.md)'
        )
    return read_json(file, Found, 'record of what SPT found')
