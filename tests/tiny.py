"""Tiny backbones that the generic tests run over, one entry of :data:`TINY` each."""

from __future__ import annotations

import copy
import io
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any, BinaryIO

import tiny_builds
import torch
from tiny_builds import (
    mmaction_swin3d,
    mmaction_vit,
    mmpretrain_swin,
    mmpretrain_swin_dense,
    mmpretrain_timm,
    mmpretrain_vit,
    timm_vit,
)
from tiny_methods import (
    SETTINGS,
    STILL,
    MethodCase,
    covering,
    method_cases,
    selects,
    snake,
)
from tiny_trunk import Tiny
from torch import Tensor, nn
from trunks import more_trunks

from mmpetl.core import (
    Delta,
    Injection,
    Method,
    Owner,
    PETLError,
    Role,
    check_shapes,
    collect_losses,
    count_trainable,
    find_injected,
    fold,
    inject,
    injection_of,
    owners,
)

TINY: dict[str, Tiny] = {**tiny_builds.TINY, **more_trunks()}
"""Every backbone that generic tests run over, by its id."""

HOSTS = {
    'plain': 'timm_vit',
    'windowed': 'mmpretrain_swin',
    'pyramid': 'mmseg_mit',
    'video': 'mmaction_swin3d',
}
"""The backbones that every method meets by default, by what they stand for.

What core keeps in order is held with every method on the first two of them."""


def hosts() -> list[str]:
    """The backbones of :data:`HOSTS` that there are."""
    return [stem for stem in HOSTS.values() if stem in TINY]


class Nothing(Method):
    """Plugs nothing and trains nothing: what is left is the swapped base."""

    family = 'baseline'


class Everything(Method):
    """Trains the whole base, so that gradients can be compared."""

    family = 'baseline'

    def selects(self, role: Role) -> bool:
        return True


def randomise_(model: nn.Module, std: float = 0.2) -> nn.Module:
    """Draw every parameter, so that no zero and no one hides a mistake."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(param.shape, generator=g, dtype=torch.float64) * std
            one = 1.0 if param.ndim == 1 and name.endswith('weight') else 0.0
            param.copy_(one + noise)
    return model


@cache
def bare(stem: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny backbone with random weights, in eval mode, for tests that only read it.

    One for all of them; what a test injects into or changes comes from :func:`base`.
    """
    if dtype is not torch.float32:
        return copy.deepcopy(bare(stem)).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise_(TINY[stem].build())
    if TINY[stem].forward is not None:
        model._tiny = stem  # plain text, which copies and pickles keep
    model.eval()  # gives nothing back in OpenMMLab
    return model


def base(stem: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh copy of a tiny backbone with random weights, in eval mode."""
    content, tensors = _packed(stem, dtype)
    return _Unpacker(content, tensors).load()


class _Packer(pickle.Pickler):
    """Writes a model but for its tensors, which it keeps in ``tensors``."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _Unpacker(pickle.Unpickler):
    """Reads it with copies of its tensors, each once."""

    def __init__(self, content: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self._tensors = tensors
        self._memo: dict[int, Any] = {}

    def persistent_load(self, number: int) -> Tensor:
        return copy.deepcopy(self._tensors[number], self._memo)


@cache
def _packed(stem: str, dtype: torch.dtype) -> tuple[bytes, list[Tensor]]:
    """A tiny backbone, from which a copy is read in a third of what copying takes."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(bare(stem, dtype))
    return file.getvalue(), packer.tensors


def clone(model: nn.Module) -> nn.Module:
    """A deep copy in half the time: most of it goes into empty tables of hooks."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, OrderedDict | set) and not value:
                memo[id(value)] = type(value)()
    if find_injected(model):
        memo.update((id(site), site) for site in record(model).sites)
    return copy.deepcopy(model, memo)


def images(
    stem: str, batch: int = 2, odd: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Input for a tiny backbone."""
    shape = TINY[stem].odd if odd else TINY[stem].shape
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=g, dtype=torch.float64).to(dtype)


def call(model: nn.Module, x: Tensor) -> Any:
    """What the backbone gives, as it gives it."""
    stem = getattr(model, '_tiny', None)
    return model(x) if stem is None else TINY[stem].forward(model, x)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the backbone gives, as a list."""
    return list(tensors(call(model, x)))


def tensors(y: Any) -> Iterator[Tensor]:
    """The tensors in what a backbone gives, in their order."""
    if isinstance(y, Tensor):
        yield y
    elif isinstance(y, Mapping):  # ModelOutput of transformers is one
        yield from tensors(list(y.values()))
    elif isinstance(y, list | tuple):
        for part in y:
            yield from tensors(part)
    elif y is not None:
        raise TypeError(f'{type(y).__name__} holds no tensors that tests can find')


@cache
def plain_outputs(stem: str) -> list[Tensor]:
    """What the swapped base gives for :func:`images`, without any method."""
    with torch.no_grad():
        return outputs(inject(base(stem), Nothing()), images(stem))


def loss_of(ys: list[Tensor]) -> Tensor:
    """A scalar to which every output element adds with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for y in ys:
        g = torch.Generator().manual_seed(2)
        w = torch.randn(y.shape, generator=g, dtype=torch.float64)
        total = total + (y.double() * w).sum() / y.shape[0]
    return total


class Tuned(nn.Module):
    """A backbone with a small head, as a task would have."""

    def __init__(self, backbone: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            widths = [y.shape[self.axis(y)] for y in outputs(backbone, x)]
        torch.manual_seed(3)
        self.heads = nn.ModuleList(nn.Linear(w, 3) for w in widths).to(x.dtype)

    @staticmethod
    def axis(y: Tensor) -> int:
        """Where the channels are: (B, C), (B, N, C) or (B, C, *grid)."""
        return 2 if y.ndim == 3 else 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores per output, (B, 3)."""
        return [
            head(
                y.movedim(self.axis(y), -1).flatten(1, -2).mean(1) if y.ndim > 2 else y
            )
            for head, y in zip(self.heads, outputs(self.backbone, x), strict=True)
        ]


def train(model: nn.Module, x: Tensor, steps: int = 2, lr: float = 0.02) -> None:
    """Some steps of Adam on random targets."""
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(10 + step)
        loss = sum(
            nn.functional.cross_entropy(y, torch.arange(len(y)) % 3) for y in model(x)
        )
        loss = loss + sum(collect_losses(model).values())
        loss.backward()
        optimizer.step()
    model.eval()


def shake_(model: nn.Module, std: float = 0.1, seed: int = 0) -> None:
    """Move every tensor that the method trains, in the order of the parameters."""
    g = torch.Generator().manual_seed(seed)
    owner = owners(model)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if owner[name] in (Owner.DELTA, Owner.SELECTED):
                noise = torch.randn(param.shape, generator=g, dtype=torch.float64)
                param.add_((std * noise).to(param.dtype))


@torch.no_grad()
def decide_(model: nn.Module) -> None:
    """Let every token pass DyT's gates: a rounded score sends one the other way."""
    for name, param in model.named_parameters():
        if name.endswith('.select.bias'):
            param.fill_(30)


def core(model: nn.Module) -> nn.Module:
    """The module inside of ``model`` that holds the sites."""
    return injection_of(model)[0]


def record(model: nn.Module) -> Injection:
    """What the backbone inside of ``model`` knows of its methods."""
    return injection_of(model)[1]


def trains_most(model: nn.Module) -> bool:
    """Whether no second copy of the selected base is kept (full tuning)."""
    slots = record(model).slots.values()
    return any(not slot.restores for slot in slots)


@dataclass(frozen=True)
class Pair:
    """A method on a backbone.

    Attributes:
        method: The method, with its arguments.
        stem: Id of the backbone.
        brief: Whether it stands in a test of what core keeps in order, which sees
            little of the backbone: there fewer pairs say as much.
    """

    method: MethodCase
    stem: str
    brief: bool = field(default=False, compare=False)

    @property
    def id(self) -> str:
        """``lora-mmpretrain_swin``."""
        return f'{self.method.id}-{self.stem}'

    @property
    def folds(self) -> bool:
        """Whether what the method plugs folds into the base, or nothing is plugged."""
        return _folds(self.method, self.stem)

    @property
    def slow(self) -> bool:
        """Whether the pair is left to ``-m slow``."""
        return self.method.id not in by_default(self.stem, self.brief)

    def inject(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh backbone of this pair, in eval mode."""
        return clone(self.injected(dtype))

    def injected(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The same, for tests that only read it: one for all of them."""
        return _injected(self, dtype)


def _folds(case: MethodCase, stem: str) -> bool:
    method = case.build()
    if not {*method.targets, *method.optional}:
        return True
    if TINY[stem].bare_keys and shifts_keys(case):
        return False
    return method.folds and not {kind for kind, _ in acts_at(case, stem)[0]} & {
        *TINY[stem].tied
    }


@cache
def shifts_keys(case: MethodCase) -> bool:
    """Whether folding gives keys a bias that had none: measured on a Swin."""
    stem = HOSTS['windowed']
    if not case.build().folds or not fits(case, stem):
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = base(stem)
        for keys in _key_biases(model):
            keys.zero_()
        owner = owners(inject(model, case.build()))
        for name, param in model.named_parameters():
            if owner[name] is Owner.DELTA:
                param.add_(0.1 * torch.randn_like(param))
        fold(model)
    return any(keys.any() for keys in _key_biases(model))


def _key_biases(model: nn.Module) -> list[Tensor]:
    blocks = [block for stage in model.stages for block in stage.blocks]
    return [block.attn.w_msa.qkv.bias.chunk(3)[1] for block in blocks]


# Tests of a file run pair by pair (the scope in conftest.py), so that few are enough.
@lru_cache(maxsize=8)
def _injected(pair: Pair, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(4)
    try:
        model = inject(base(pair.stem, dtype), pair.method.build())
    except PETLError as error:
        raise AssertionError(
            f'{pair.method.name} does not fit the tiny {pair.stem} ({error}); give it '
            'small arguments in SETTINGS of tests/tiny_methods.py'
        ) from error
    model.eval()
    return model


@cache
def _swapped(stem: str) -> Injection:
    """The record of a tiny backbone that is swapped, and nothing else."""
    return record(inject(base(stem), Nothing()))


@cache
def offered(stem: str) -> set[str]:
    """Kinds of sites of a tiny backbone."""
    return {site.kind for site in _swapped(stem).sites}


@cache
def fits(case: MethodCase, stem: str) -> bool:
    """Whether the backbone offers every site kind that the method needs."""
    method = case.build()
    if case.id in TINY[stem].refuses or method.lacks(offered(stem)):
        return False
    made = _swapped(stem)
    try:
        wanted = method.choose(list(made.sites))
        check_shapes(method, wanted, made.site_map, made.sites)
    except PETLError:
        return False
    return True


@cache
def _ports(case: MethodCase, kind: str, stem: str) -> frozenset[str]:
    """Ports of what a method plugs at a kind of site: ``before``, ``after``."""
    method, sites = case.build(), list(_swapped(stem).sites)
    with torch.random.fork_rng(devices=[]):
        wanted = method.choose(sites)
        method.check(wanted)
        method.share(wanted)
        delta = method.build(next(site for site in wanted if site.kind == kind))
    return frozenset(
        port
        for port in ('before', 'after')
        if getattr(type(delta), port) is not getattr(Delta, port)
    )


_FIRST: dict[tuple[str, str], str] = {}
"""Where a method was first seen at a kind of site: its ports are the same anywhere."""


def acts_at(case: MethodCase, stem: str) -> tuple[set[tuple[str, str]], int]:
    """Kinds of sites and ports that a method acts at, and the number of sites."""
    sites = case.build().choose(list(_swapped(stem).sites))
    return {
        (kind, port)
        for kind in {site.kind for site in sites}
        for port in _ports(case, kind, _FIRST.setdefault((case.id, kind), stem))
    }, len(sites)


@cache
def cover(stem: str) -> frozenset[str]:
    """Methods that together act wherever any does that meets a backbone.

    Each kind of site that it offers is met at each port, the largest gain first, and
    of equals the one with the fewest sites; then those of :func:`few`.
    """
    meets = TINY[stem].meets
    cases = {c.id: c for c in method_cases() if meets(c) and fits(c, stem)}
    acts = {id: acts_at(case, stem) for id, case in cases.items()}
    left = set().union(*(places for places, _ in acts.values()))
    chosen: set[str] = set()
    while left:
        best = max(acts, key=lambda id: (len(acts[id][0] & left), -acts[id][1]))
        chosen.add(best)
        left -= acts[best][0]
    for id in sorted(chosen, key=lambda id: (-acts[id][1], id)):
        rest = set().union(*(acts[other][0] for other in chosen - {id}))
        if acts[id][0] <= rest:
            chosen.remove(id)
    return frozenset(chosen | few(stem))


@cache
def few(stem: str) -> frozenset[str]:
    """A prompt, a method that folds and one that only selects, where they fit.

    Of the first the one with the fewest sites, of the second that with the most, so
    that the three differ in what a backbone must give for them.
    """
    cases = [case for case in method_cases() if fits(case, stem)]
    acts = {case.id: acts_at(case, stem) for case in cases}
    methods = {case.id: case.build() for case in cases}
    prompts = {id for id, m in methods.items() if m.family == 'prompt'}
    folding = {case.id for case in cases if acts[case.id][0] and _folds(case, stem)}
    selecting = {id for id, m in methods.items() if not acts[id][0] and selects(m)}
    order = sorted(acts)
    return frozenset(
        [
            *sorted(prompts, key=lambda id: (acts[id][1], order.index(id)))[:1],
            *sorted(folding, key=lambda id: (-len(acts[id][0]), order.index(id)))[:1],
            *sorted(selecting)[:1],
        ]
    )


def folding(stem: str) -> MethodCase:
    """A method that plugs into the backbone, whatever its kinds of sites, and folds."""
    cases = [case for case in method_cases() if case.id in few(stem)]
    return next(c for c in cases if acts_at(c, stem)[0] and _folds(c, stem))


@cache
def homeless() -> frozenset[str]:
    """Methods that no host offers the sites for."""
    return frozenset(
        case.id
        for case in method_cases()
        if not any(fits(case, host) for host in hosts())
    )


@cache
def plugging_nothing() -> frozenset[str]:
    """Methods that plug nothing: they train some of the base, or leave all to the head.

    :func:`cover` sees nothing of them, and a variant of a backbone is met for them too.
    """
    methods = {case.id: case.build() for case in method_cases() if ':' not in case.id}
    return frozenset(id for id, m in methods.items() if not {*m.targets, *m.optional})


@cache
def by_default(stem: str, brief: bool) -> frozenset[str]:
    """Ids of the methods that a backbone meets without ``-m slow``."""
    every = frozenset(case.id for case in method_cases())
    if stem in (hosts()[:1] if brief else hosts()):
        return every
    found = few(stem) if brief else cover(stem)
    if TINY[stem].meets is covering:
        return found
    return found | homeless() if brief else found | homeless() | plugging_nothing()


def trunks() -> list[str]:
    """The backbones with a forward pass of their own."""
    return [stem for stem, tiny in TINY.items() if tiny.meets is covering]


def attended() -> list[str]:
    """Of them those whose queries look at the cells of the grid themselves."""
    return [
        stem
        for stem in trunks()
        if 'attn.qkv' in offered(stem)
        and not any(
            getattr(part, 'pools', False) is True
            for part in inject(base(stem), Nothing()).modules()
        )
    ]


@dataclass(frozen=True)
class Costly:
    """A backbone in a test that takes long: only hosts meet it by default."""

    stem: str

    @property
    def id(self) -> str:
        return self.stem

    @property
    def slow(self) -> bool:
        """Whether the backbone is left to ``-m slow``."""
        return self.stem not in hosts()


def costly() -> list[Costly]:
    """The backbones with a forward pass of their own, hosts first."""
    return [Costly(stem) for stem in dict.fromkeys((*hosts(), *trunks()))]


def pairs() -> Iterator[Pair]:
    """Every method on every backbone that it meets and that offers what it needs."""
    for stem, tiny in TINY.items():
        for case in method_cases():
            if tiny.meets(case) and fits(case, stem):
                yield Pair(case, stem)


def folding_pairs() -> Iterator[Pair]:
    """Pairs of which the method folds into the base, or adds nothing that would."""
    return (pair for pair in pairs() if pair.folds)


def brief_pairs() -> Iterator[Pair]:
    """Every pair, for a test of what core keeps in order."""
    return (replace(pair, brief=True) for pair in pairs())


def unfolding_pairs() -> Iterator[Pair]:
    """Pairs of which the method stays beside any base."""
    pairs_ = (pair for pair in brief_pairs() if not pair.folds)
    return (p for p in pairs_ if not (TINY[p.stem].bare_keys and shifts_keys(p.method)))


def staged_pairs() -> Iterator[Pair]:
    """Pairs of which the backbone can freeze its first stages itself."""
    return (pair for pair in brief_pairs() if TINY[pair.stem].frozen_stages)


def choosy_cases() -> Iterator[MethodCase]:
    """Methods that some backbone does not offer the sites for."""
    return (c for c in method_cases() if not all(fits(c, stem) for stem in TINY))


def drifting_cases() -> Iterator[MethodCase]:
    """Methods that do not start as the base."""
    return (c for c in method_cases() if not c.build().starts_as_identity)


def grid() -> str:
    """Methods x backbones as text, for reading."""
    rows = [f'{"":24}' + ' '.join(TINY)]
    for case in method_cases():
        cells = [('yes' if fits(case, s) else '-').ljust(len(s)) for s in TINY]
        rows.append(f'{case.id:24}' + ' '.join(cells))
    return '\n'.join(rows)


__all__ = [
    'SETTINGS',
    'STILL',
    'TINY',
    'Everything',
    'MethodCase',
    'Nothing',
    'Pair',
    'Tiny',
    'Tuned',
    'bare',
    'base',
    'call',
    'clone',
    'core',
    'count_trainable',
    'cover',
    'fits',
    'folding',
    'grid',
    'hosts',
    'images',
    'loss_of',
    'method_cases',
    'mmaction_swin3d',
    'mmaction_vit',
    'mmpretrain_swin',
    'mmpretrain_swin_dense',
    'mmpretrain_timm',
    'mmpretrain_vit',
    'offered',
    'outputs',
    'pairs',
    'plain_outputs',
    'randomise_',
    'record',
    'selects',
    'shake_',
    'snake',
    'tensors',
    'timm_vit',
    'train',
    'trains_most',
]
