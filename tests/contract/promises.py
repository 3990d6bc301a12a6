"""What the tests of the contract share: comparisons, and what trains."""

from __future__ import annotations

import torch
from tiny import record
from torch import Tensor, nn

from mmpetl.core import Owner, Site, owners

F64 = torch.float64


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of outputs are equal bit for bit."""
    return len(a) == len(b) and all(map(torch.equal, a, b))


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    assert [y.shape for y in a] == [y.shape for y in b]
    scale = max(y.abs().max().item() for y in b)
    return max((y - z).abs().max().item() for y, z in zip(a, b, strict=True)) / scale


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def of_method(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the method adds or selects, by name."""
    params = dict(model.named_parameters())
    mine = (Owner.DELTA, Owner.SELECTED)
    return {n: params[n] for n, o in owners(model).items() if o in mine}


def offered_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of an injected backbone."""
    return record(model).sites


def is_delta(name: str) -> bool:
    return 'petl' in name.split('.')
