"""Attention weights of a backbone, and what can be read off them.

No backbone returns them: attention runs as ``scaled_dot_product_attention``. A probe at
the site ``attn.core`` sees the queries, keys and values that a block really uses, those
that methods have changed or added included, and computes
``softmax(q k^T / sqrt(d) + bias + mask)`` from them. Each record says how far
``weights @ v`` lies from what the block itself computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Partition,
    PETLError,
    Site,
    WindowBlockHost,
    injection_of,
    score_terms,
    watching,
)


@dataclass(frozen=True)
class BlockAttention:
    """The attention of one block on one batch.

    Attributes:
        block: Running index of the block.
        grid: Extents of the token grid, (H, W) or (T, H, W).
        window: Extents of the attention window, None where attention is global.
        shift: Shift of the windows per axis, None where attention is global.
        num_class: Class (and register) tokens of the backbone.
        num_extra: Tokens that a method has added to the stream (prompts).
        num_added: Keys that a method has added beside the stream (prefixes).
        weights: (B, windows, heads, queries, keys) float32, one window where attention
            is global. Queries are class tokens, extra tokens, cells of the grid; keys
            are the same behind the added ones. Cells of a window are in its own order
            (:class:`mmpetl.core.Partition`).
        mismatch: Largest distance of ``weights @ v`` from the output of the block's
            own attention.
        roll_first: Whether the map is shifted in front of its padding
            (:class:`mmpetl.core.Partition`).
    """

    block: int
    grid: tuple[int, ...]
    window: tuple[int, ...] | None
    shift: tuple[int, ...] | None
    num_class: int
    num_extra: int
    num_added: int
    weights: np.ndarray
    mismatch: float
    roll_first: bool = False

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.weights.shape[2]

    @property
    def num_prefix(self) -> int:
        """Queries in front of the cells."""
        return self.num_class + self.num_extra

    @property
    def partition(self) -> Partition:
        """How the grid is cut into windows, where attention is in windows."""
        return Partition(self.grid, self.window, self.shift, self.roll_first)

    def to_grid(self, values: np.ndarray) -> np.ndarray:
        """Put values of cells on the map: (B, windows, n, K) -> (B, prod(grid), K).

        What stands on padding is dropped.
        """
        if self.window is None:
            return values[:, 0]
        flat = torch.from_numpy(np.array(values)).flatten(0, 1)
        return self.partition.join(flat).numpy()

    def to_cells(self, values: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_grid`; padding is filled with zeros."""
        if self.window is None:
            return values[:, None]
        flat = torch.from_numpy(np.array(values))
        cut = self.partition.split(flat)
        return cut.unflatten(0, (len(flat), -1)).numpy()

    def places(self) -> np.ndarray:
        """Running index of the cell at each place of each window, -1 on padding."""
        numbers = np.arange(1, math.prod(self.grid) + 1, dtype=np.float64)
        return self.to_cells(numbers[None, :, None])[0, :, :, 0].astype(np.int64) - 1


def scores_to_weights(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float | None = None,
) -> Tensor:
    """``softmax(scale * q k^T + bias + mask)``.

    Args:
        q: (B * windows, heads, Nq, d).
        k: (B * windows, heads, Nk, d).
        bias: (heads, N, N) or (B * windows, heads, N, N) over the last N queries and
            keys, or None.
        mask: (windows, N, N), likewise, or None.
        scale: ``1 / sqrt(d)`` by default.

    Returns:
        (B * windows, heads, Nq, Nk).
    """
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    added = score_terms(q, k, bias, mask)
    if added is not None:
        scores = (scores.unflatten(0, (-1, len(added))) + added).flatten(0, 1)
    return scores.softmax(-1)


def check_blocks(blocks: Sequence[int] | None, total: int) -> list[int]:
    """Indices of blocks, negative ones counted from the end; None means all.

    Raises:
        PETLError: There is no such block.
    """
    if blocks is None:
        return list(range(total))
    for block in blocks:
        if not -total <= block < total:
            raise PETLError(
                f'there is no block {block}; the backbone has blocks 0 to {total - 1}'
            )
    return sorted({block % total for block in blocks})


def in_training(module: nn.Module) -> bool:
    """Whether any layer, a dropout say, is in training mode.

    Containers are not asked: what holds deltas has no mode that matters.
    """
    leaves = (part for part in module.modules() if not part._modules)
    return any(part.training for part in leaves)


@contextmanager
def probing(
    module: nn.Module,
    sites: Sequence[Site],
    see: Callable[[Site, nn.Module, int, tuple[Tensor, ...], Tensor, Context], None],
) -> Iterator[None]:
    """Watch ``attn.core`` of blocks; ``see(site, host, images, (q, k, v), o, ctx)``.

    Side networks that run a block again on a sequence of their own are not watched.
    """
    with ExitStack() as undo:
        for site in sites:
            host = module.get_submodule(site.host)
            inside: list[tuple[int, Context]] = []

            def enter(block, args, inside=inside) -> None:
                inside.append((len(args[0]), block.context_of(args)))

            def leave(block, args, y, inside=inside) -> None:
                inside.pop()

            def tell(x, y, ctx, site=site, host=host, inside=inside) -> None:
                if inside and inside[-1][1] is ctx:
                    see(site, host, inside[-1][0], x, y, ctx)

            for hook in (
                host.register_forward_pre_hook(enter),
                host.register_forward_hook(leave),
            ):
                undo.callback(hook.remove)
            # In front of all deltas y is the plain attention of x, which is what all
            # methods made of q, k and v: their `before` ports have run by then.
            undo.enter_context(watching(module, {site: tell}, first=True))
        yield


def windows_of(host: nn.Module, ctx: Context) -> dict[str, Any]:
    """Window and shift of a block in a pass, None where attention is global."""
    if not isinstance(host, WindowBlockHost):
        return {'window': None, 'shift': None}
    cut = host.cut(ctx)
    return {'window': cut.window, 'shift': cut.shift, 'roll_first': cut.roll_first}


@contextmanager
def watch_attention(
    backbone: nn.Module, blocks: Sequence[int] | None = None
) -> Iterator[list[BlockAttention]]:
    """Record the attention of every forward pass inside of the ``with``.

    The model must be in eval mode, for dropped weights are not what is recorded. The
    backbone is afterwards what it was before. Where a block divides attention into time
    and space (TimeSformer), that in space is recorded. Where a trunk takes frames for
    images (UniFormerV2), so do the records.

    Args:
        backbone: An injected backbone, or a model that contains one.
        blocks: Which blocks; None means all.

    Raises:
        PETLError: There is no such block, the model is in training mode, or its tokens
            lie on no grid.
    """
    module, state = injection_of(backbone)
    if state.site_map.flat:
        raise PETLError(
            f'{type(module).__name__} has no attention maps: {state.site_map.flat}'
        )
    # One each: of a block that looks along time first and then at space, the latter.
    cores = {site.block: site for site in state.sites if site.kind == 'attn.core'}
    sites = list(cores.values())
    chosen = check_blocks(blocks, len(sites))
    for site in (sites[i] for i in chosen):
        host = module.get_submodule(site.host)
        if host.pools or host.attention_parts().get('kv_source'):
            raise PETLError(
                f'block {site.block} pools its queries, or makes keys and values from '
                'a reduced map, so that its attention looks at no single cells of the '
                'grid; choose blocks without a reduction'
            )
    if in_training(module):
        raise PETLError('attention is recorded in eval mode; call model.eval() first')
    records: list[BlockAttention] = []

    def see(site, host, images, qkv, o, ctx) -> None:
        q, k, v = (t.detach() for t in qkv)
        weights = scores_to_weights(q, k, *host.score_terms(q, ctx))
        records.append(
            BlockAttention(
                block=site.block,
                grid=tuple(ctx.grid),
                **windows_of(host, ctx),
                num_class=ctx.num_prefix - ctx.num_extra,
                num_extra=ctx.num_extra,
                num_added=k.shape[-2] - q.shape[-2],
                weights=weights.unflatten(0, (images, -1)).float().cpu().numpy(),
                mismatch=float((weights @ v - o).abs().max()),
            )
        )

    with torch.no_grad(), probing(module, [sites[i] for i in chosen], see):
        yield records


def class_map(attention: BlockAttention) -> np.ndarray:
    """Where the class token looks: (B, heads, *grid).

    Raises:
        PETLError: The backbone has no class token.
    """
    if not attention.num_class:
        raise PETLError(
            f'block {attention.block} has no class token; its mean over queries says '
            'where it looks (mean_map)'
        )
    front = attention.num_added + attention.num_prefix
    rows = attention.weights[:, :, :, 0, front:]  # (B, windows, heads, n)
    return _on_map(attention, rows)


def mean_map(attention: BlockAttention) -> np.ndarray:
    """What the cells look at, mean over the cells of a window: (B, heads, *grid)."""
    p, front = attention.num_prefix, attention.num_added + attention.num_prefix
    real = (attention.places() >= 0).astype(np.float32)  # (windows, n)
    inside = attention.weights[:, :, :, p:, front:]
    total = np.einsum('bwhqk,wq->bwhk', inside, real)
    return _on_map(attention, total / real.sum(1)[None, :, None, None])


def query_map(attention: BlockAttention, cell: Sequence[int]) -> np.ndarray:
    """What one cell looks at: (B, heads, *grid), nan outside of its window.

    Shifted windows are put where they lie on the map.

    Args:
        attention: Of one block.
        cell: Place on the grid, (row, column) or (frame, row, column).

    Raises:
        PETLError: The cell lies outside of the grid.
    """
    grid = attention.grid
    fits = len(cell) == len(grid)
    if not fits or any(not 0 <= c < g for c, g in zip(cell, grid, strict=True)):
        raise PETLError(
            f'there is no cell {tuple(cell)} on the grid {grid} of block '
            f'{attention.block}'
        )
    places = attention.places()
    number = int(np.ravel_multi_index(tuple(cell), grid))
    window, at = (int(i[0]) for i in np.nonzero(places == number))
    front = attention.num_added + attention.num_prefix
    row = attention.weights[:, window, :, attention.num_prefix + at, front:]
    result = np.full((*row.shape[:2], math.prod(grid)), np.nan, dtype=row.dtype)
    real = places[window] >= 0
    result[..., places[window][real]] = row[..., real]
    return result.reshape(*row.shape[:2], *grid)


def own_share(attention: BlockAttention) -> np.ndarray:
    """Share of attention that goes to a method's own tokens, (B, heads) in [0, 1].

    Mean over the queries that are the backbone's own: class tokens and cells.
    """
    a = attention
    stop = a.num_added + a.num_class
    own = a.weights[..., : a.num_added].sum(-1)
    own = own + a.weights[..., stop : stop + a.num_extra].sum(-1)
    real = (a.places() >= 0).astype(np.float32)
    counts = np.concatenate(
        (
            np.ones((len(real), a.num_class), np.float32),
            np.zeros((len(real), a.num_extra), np.float32),
            real,
        ),
        axis=1,
    )
    return np.einsum('bwhq,wq->bh', own, counts) / counts.sum()


def entropy(attention: BlockAttention) -> np.ndarray:
    """Entropy of attention, (B, heads) in [0, 1]: 0 is one key, 1 all keys alike.

    Mean over all queries but the padding of windows. Keys that a shift mask keeps
    apart, and padding, count as possible ones.
    """
    w = attention.weights
    nats = -(w * np.log(np.clip(w, 1e-30, None))).sum(-1)
    real = attention.places() >= 0
    prefix = np.ones((len(real), attention.num_prefix), bool)
    counts = np.concatenate((prefix, real), axis=1).astype(w.dtype)
    total = np.einsum('bwhq,wq->bh', nats, counts)
    return total / counts.sum() / max(math.log(w.shape[-1]), 1e-30)


def _on_map(attention: BlockAttention, rows: np.ndarray) -> np.ndarray:
    """(B, windows, heads, n) -> (B, heads, *grid)."""
    cells = attention.to_grid(rows.transpose(0, 1, 3, 2))
    return cells.transpose(0, 2, 1).reshape(len(rows), -1, *attention.grid)


@dataclass(frozen=True)
class Rollout:
    """Where what stands at the end of some blocks came from.

    Attributes:
        grid: Grid of the first block, whose cells are the sources.
        num_class: Class tokens, which are sources too.
        matrix: (B, num_class + cells at the end, num_class + cells at the start + 1)
            float64; rows sum to 1, the last column is what came from a method's tokens.
    """

    grid: tuple[int, ...]
    num_class: int
    matrix: np.ndarray

    def map(self) -> np.ndarray:
        """(B, *grid): of the class token, or the mean over cells without one."""
        rows = self.matrix[:, :1] if self.num_class else self.matrix
        return rows.mean(1)[:, self.num_class : -1].reshape(-1, *self.grid)

    def own(self) -> np.ndarray:
        """(B,): share that came from a method's own tokens, of the same rows."""
        rows = self.matrix[:, :1] if self.num_class else self.matrix
        return rows.mean(1)[:, -1]


def rollout(attentions: Sequence[BlockAttention]) -> Rollout:
    """Attention rollout over the blocks from the first on.

    Paper: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020,
    https://arxiv.org/abs/2005.00928, eq. (1): the product of ``0.5 A + 0.5 I`` over
    blocks, A the mean over heads.
    Ours beyond it: a method's own tokens are sources, and what passes through them
    counts as theirs; windows mix within themselves; patch merging takes the mean of
    what it joins; what falls on padding is left out and rows are scaled to sum to 1.

    Raises:
        PETLError: Blocks are missing in between.
    """
    if [a.block for a in attentions] != list(range(len(attentions))) or not attentions:
        raise PETLError(
            'rollout needs every block from 0 on, got '
            f'{[a.block for a in attentions] or "none"}'
        )
    first = attentions[0]
    grid, c = first.grid, first.num_class
    sources = c + math.prod(grid) + 1
    flow = np.broadcast_to(
        np.eye(sources - 1, sources), (len(first.weights), sources - 1, sources)
    )
    for a in attentions:
        if a.grid != grid:
            merged = _merge(flow[:, c:], grid, a.grid)
            flow, grid = np.concatenate((flow[:, :c], merged), axis=1), a.grid
        flow = 0.5 * flow + 0.5 * _mixed(a, flow)
        flow = flow / flow.sum(-1, keepdims=True)
    return Rollout(first.grid, c, flow)


def _mixed(a: BlockAttention, flow: np.ndarray) -> np.ndarray:
    """Rows of ``flow`` mixed as the heads' mean attention says."""
    c, p = a.num_class, a.num_prefix
    weights = a.weights.mean(2, dtype=np.float64)  # (B, windows, queries, keys)
    b, windows = weights.shape[:2]

    def own(number: int) -> np.ndarray:
        rows = np.zeros((b, windows, number, flow.shape[-1]))
        rows[..., -1] = 1
        return rows

    prefix = np.broadcast_to(flow[:, None, :c], (b, windows, c, flow.shape[-1]))
    cells = a.to_cells(flow[:, c:])
    keys = np.concatenate((own(a.num_added), prefix, own(a.num_extra), cells), axis=2)
    mixed = weights @ keys
    return np.concatenate((mixed[:, :, :c].mean(1), a.to_grid(mixed[:, :, p:])), axis=1)


def _merge(
    flow: np.ndarray, grid: tuple[int, ...], smaller: tuple[int, ...]
) -> np.ndarray:
    """Mean over the cells that patch merging joins: (B, N, S) -> (B, N', S)."""
    step = tuple(-(-g // s) for g, s in zip(grid, smaller, strict=True))
    maps = torch.from_numpy(np.array(flow)).transpose(1, 2)
    maps = maps.unflatten(2, grid)
    pool = F.avg_pool2d if len(grid) == 2 else F.avg_pool3d
    maps = pool(maps, step, ceil_mode=True, count_include_pad=False)
    return maps.flatten(2).transpose(1, 2).numpy()
