"""Two methods on one tiny backbone: what the tests of stacks share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache

import torch
from tiny import (
    MethodCase,
    images,
    loss_of,
    method_cases,
    outputs,
    randomise_,
    shake_,
    timm_vit,
)
from tiny import base as tiny_base
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Method, PETLError, injection_of, wanted_sites
from mmpetl.core.injection import own_parameters
from mmpetl.core.stacking import unread

TRUNKS = ('timm_vit', 'mmpretrain_swin_cls', 'mmaction_swin3d')


@cache
def _bare_vit() -> nn.Module:
    """Without a head, so that it offers the vector that a head reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_(timm_vit(num_classes=0)).double().eval()


def trunk(name: str) -> nn.Module:
    """A fresh copy in double precision, in eval mode."""
    if name == 'timm_vit':
        return copy.deepcopy(_bare_vit())
    return tiny_base(name, torch.float64)


def batch(name: str) -> Tensor:
    """Two inputs of a trunk, in double precision."""
    return images(name, dtype=torch.float64)


def cases(name: str) -> Iterator[MethodCase]:
    """Every registered method that a trunk serves, at its first setting."""
    for case in method_cases():
        try:
            served = ':' not in case.id and wanted_sites(trunk(name), case.build())
        except PETLError:
            continue
        if served is not False:
            yield case


def stack(name: str, *methods: Method, seed: int = 0) -> nn.Module:
    """Methods in slots a, b, ... of a trunk, everything that they train moved."""
    torch.manual_seed(4)
    model = trunk(name)
    for slot, method in zip('abcdef', methods, strict=False):
        mmpetl.inject(model, method, slot=slot)
    shake_(model, seed=seed)
    return model.train().eval()  # a pass in training mode checks the base


def params_of(model: nn.Module, slot: str) -> dict[str, nn.Parameter]:
    """What a slot trains: its own parameters and those that it selects."""
    module, record = injection_of(model)
    selected = record.slots[slot].selected
    return own_parameters(module, slot, record.slots[slot]) | {
        name: module.get_parameter(name) for name in selected
    }


def without_gradient(model: nn.Module, x: Tensor) -> set[str]:
    """Names of trainable parameters that a loss over all outputs does not reach."""
    model.zero_grad()
    loss = loss_of(outputs(model, x))
    if loss.requires_grad:
        loss.backward()
    return {
        name
        for name, param in model.named_parameters()
        if param.requires_grad and (param.grad is None or not param.grad.any())
    }


def untrained(model: nn.Module) -> set[str]:
    """Base parameters that do not train because their output is replaced."""
    return set(unread(*injection_of(model)))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(map(torch.equal, a, b))
