"""Losses of methods: what deltas note in a pass, made into losses and added.

A wrapper of MMEngine adds them to the loss of the task before it scales and
accumulates, so they are treated as that is, and logs each by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.compat.counting import LISTENERS
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Place, injections


def collect_losses(model: nn.Module) -> dict[str, Tensor]:
    """The losses of the pass that has just been made, by name.

    Args:
        model: A model with injected backbones.

    Returns:
        Scalars with gradients, ``<stem>_<name>`` each; a second slot of a method has
        its own behind. They are gone from the model.
    """
    found: dict[str, Tensor] = {}
    for _, module, record in injections(model):
        for slot, entry in record.slots.items():
            if not entry.method.losses:
                continue
            terms: dict[str, list[Tensor]] = {}
            for delta in Place.of(module, record, slot).deltas:
                for name, value in delta.take_terms().items():
                    fine = torch.promote_types(value.dtype, torch.float32)
                    terms.setdefault(name, []).append(value.to(fine))
            for name, values in terms.items():
                key = f'{entry.method.stem()}_{name}'
                key = f'{key}_{slot}' if key in found else key
                found[key] = entry.method.loss(name, values)
    return found


def _begin(wrapper: Any, model: nn.Module, done: int, passes: int) -> None:
    """Let a wrapper add the losses of a model's methods, once."""
    methods = [
        s.method for *_, record in injections(model) for s in record.slots.values()
    ]
    if 'collects' in wrapper.__dict__ or not any(m.losses for m in methods):
        return
    update = wrapper.update_params

    def collecting(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        update(add_and_log(wrapper, loss, collect_losses(model)), *args, **kwargs)

    wrapper.collects = True
    wrapper.update_params = collecting


def add_and_log(wrapper: Any, loss: Tensor, more: Mapping[str, Tensor]) -> Tensor:
    """The sum of losses, each of which a wrapper logs by its name.

    Raises:
        PETLError: One is not finite.
    """
    for name, value in more.items():
        number = float(value)
        if not math.isfinite(number):
            raise PETLError(
                f'the loss {name} is {number}; lower the learning rate. Weights '
                'are as before this batch'
            )
        wrapper.message_hub.update_scalar(f'train/loss_{name}', number)
        loss = loss + value
    return loss


LISTENERS.append(_begin)
