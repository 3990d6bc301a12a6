"""NOAH: prompts, LoRA and adapters whose widths a search picks per block.

Paper: Zhang, Zhou, Liu, "Neural Prompt Search", 2022,
https://arxiv.org/abs/2206.04673.
Differs from the authors' code: the prompts of the model, which block 0 replaces at
once, are left out; the up projections start at zero (there an initialiser of the host
overwrites them, ``init='released'``); the adapter stands in front of stochastic depth,
as the paper's formula has it (the code puts it behind); prompts that meet a block
without prompts and then one with them are replaced (the code lets both stay; no subnet
of its space does that).

Its first two phases are loops of :mod:`mmpetl.engine.loops.noah`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Affine,
    Context,
    Delta,
    Method,
    PETLError,
    Prompts,
    Site,
    check_range,
    join_tokens,
    kaiming_uniform_,
)
from mmpetl.core.boundary import checked, read_json
from mmpetl.core.dropout import Dropout
from mmpetl.core.injection import Place
from mmpetl.core.lean import add_product, product
from mmpetl.core.supernet import Evolution
from mmpetl.registry import METHODS

WIDTHS: dict[str, str] = {
    'num_tokens': 'tokens',
    'rank': 'attn.qkv',
    'hidden_dims': 'ffn',
}
"""The three widths of a block and the site kind that each belongs to."""


@dataclass(frozen=True)
class Subnet:
    """Widths per block; 0 means that the module is absent there."""

    num_tokens: tuple[int, ...]
    rank: tuple[int, ...]
    hidden_dims: tuple[int, ...]

    @classmethod
    def of(cls, widths: Mapping[str, Sequence[int]]) -> Subnet:
        """From a mapping that holds the three lists, and perhaps more."""
        return cls(**{name: tuple(widths[name]) for name in WIDTHS})

    @property
    def lists(self) -> list[tuple[int, ...]]:
        """The three lists."""
        return [getattr(self, name) for name in WIDTHS]

    def as_dict(self) -> dict[str, list[int]]:
        """The three lists, by name."""
        return {name: list(widths) for name, widths in asdict(self).items()}


@dataclass(frozen=True)
class SearchSpace:
    """Each module acts in the first so many blocks, with a width of its own in each.

    Attributes:
        widths: What the width of a module in a block is chosen from.
        depths: What the number of blocks that hold a module is chosen from.
        num_blocks: Blocks of the backbone; 0 while it is not known.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    num_blocks: int = 0

    @classmethod
    def of(cls, space: Mapping[str, Sequence[int]], num_blocks: int = 0) -> SearchSpace:
        """From ``dict(widths=[1, 5, 10], depths=[3, 6, 9, 12])``.

        Raises:
            PETLError: Another key, or not whole numbers of at least 1.
        """
        if not isinstance(space, Mapping) or set(space) != {'widths', 'depths'}:
            raise PETLError(
                'NOAH needs space=dict(widths=[...], depths=[...]), or None for fixed '
                f'widths; got {space!r}'
            )
        for name, values in space.items():
            whole = isinstance(values, Sequence) and len(values) > 0
            if not whole or not all(_is_count(v) and v >= 1 for v in values):
                raise PETLError(
                    f'NOAH needs whole numbers of at least 1 as space.{name}, '
                    f'got {values!r}'
                )
        widths, depths = (tuple(sorted(set(space[n]))) for n in ('widths', 'depths'))
        return cls(widths, depths, num_blocks)

    def as_dict(self) -> dict[str, list[int]]:
        """What :meth:`of` takes."""
        return {'widths': list(self.widths), 'depths': list(self.depths)}

    def facts(self) -> dict[str, Any]:
        """The space, and how many blocks there are."""
        return {'space': self.as_dict(), 'blocks': self.num_blocks}

    def read(self, given: Mapping[str, Any], place: str) -> Subnet:
        """A subnet from a mapping that holds the three lists, and perhaps more."""
        lists = {name: given.get(name) for name in WIDTHS}
        return Subnet.of(checked(lists, _Widths, place).as_mapping())

    def draw(self, rng: random.Random) -> Subnet:
        """A subnet at random: one depth per module, one width per block and module."""
        lists = []
        for _ in WIDTHS:
            depth = rng.choice(self.depths)
            widths = [rng.choice(self.widths) for _ in range(depth)]
            lists.append(self._filled(widths))
        return Subnet(*lists)

    def _filled(self, widths: Sequence[int]) -> tuple[int, ...]:
        """The widths of the first blocks, and none in those behind."""
        return (*widths, *[0] * (self.num_blocks - len(widths)))

    def smallest(self) -> Subnet:
        """The subnet with the fewest parameters."""
        return self._even(min(self.widths), min(self.depths))

    def largest(self) -> Subnet:
        """The subnet with the most parameters."""
        return self._even(max(self.widths), max(self.depths))

    def _even(self, width: int, depth: int) -> Subnet:
        widths = self._filled((width,) * depth)
        return Subnet(widths, widths, widths)

    def mutate(self, rng: random.Random, parent: Subnet, plan: NOAHEvolution) -> Subnet:
        """A parent with some depths, and if so set some widths, drawn anew."""
        lists = []
        for old in parent.lists:
            depth = now = sum(w > 0 for w in old)
            if rng.random() < plan.touch and rng.random() < plan.new_depth:
                depth = rng.choice(self.depths)
            new = [*old[: min(now, depth)]]
            if plan.mutate_width:
                new = [
                    rng.choice(self.widths) if rng.random() < plan.touch else w
                    for w in new
                ]
            new += [rng.choice(self.widths) for _ in range(depth - now)]
            lists.append(self._filled(new))
        return Subnet(*lists)

    def cross(self, rng: random.Random, one: Subnet, other: Subnet) -> Subnet:
        """Each module's list as a whole from one of the two."""
        pairs = zip(one.lists, other.lists, strict=True)
        return Subnet(*(rng.choice(lists) for lists in pairs))


@dataclass(frozen=True)
class NOAHEvolution(Evolution):
    """Settings of NOAH's search; defaults as published.

    ``touch`` is the probability that a module is mutated.

    Attributes:
        new_depth: Probability that a touched module gets a new depth.
        mutate_width: Whether, besides, each width is drawn anew with probability
            ``touch``, which is ours.
    """

    new_depth: float = 0.4
    mutate_width: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('the search', 'new_depth', self.new_depth, 0, 1)


class NOAHPrompts(Prompts):
    """``[class; drop(E[:width]); grid]``.  E: (num_tokens, C)."""

    def __init__(self, dims: int, num_tokens: int, drop_rate: float) -> None:
        # Xavier's bound for a tensor of shape (1, num_tokens, dims), as released.
        bound = (6 / (dims * (num_tokens + 1))) ** 0.5
        super().__init__(dims, num_tokens, bound, drop_rate)
        self.width = num_tokens

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        if not self.width:
            return x
        rows = self.E[: self.width].expand(x.shape[0], -1, -1)
        return join_tokens(x, self.drop(rows), ctx, self.slot)

    def size(self, width: int) -> int:
        """Parameters that act at a width."""
        return width * self.E.shape[1]


class NOAHLoRA(Delta):
    """``y + drop(x) A[:width]^T B[:, :width]^T``.  y: (B, N, out_dims)."""

    def __init__(
        self, in_dims: int, out_dims: int, rank: int, drop_rate: float, released: bool
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dims))
        self.B = nn.Parameter(torch.zeros(out_dims, rank))
        self.drop = Dropout(drop_rate)
        self.width = rank
        if released:
            nn.init.trunc_normal_(self.A, std=0.02)
            nn.init.trunc_normal_(self.B, std=0.02)
        else:
            kaiming_uniform_(self.A)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        if not self.width:
            return y
        low = product(x, self.A[: self.width], ctx, self.drop)
        return add_product(y, low, self.B[:, : self.width])

    def size(self, width: int) -> int:
        """Parameters that act at a width."""
        return width * (self.A.shape[1] + len(self.B))


class NOAHAdapter(Delta):
    """``y + drop(g(y Wd[:width]^T + bd[:width])) Wu[:, :width]^T + bu``.

    ``g(t) = t * sigmoid(1.702 t)``.  y: (B, N, C), the output of the feed-forward
    network.
    """

    def __init__(
        self, dims: int, hidden_dims: int, drop_rate: float, released: bool
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.up = nn.Linear(hidden_dims, dims)
        self.drop = Dropout(drop_rate)
        self.width = hidden_dims
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if released:
            nn.init.trunc_normal_(self.down.weight, std=0.02)
            nn.init.trunc_normal_(self.up.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(self.down.weight)
            nn.init.zeros_(self.up.weight)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        w = self.width
        if not w:
            return y
        h = F.linear(y, self.down.weight[:w], self.down.bias[:w])
        h = self.drop(h * torch.sigmoid(1.702 * h))
        return add_product(y, h, self.up.weight[:, :w], bias=self.up.bias)

    def size(self, width: int) -> int:
        """Parameters that act at a width; without hidden units there is no bias."""
        dims = len(self.up.bias)
        return width * (2 * dims + 1) + dims if width else 0


@METHODS.register_module()
class NOAH(Method):
    """Prompts, LoRA and adapters with widths per block: found, fixed, or a supernet.

    Args:
        num_tokens: Prompts in front of each block, one number for all blocks or one
            per block; 0 is none, and the prompts of the block before live on.
        rank: Rank of the LoRA on the fused qkv projection, likewise.
        hidden_dims: Width of the adapter behind the feed-forward network, likewise.
        drop_rate: Dropout on prompts, on the input of LoRA and in the adapter.
        init: ``'zero'``: up projections start at zero. ``'released'``: truncated
            normal 0.02 in every linear, as the authors' code does in effect.
        space: ``dict(widths=[1, 5, 10], depths=[3, 6, 9, 12])`` makes a supernet: the
            three widths are what it holds in every block, and a subnet of this space
            takes the first rows or columns of each. None: all of them act.
        found: File that the search wrote (``found.json``), whose widths replace those
            above when the method is injected.
    """

    family = 'prompt'
    apart = False
    phases = ('mmpetl.NOAHSupernetLoop', 'mmpetl.NOAHSearchLoop')

    def __init__(
        self,
        num_tokens: int | Sequence[int] = 5,
        rank: int | Sequence[int] = 5,
        hidden_dims: int | Sequence[int] = 5,
        drop_rate: float = 0.1,
        init: Literal['zero', 'released'] = 'zero',
        space: Mapping[str, Sequence[int]] | None = None,
        found: str | None = None,
    ) -> None:
        check_range(self, 'drop_rate', drop_rate, 0, 1)
        if init not in ('zero', 'released'):
            raise PETLError(f"NOAH needs init 'zero' or 'released', got {init!r}")
        if space is not None and found is not None:
            raise PETLError('NOAH takes a space (supernet) or a found subnet, not both')
        self.drop_rate = drop_rate
        self.init = init
        self.space = None if space is None else SearchSpace.of(space).as_dict()
        self.found = found
        if space is None:
            self.phases = ()
        self._set_widths(num_tokens, rank, hidden_dims)

    def _set_widths(
        self,
        num_tokens: int | Sequence[int],
        rank: int | Sequence[int],
        hidden_dims: int | Sequence[int],
    ) -> None:
        given = (num_tokens, rank, hidden_dims)
        for name, value in zip(WIDTHS, given, strict=True):
            many = isinstance(value, Sequence) and not isinstance(value, str)
            if not all(
                _is_count(v) for v in (value if many and len(value) else [value])
            ):
                raise PETLError(
                    f'NOAH needs {name} of whole numbers of at least 0, one for all '
                    f'blocks or a list with one per block; got {value!r}'
                )
            setattr(self, name, list(value) if many else value)
        if self.space is not None:
            self._check_space()
        used = [kind for name, kind in WIDTHS.items() if _largest(getattr(self, name))]
        if not used:
            raise PETLError('NOAH has no width above 0, so it would train nothing')
        self.targets = tuple(used)
        self.starts_as_identity = self.init == 'zero' and 'tokens' not in used

    def _check_space(self) -> None:
        most = max(self.space['widths'])
        for name in WIDTHS:
            held = getattr(self, name)
            if not isinstance(held, int) or held < most:
                raise PETLError(
                    f'the space has widths up to {most}, but the supernet holds '
                    f'{name}={held}; give it one number of at least {most}'
                )

    @classmethod
    def after_phases(cls, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        # The widths themselves, so that config and delta of the run can be moved.
        found = read_found(str(folder / 'found.json')).as_dict()
        return {k: v for k, v in args.items() if k != 'space'} | found

    def supernet(self, place: Place) -> NOAHSupernet | None:
        return None if self.space is None else NOAHSupernet(place)

    def choose(self, sites: list[Site]) -> list[Site]:
        if self.found is not None:
            subnet = read_found(self.found)
            self._set_widths(**subnet.as_dict())
            # From here on the method holds the widths, so that what is saved with it
            # does not depend on a file.
            self.found = None
        return super().choose(sites)

    def wants(self, site: Site) -> bool:
        return site.kind in self.targets and self._width(site) > 0

    def _width(self, site: Site) -> int:
        name = next(n for n, kind in WIDTHS.items() if kind == site.kind)
        widths = getattr(self, name)
        if isinstance(widths, int):
            return widths
        if len(widths) != site.num_blocks:
            raise PETLError(
                f'NOAH has {len(widths)} widths in {name}, the backbone has '
                f'{site.num_blocks} blocks; give one per block, or one number for all'
            )
        return widths[site.block]

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            if site.kind == 'attn.qkv' and self._width(site) >= site.in_dims:
                raise PETLError(
                    f'NOAH needs rank below the width of the block ({site.in_dims}), '
                    f'got {self._width(site)}'
                )
            if self.space and max(self.space['depths']) > site.num_blocks:
                raise PETLError(
                    f'the space has depths up to {max(self.space["depths"])}, but the '
                    f'backbone has {site.num_blocks} blocks'
                )

    def build(self, site: Site) -> NOAHPrompts | NOAHLoRA | NOAHAdapter:
        width, released = self._width(site), self.init == 'released'
        if site.kind == 'attn.qkv':
            return NOAHLoRA(
                site.in_dims, site.out_dims, width, self.drop_rate, released
            )
        if site.kind == 'ffn':
            return NOAHAdapter(site.out_dims, width, self.drop_rate, released)
        return NOAHPrompts(site.in_dims, width, self.drop_rate)

    @property
    def folds(self) -> bool:
        """Only where nothing but LoRA is there; prompts and adapters have no fold."""
        return self.space is None and self.targets == ('attn.qkv',)

    def fold(self, site: Site, delta: NOAHLoRA, affine: Affine) -> None:
        affine.add_(delta.B.double() @ delta.A.double())


class NOAHSupernet:
    """The deltas of ``NOAH(space=...)``, of which one subnet acts at a time.

    Args:
        place: Where they are.
    """

    def __init__(self, place: Place) -> None:
        sites = place.sites
        self.space = SearchSpace.of(place.method.space, sites[0].num_blocks)
        names = {kind: name for name, kind in WIDTHS.items()}
        self.deltas = [
            (names[site.kind], site.block, place.delta(site)) for site in sites
        ]

    def activate(self, subnet: Subnet) -> None:
        """Let the first rows and columns act that the subnet asks for."""
        for name, block, delta in self.deltas:
            delta.width = getattr(subnet, name)[block]

    def size(self, subnet: Subnet) -> int:
        """Parameters of a subnet, heads excluded."""
        return sum(
            delta.size(getattr(subnet, name)[block])
            for name, block, delta in self.deltas
        )


def read_found(path: str) -> Subnet:
    """The subnet that a search has written.

    Raises:
        PETLError: There is no such file, or it is none of a search.
    """
    file = Path(path)
    if not file.is_file():
        raise PETLError(
            f'there is no found subnet {path}; run the search first '
            '(docs/methods/noah.md), or give num_tokens, rank and hidden_dims'
        )
    try:
        return Subnet.of(read_json(file, _Widths, 'found subnet').as_mapping())
    except PETLError as error:
        raise PETLError(
            f'{path} is no result of a search: it needs the lists '
            f'{", ".join(WIDTHS)} ({error})'
        ) from None


_Width = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class _Widths(msgspec.Struct):
    """What is read of a found subnet; a file may say more."""

    num_tokens: list[_Width]
    rank: list[_Width]
    hidden_dims: list[_Width]

    def as_mapping(self) -> dict[str, list[int]]:
        return {name: getattr(self, name) for name in WIDTHS}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _largest(widths: int | list[int]) -> int:
    return widths if isinstance(widths, int) else max(widths)
