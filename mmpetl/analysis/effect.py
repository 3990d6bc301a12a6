"""Where a method acts, and how strongly, block by block and site by site.

An effect is ``|after - before| / |before|`` of a token's vector, mean over tokens and
images, with ``before`` what would go on without the one thing that is measured. It is
measured inside of the tuned model, everything else in place:

- a delta at a site: its output against its input of the same port;
- tokens that a delta adds (prompts, prefixes): what attention gives to the backbone's
  own queries, with these tokens among the keys and without them;
- base parameters that a method trains: the module's output with the tuned and with the
  base's values, on the same input;
- the whole block: what leaves it, against what the base's block makes of the same
  input. It holds all of the above and what has no site, such as bias tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.analysis.attention import (
    in_training,
    probing,
    scores_to_weights,
)
from mmpetl.core import (
    KINDS,
    Affine,
    Context,
    Delta,
    Injection,
    PETLError,
    Site,
    find_site_map,
    injection_of,
    watching,
    without_extra,
)

WHOLE = 'whole block'
BASE = ' (base weights)'
TRAINED_KINDS = (
    'embed.proj',
    'embed.norm',
    'norm1',
    'attn.qkv',
    'attn.proj',
    'norm2',
    'ffn.fc1',
    'ffn.fc2',
    'downsample.norm',
    'downsample.reduction',
    'out.norm',
)
"""Kinds whose base weights are an affine map, or a norm with one."""


@dataclass(frozen=True)
class Effects:
    """Relative effects.

    Attributes:
        rows: What was measured, in the order of a forward pass: kinds of sites, those
            with `` (base weights)`` behind them, and ``whole block`` last.
        columns: ``in`` for what stands before the blocks, then the blocks' indices;
            what stands between or behind blocks is at the block in front of it.
        values: (rows, columns) float64, nan where the method does nothing.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray


class _Tally:
    """Running means by row and column."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], float] = defaultdict(float)
        self.counts: dict[tuple[str, int], int] = defaultdict(int)

    def add(self, row: str, column: int, before: Tensor, after: Tensor) -> None:
        """One ratio per vector along the last axis; zero vectors (padding) are left."""
        size = before.double().norm(dim=-1)
        change = (after.double() - before.double()).norm(dim=-1)
        real = size > 0
        self.sums[row, column] += float((change[real] / size[real]).sum())
        self.counts[row, column] += int(real.sum())


def relative_effect(before: Tensor, after: Tensor) -> float:
    """Mean over all vectors of ``|after - before| / |before|``; zero vectors are left.

    Args:
        before: (..., C).
        after: The same shape.
    """
    tally = _Tally()
    tally.add('', 0, before, after)
    count = tally.counts['', 0]
    return tally.sums['', 0] / count if count else float('nan')


def _column(site: Site, last_of_stage: dict[int, int], windowed: bool) -> int:
    """0 is what stands before the blocks, i + 1 is block i."""
    if site.block is not None:
        return site.block + 1
    if site.index is None:
        return 0
    return (last_of_stage[site.index] if windowed else site.index) + 1


def _flat(x: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Vectors along the last axis; of (q, k, v) the three of a token and head."""
    return torch.cat(x, dim=-1) if isinstance(x, tuple) else x


@contextmanager
def _watched(
    delta: Delta, port: str, tell: Callable[[object, object], None]
) -> Iterator[None]:
    """Call ``tell(before, after)`` whenever a port of a delta runs."""
    run = getattr(delta, port)

    def before(x, ctx):
        y = run(x, ctx)
        tell(x, y)
        return y

    def after(x, y, ctx):
        z = run(x, y, ctx)
        tell(y, z)
        return z

    # A plain attribute of the instance stands before the class's method.
    delta.__dict__[port] = before if port == 'before' else after
    try:
        yield
    finally:
        del delta.__dict__[port]


def _deltas(module: nn.Module, state: Injection) -> Iterator[tuple[Site, Delta]]:
    for name, slot in state.slots.items():
        if slot.enabled:
            for site in slot.sites:
                yield site, module.get_submodule(site.path)[name]


def _same_shape(a: object, b: object) -> bool:
    if isinstance(a, tuple):
        return all(s.shape == t.shape for s, t in zip(a, b, strict=True))
    return a.shape == b.shape


@torch.no_grad()
def method_effects(
    tuned: nn.Module, batches: Iterable[Tensor], base: nn.Module | None = None
) -> Effects:
    """Where the methods of a backbone act; see the head of this file.

    Args:
        tuned: An injected backbone, or a wrapper around one, in eval mode.
        batches: Inputs as the backbone takes them.
        base: The same backbone with the base's weights and no method
            (:func:`mmpetl.analysis.bare_copy`). Without it neither trained base
            parameters nor whole blocks are measured.

    Raises:
        PETLError: The method adds nothing and trains nothing of the base.
    """
    module, state = injection_of(tuned)
    deltas = list(_deltas(module, state))
    selected = state.selected() - state.head
    if not deltas and not (selected and base is not None):
        names = ' + '.join(type(s.method).__name__ for s in state.slots.values())
        why = (
            'only trains base parameters, whose effect shows against the base; give it'
            if selected
            else 'adds nothing to the backbone and trains none of its parameters'
        )
        raise PETLError(f'{names} acts in no block: it {why}')
    if in_training(module):
        raise PETLError('effects are measured in eval mode; call model.eval() first')
    blocks = [site for site in state.sites if site.kind == 'block']
    last = {site.stage: site.block for site in blocks}
    windowed = any(site.window is not None for site in blocks)
    tally = _Tally()

    def column(site: Site) -> int:
        return _column(site, last, windowed)

    with ExitStack() as undo:
        _watch_deltas(undo, deltas, tally, column)
        cores = [site for site in state.sites if site.kind == 'attn.core']
        undo.enter_context(probing(module, cores, _token_effects(tally)))
        if base is not None:
            bare = injection_of(base)[0]
            _watch_base(undo, module, bare, state, tally, column)
            _watch_blocks(undo, module, bare, state, tally)
        count = 0
        for x in batches:
            tuned(x)
            count += 1
    if not count:
        raise PETLError('there are no points to measure effects on')
    if not tally.counts:
        names = ' + '.join(repr(s.method) for s in state.slots.values())
        raise PETLError(
            f'{names} changes no feature on its way: it reads them and hands another '
            'one to the head'
        )
    return _table(tally, len(blocks))


def _watch_deltas(
    undo: ExitStack,
    deltas: list[tuple[Site, Delta]],
    tally: _Tally,
    column: Callable[[Site], int],
) -> None:
    """Watch both ports of every delta."""
    for site, delta in deltas:
        if site.kind == 'tokens':
            continue  # prompts come and go; what attention makes of them counts
        for port in ('before', 'after'):
            if getattr(type(delta), port) is getattr(Delta, port):
                continue

            def tell(before, after, site=site) -> None:
                # A port that listens returns what it got; one that adds keys is
                # measured by what attention makes of them.
                if after is not before and _same_shape(before, after):
                    tally.add(site.kind, column(site), _flat(before), _flat(after))

            undo.enter_context(_watched(delta, port, tell))


def _token_effects(tally: _Tally) -> Callable:
    """Attention of own queries with and without the tokens that methods add."""

    def see(site, host, images, qkv, o, ctx) -> None:
        q, k, v = qkv
        added, extra = k.shape[-2] - q.shape[-2], ctx.num_extra
        if not added and not extra:
            return
        p = ctx.num_prefix
        own = p - extra
        keep_q = [*range(own), *range(p, q.shape[-2])]
        weights = scores_to_weights(q, k, *host.score_terms(q, ctx))[:, :, keep_q]
        full = weights @ v
        drops = {'attn.core': range(added)}
        drops['tokens'] = range(added + own, added + p)
        for row, gone in drops.items():
            if not len(gone):
                continue
            rest = weights.clone()
            rest[..., list(gone)] = 0
            rest = rest / rest.sum(-1, keepdim=True).clamp_min(1e-30)
            tally.add(f'{row} (added)', site.block + 1, rest @ v, full)

    return see


def _call(affine: Affine, x: Tensor) -> Tensor:
    """Run the map behind a site."""
    if affine.eps is not None:
        return F.layer_norm(
            x, x.shape[-1:], affine.weight, affine.full_bias(), affine.eps
        )
    return F.linear(x, affine.weight, affine.full_bias())


def _same(a: Affine, b: Affine) -> bool:
    return torch.equal(a.weight, b.weight) and torch.equal(a.full_bias(), b.full_bias())


def _watch_base(
    undo: ExitStack,
    module: nn.Module,
    bare: nn.Module,
    state: Injection,
    tally: _Tally,
    column: Callable[[Site], int],
) -> None:
    """Compare modules whose weights a method has trained with those of the base."""
    site_map = find_site_map(module)
    params = dict(module.named_parameters())
    heads = {params[name].data_ptr() for name in state.head if name in params}
    for site in state.sites:
        if site.kind not in TRAINED_KINDS:
            continue
        ours = site_map.affine(module, site)
        theirs = site_map.affine(bare, site)
        if ours.weight.data_ptr() in heads or _same(ours, theirs):
            continue

        def tell(x, y, ctx, site=site, theirs=theirs) -> None:
            tally.add(site.kind + BASE, column(site), _call(theirs, x), y)

        # Before any delta: y is what the module itself made of x.
        undo.enter_context(watching(module, {site: tell}, first=True))


def _watch_blocks(
    undo: ExitStack,
    module: nn.Module,
    bare: nn.Module,
    state: Injection,
    tally: _Tally,
) -> None:
    """Run the base's block on the input of the tuned one."""
    ours = state.site_map.blocks(module)
    theirs = find_site_map(bare).blocks(bare)
    for i, ((_, block), (_, plain)) in enumerate(zip(ours, theirs, strict=True)):
        entered: list[tuple[Tensor, Context]] = []

        def enter(block, args, entered=entered) -> None:
            ctx = block.context_of(args)
            entered.append((without_extra(args[0], ctx), ctx.own()))

        def leave(block, args, y, i=i, plain=plain, entered=entered) -> None:
            ctx = block.context_of(args)
            x, alone = entered.pop()
            alone.handed = ctx.handed
            y = y[0] if isinstance(y, tuple) else y
            tally.add(WHOLE, i + 1, plain.sublayers(x, alone), without_extra(y, ctx))

        for hook in (
            block.register_forward_pre_hook(enter),
            block.register_forward_hook(leave),
        ):
            undo.callback(hook.remove)


def _table(tally: _Tally, blocks: int) -> Effects:
    order = {kind: i for i, kind in enumerate(KINDS)}

    def rank(row: str) -> tuple[int, str]:
        return order.get(row.partition(' (')[0], len(order)), row

    found = {row for row, column in tally.counts if tally.counts[row, column]}
    rows = sorted(found, key=rank)
    values = np.full((len(rows), blocks + 1), np.nan)
    for i, row in enumerate(rows):
        for column in range(blocks + 1):
            count = tally.counts.get((row, column), 0)
            if count:
                values[i, column] = tally.sums[row, column] / count
    columns = ('in', *map(str, range(blocks)))
    if not len(rows) or np.isnan(values[:, 0]).all():
        columns, values = columns[1:], values[:, 1:]
    return Effects(tuple(rows), columns, values)
