"""Steps of an optimizer, as methods see them that do something at each.

A method that ranks, prunes or anneals acts between a step and the next forward pass,
when parameters are new and gradients still there: averaged over processes, accumulated
and unscaled. torch calls its hooks of steps there, whoever makes the step: a Runner, a
gradient scaler, or a loop of a few lines.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from mmpetl.compat.counting import LISTENERS
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import (
    Injection,
    Place,
    injections,
    own_parameters,
    record_of,
)
from mmpetl.core.method import Method


class Stepped(nn.Module):
    """Counts the steps of a method in every checkpoint; such a method shares one.

    step: steps that are done; total: those of the whole training, 0 while unknown.
    """

    step: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        self.register_buffer('total', torch.zeros((), dtype=torch.int64))


_followed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_handles: list[Any] = []
"""The hooks of steps, once they are there. They stay: torch walks over them while it
calls them."""


def follow_steps(module: nn.Module, record: Injection) -> None:
    """Let the methods of a backbone that is about to train see its steps."""
    if not any(_looks(slot.method) for slot in record.slots.values()):
        return
    _followed.add(module)
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_before))
        _handles.append(register_optimizer_step_post_hook(_after))


def _looks(method: Method) -> bool:
    """Whether steps matter to a method."""
    return method.steps or bool(method.losses)


def plan_steps(model: nn.Module, total: int, done: int | None = None) -> None:
    """Say how many steps the optimizer makes, for methods that plan with them.

    A Runner of MMEngine says it by itself; a loop of one's own says it before it
    begins.

    Args:
        model: A model with an injected backbone.
        total: Steps of the whole training.
        done: Those that are made; None leaves the count that the model holds, which a
            checkpoint may have brought.
    """
    for _, module, record in injections(model):
        for name, slot in record.slots.items():
            if slot.method.steps:
                count = _count(module, name)
                count.total.fill_(total)
                if done is not None:
                    count.step.fill_(done)


def _begin(wrapper: Any, model: nn.Module, done: int, passes: int) -> None:
    """Plan the steps of a Runner; one that has made none counts anew."""
    if passes > 0:
        total = math.ceil(passes / wrapper._accumulative_counts)
        plan_steps(model, total, None if done else 0)


LISTENERS.append(_begin)


def _count(module: nn.Module, slot: str) -> Stepped:
    return module.get_submodule(f'petl.shared.{slot}')


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for place in _acting(optimizer):
        method, who = place.method, type(place.method).__name__
        if any(delta.has_terms for delta in place.deltas):
            _warn_once(
                place,
                f'{who} has losses of its own, and nobody has added them to that of '
                'the task: sum(mmpetl.core.collect_losses(model).values())',
            )
        if not method.steps:
            continue
        if getattr(optimizer, 'grad_scale', None) is not None:
            raise PETLError(
                f'{who} reads gradients, and this {type(optimizer).__name__} unscales '
                'them inside of its step; give the optimizer fused=False'
            )
        count = _count(place.module, place.slot)
        if not count.total:
            _warn_once(
                place,
                f'{who} plans with the steps of the training, and nobody has said how '
                'many there are: mmpetl.core.plan_steps(model, total)',
            )
        method.before_step(place, int(count.step) + 1, _total(count))


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for place in _acting(optimizer):
        if place.method.steps:
            count = _count(place.module, place.slot)
            count.step += 1
            place.method.after_step(place, int(count.step), _total(count))


def _total(count: Stepped) -> int | None:
    return int(count.total) or None


_warned: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""What has been said of a backbone, so that no step says it again."""


def _warn_once(place: Place, what: str) -> None:
    said = _warned.setdefault(place.module, set())
    if what not in said:
        said.add(what)
        warnings.warn(what, stacklevel=5)


def _acting(optimizer: Optimizer) -> Iterator[Place]:
    """Where methods act that look at steps and whose parameters an optimizer holds."""
    if not _followed:
        return
    held = {id(param) for group in optimizer.param_groups for param in group['params']}
    for module in list(_followed):
        record = record_of(module)
        slots = {} if record is None else record.slots
        if not any(_looks(slot.method) for slot in slots.values()):
            _followed.discard(module)
        for name, slot in slots.items():
            if not _looks(slot.method) or not slot.enabled or slot.frozen:
                continue
            own = own_parameters(module, name, slot).values()
            if any(id(param) in held and param.requires_grad for param in own):
                yield Place.of(module, record, name)
