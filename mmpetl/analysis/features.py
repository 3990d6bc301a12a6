"""Features of a backbone, its last and those behind every block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmpetl.core import Context, Injection, PETLError, injection_of


@dataclass(frozen=True)
class Features:
    """Features of N points, float32.

    Attributes:
        final: (N, D), what leaves the backbone, pooled as its head pools it.
        blocks: One (N, C) per block, the residual stream behind it: the class token
            where the head reads one, else the mean over the grid. Tokens that a method
            added take no part.
    """

    final: np.ndarray
    blocks: tuple[np.ndarray, ...]


def _averages(record: Injection) -> bool:
    """Whether the head reads a mean over the grid rather than a class token."""
    return any(site.kind == 'out' and site.pooled for site in record.sites)


def pool_tokens(x: Tensor, num_class: int, num_extra: int, average: bool) -> Tensor:
    """One vector per sequence.

    Args:
        x: (B, num_class + num_extra + N, C).
        num_class: Tokens in front that are the backbone's own.
        num_extra: Tokens behind them that a method added.
        average: Whether the grid is averaged even beside a class token.
    """
    if num_class and not average:
        return x[:, 0]
    return x[:, num_class + num_extra :].mean(1)


def pool_output(y: Tensor | tuple[Tensor, ...], num_class: int, average: bool):
    """(B, D) of whatever a backbone returns; the last of several outputs.

    Args:
        y: (B, D), tokens (B, N, D), or a map (B, D, *grid); several of them, or what
            a model of transformers returns.
        num_class: Class tokens in front of tokens.
        average: See :func:`pool_tokens`.
    """
    y = getattr(y, 'last_hidden_state', y)  # as transformers' models return it
    y = y[-1] if isinstance(y, tuple | list) else y
    if isinstance(y, tuple | list):  # a map and its class token, or two class tokens
        y = next((part for part in y if (part.ndim == 2) is not average), y[-1])
    if y.ndim == 3:
        return pool_tokens(y, num_class, 0, average)
    return y.flatten(2).mean(-1) if y.ndim > 3 else y


@torch.no_grad()
def extract_features(
    backbone: nn.Module, batches: Iterable[Tensor], views: int = 1
) -> Features:
    """Features of a backbone that holds sites, in eval mode as it stands.

    Args:
        backbone: An injected backbone (or a wrapper around one).
        batches: Inputs as the backbone takes them, (B * views, C, ...).
        views: Inputs that are one point; their features are averaged.

    Raises:
        PETLError: There is no batch, or the backbone ends in a classifier.
    """
    module, state = injection_of(backbone)
    if isinstance(getattr(module, 'head', None), nn.Linear):
        raise PETLError(
            f'{type(module).__name__} ends in a classifier of its own, so it returns '
            'no features; build it with num_classes=0'
        )
    average = _averages(state)
    seen: list[Tensor] = []
    num_class = 0

    def keep(block: nn.Module, args: tuple[Tensor, Context], y: Tensor) -> None:
        nonlocal num_class
        ctx = block.context_of(args)
        num_class = ctx.num_prefix - ctx.num_extra
        y = y[0] if isinstance(y, tuple) else y
        seen.append(pool_tokens(y, num_class, ctx.num_extra, average))

    hooks = [b.register_forward_hook(keep) for _, b in state.site_map.blocks(module)]
    finals, blocks = [], []
    try:
        for x in batches:
            seen.clear()
            final = pool_output(backbone(x), num_class, average)
            finals.append(_points(final, views))
            blocks.append([_points(y, views) for y in seen])
    finally:
        for hook in hooks:
            hook.remove()
    if not finals:
        raise PETLError('there are no points to take features of')
    columns = zip(*blocks, strict=True)
    return Features(np.concatenate(finals), tuple(np.concatenate(c) for c in columns))


def _points(x: Tensor, views: int) -> np.ndarray:
    return x.unflatten(0, (-1, views)).mean(1).float().cpu().numpy()


def features_of_points(
    models: tuple[nn.Module, ...], points, batch_size: int = 32
) -> tuple[list[Features], np.ndarray | None]:
    """Features of several models on the same points, each point read once.

    Args:
        models: Whole models with the same preprocessing.
        points: What :func:`mmpetl.analysis.load_points` gave.
        batch_size: Points per step.

    Returns:
        Features by model, and labels (N,) int64, None where points have no class.
    """
    from rich.progress import track

    from mmpetl.analysis.sources import label_of, prepare

    parts: list[list[Features]] = [[] for _ in models]
    labels: list[int | None] = []
    steps = -(-len(points) // batch_size)
    batches = points.batches(batch_size)
    for samples in track(batches, 'features', total=steps, transient=True):
        labels += [label_of(sample) for sample in samples]
        for model, part in zip(models, parts, strict=True):
            x, views = prepare(model, samples)
            part.append(extract_features(model.backbone, [x], views))
    joined = [
        Features(
            np.concatenate([p.final for p in part]),
            tuple(
                np.concatenate(c) for c in zip(*(p.blocks for p in part), strict=True)
            ),
        )
        for part in parts
    ]
    known = None if None in labels else np.array(labels, dtype=np.int64)
    return joined, known
