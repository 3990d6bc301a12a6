"""Slots side by side in one pass, each on the samples that are its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmpetl.core.context import Context, Share
from mmpetl.core.delta import Delta, Features
from mmpetl.core.errors import PETLError

Run = Callable[[Delta, tuple[Features, ...], Context], Features]
"""``run(delta, features, ctx)`` gives what takes the place of the last feature."""


def is_shared(ctx: Context) -> bool:
    """Whether the samples of this pass have different slots."""
    return ctx.shares is not None and len(ctx.shares) > 1


def side_by_side(
    run: Run, deltas: list[Delta], features: tuple[Features, ...], ctx: Context
) -> Features:
    """Run the deltas of a site, each on the samples of its slot.

    A delta gets the rows, the images and the notes that a pass of its slot alone would
    hand it, so that not even a norm over the batch inside of it sees the others.
    Watchers see all rows.

    Args:
        run: What runs one of them.
        deltas: Those that act, at most one of a slot.
        features: Of all samples, which are taken apart along the first axis. Windows
            and frames of one sample lie there one behind the other.
        ctx: Facts of this forward pass.

    Raises:
        PETLError: A delta gives back other than a row for each.
    """
    own = {delta.slot: delta for delta in deltas if delta.slot}
    for delta in deltas:
        if not delta.slot:
            features = (*features[:-1], run(delta, features, ctx))
        elif own:
            features = (*features[:-1], _apart(run, own, features, ctx))
            own = {}
    return features[-1]


def _apart(
    run: Run, own: dict[str, Delta], features: tuple[Features, ...], ctx: Context
) -> Features:
    parts = []
    for share in ctx.shares:
        rows = tuple(_rows(part, share, ctx) for part in features)
        if share.slot in own:
            delta = own[share.slot]
            parts.append(run(delta, rows, _context(ctx, share)))
            _check(delta, rows[-1], parts[-1])
        else:
            parts.append(rows[-1])
    return _joined(parts)


def _context(ctx: Context, share: Share) -> Context:
    """What the slot of some samples is handed, as if there were no others."""
    own = ctx.fork()
    own.shares = (share._replace(first=0),)
    if ctx.images is None:
        return own
    own.images = _rows(ctx.images, share, ctx)
    if len(own.images) // share.count % ctx.frames:
        raise PETLError(
            f'{ctx.frames} frames of a clip are images of the batch, and only a clip '
            'as a whole has a slot; run the model that takes clips'
        )
    return own


def _rows(x: Features, share: Share, ctx: Context) -> Features:
    """The rows of some samples, a view."""
    if isinstance(x, tuple):
        return tuple(_rows(part, share, ctx) for part in x)
    samples = sum(part.count for part in ctx.shares)
    each, rest = divmod(len(x), samples)
    if rest:
        raise PETLError(
            f'features of {len(x)} rows are not those of {samples} samples with slots '
            'of their own'
        )
    return x.narrow(0, share.first * each, share.count * each)


def _check(delta: Delta, x: Features, y: Features) -> None:
    before, after = ((t,) if isinstance(t, Tensor) else t for t in (x, y))
    for a, b in zip(before, after, strict=True):
        if a.shape[:-1] != b.shape[:-1]:
            raise PETLError(
                f'{type(delta).__name__} in slot {delta.slot!r} makes '
                f'{tuple(b.shape)} of {tuple(a.shape)}, so other slots cannot share '
                'its pass (Method.shares_pass)'
            )


def _joined(parts: list[Features]) -> Features:
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(part)) for part in zip(*parts, strict=True))
    return torch.cat(parts)
