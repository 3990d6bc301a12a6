"""Mixed precision, held on every pair of method and backbone."""

from __future__ import annotations

from functools import cache

import torch
from promises import trainable
from tiny import Pair, Tuned, bare, decide_, images, loss_of, outputs, shake_
from torch import Tensor, nn

from mmpetl.core import collect_losses

ROUNDED = {'polyhistor_lite': 32}
"""By how much more than the base a method may lose under autocast, where not by 4.

Adapters of PolyhistorLite are themselves products of four rounded matrices.
"""


ONCE = 2**-7
"""Rounding of a number or two to bfloat16: blocks with layer scale near 0 add none."""


@cache
def bare_autocast(stem: str) -> tuple[float, list[torch.dtype]]:
    """What autocast changes in the bare base, and the dtypes that it hands over."""
    ys, full = autocast(bare(stem), images(stem))
    return distance(ys, full), [y.dtype for y in ys]


@torch.no_grad()
def autocast(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs under bfloat16 autocast and without it."""
    full = outputs(model, x)
    with torch.autocast('cpu', torch.bfloat16):
        return outputs(model, x), full


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative error of an output, by its norm."""
    pairs = zip(a, b, strict=True)
    return max(((y.float() - z).norm() / z.norm()).item() for y, z in pairs)


def test_autocast_hands_over_what_it_does_of_the_base(brief_pair: Pair) -> None:
    """The same dtypes, in both modes, and an error of the base's own size."""
    x, model = images(brief_pair.stem), brief_pair.inject()
    shake_(model)
    decide_(model)
    ys, full = autocast(model, x)
    error, dtypes = bare_autocast(brief_pair.stem)
    assert [y.dtype for y in ys] == dtypes
    bound = ROUNDED.get(brief_pair.method.id, 4) * max(error, ONCE)
    assert distance(ys, full) < bound
    model.train()
    ys, _ = autocast(model, x)
    assert [y.dtype for y in ys] == dtypes


def test_works_under_autocast(brief_pair: Pair) -> None:
    x = images(brief_pair.stem)
    model = Tuned(brief_pair.inject(), x)
    shake_(model)
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        ys = model(x)
    loss = loss_of([y.float() for y in ys])
    (loss + sum(collect_losses(model).values())).backward()
    for name, param in trainable(model).items():
        assert param.grad is not None, f'no gradient: {name}'
        assert torch.isfinite(param.grad).all(), name
        assert param.grad.dtype == torch.float32, name
