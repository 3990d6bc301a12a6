"""Weighted sums of what several slots have learnt, as a slot of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from mmpetl.core.errors import PETLError
from mmpetl.core.inject import inject
from mmpetl.core.injection import (
    Injection,
    Place,
    Slot,
    injection_of,
    learnt_values,
    tensor_of,
)
from mmpetl.core.method import Method
from mmpetl.core.slots import pick_slot, remove, switch


@torch.no_grad()
def mix(model: nn.Module, weights: Mapping[str, float], slot: str) -> nn.Module:
    """Add what slots of one method have learnt, each times a weight, as a new slot.

    The base with the new slot computes with ``W + sum_i w_i D_i``, for the increment
    ``D_i`` of each slot, exactly: the sum of low-rank products is one of the sum of
    the ranks; scales, shifts, coefficients and base parameters are linear. The slots
    that were mixed are switched off, and stay.

    Args:
        model: An injected backbone, or a model that contains one.
        weights: Weight of each slot; they need not add up to one.
        slot: Name of the new slot.

    Returns:
        The same object; it is as it was where an error is raised.

    Raises:
        PETLError: There is no such slot, the slots are of several methods or places, or
            a weighted sum of what they have learnt is no weighted sum of what they do.

    Example:
        >>> import timm, mmpetl
        >>> model = timm.create_model('test_vit')
        >>> for name in ('birds', 'cars'):
        ...     _ = mmpetl.inject(model, dict(type='LoRA', rank=2), slot=name)
        >>> _ = mmpetl.mix(model, {'birds': 0.7, 'cars': 0.3}, slot='both')
        >>> [(slot.name, slot.enabled) for slot in mmpetl.slots(model)]
        [('birds', False), ('cars', False), ('both', True)]
    """
    module, record = injection_of(model)
    if not isinstance(weights, Mapping) or not weights:
        raise PETLError(f'mix takes a weight for each slot, got {weights!r}')
    for name, weight in weights.items():
        pick_slot(record, name)
        real = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not real or not math.isfinite(weight):
            raise PETLError(f'slot {name!r} needs a finite weight, got {weight!r}')
    entries = {name: record.slots[name] for name in weights}
    method = _check_alike(entries)
    kept = {n: s.enabled for n, s in record.slots.items()}
    first = next(iter(entries.values()))
    inject(module, method, slot=slot, layers=first.layers, blocks=first.blocks)
    try:
        _add_up(module, record, method, weights, slot)
        for name in weights:
            switch(module, record, name, False)
    except BaseException:
        remove(module, record, slot)
        for name, on in kept.items():
            switch(module, record, name, on)
        raise
    return model


def _check_alike(entries: Mapping[str, Slot]) -> Method:
    """The method of the sum.

    Raises:
        PETLError: There is none.
    """
    first, *others = entries.values()
    kinds = {type(slot.method).__name__ for slot in entries.values()}
    if len(kinds) > 1:
        raise PETLError(
            f'slots of one method can be mixed, not of {" and ".join(sorted(kinds))}; '
            'switched on together they act one behind the other'
        )
    who = kinds.pop()
    if not first.method.mixes:
        raise PETLError(
            f'a weighted sum of what {who} has learnt is no weighted sum of what it '
            'does, so its slots cannot be mixed; average outputs instead'
        )
    for name, slot in entries.items():
        for what, own, same in (
            ('acts at other places', slot.sites, first.sites),
            ('trains other parameters', slot.selected, first.selected),
        ):
            if own != same:
                raise PETLError(f'slot {name!r} {what} than {next(iter(entries))!r}')
        if slot.places is not None:
            raise PETLError(f'slot {name!r} is at places by name; these do not mix')
        if not slot.restores:
            raise PETLError(
                f'{who} trains most of the base, of which no second copy is kept, so '
                'that no other slot can be beside it'
            )
    return first.method.mixed([slot.method for slot in others])


def _add_up(
    module: nn.Module,
    record: Injection,
    method: Method,
    weights: Mapping[str, float],
    slot: str,
) -> None:
    places = {name: Place.of(module, record, name) for name in (*weights, slot)}
    into = places[slot]
    first = places[next(iter(weights))]
    if tuple(into.sites) != tuple(first.sites):  # layers too narrow were left out
        lost = next(site for site in first.sites if site not in into.sites)
        raise PETLError(f'{method!r}, which the sum is, has no room at {lost}')
    _check_shared(module, weights, slot)
    for site in into.sites:
        parts = [(weight, places[n].delta(site)) for n, weight in weights.items()]
        method.mix(into.delta(site), parts)
    learnt = {name: learnt_values(module, record, name) for name in weights}
    for name in record.slots[slot].selected:
        shown = tensor_of(module, name)
        if not shown.is_floating_point():
            raise PETLError(f'{name} counts passes of a norm, which do not mix')
        base = record.originals[name].double()
        change = sum(w * (learnt[n][name].double() - base) for n, w in weights.items())
        shown.copy_(base + change)


def _check_shared(module: nn.Module, names: Mapping[str, float], slot: str) -> None:
    """Let the new slot share what all share; refuse where that is not one and the same.

    Raises:
        PETLError: What the deltas of a slot share has learnt, or was drawn apart.
    """
    petl = module._modules.get('petl')
    shared = {} if petl is None else petl._modules.get('shared', {})
    if slot not in shared:
        return
    states = [shared[name].state_dict() for name in names]
    for state in states[1:]:
        for key, value in state.items():
            if not torch.equal(value, states[0][key]):
                raise PETLError(
                    f'slots to be mixed share {key}, in which they differ; a sum has '
                    'one of them'
                )
    shared[slot].load_state_dict(states[0])
