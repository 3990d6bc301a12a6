"""Turning a tuned backbone into a plain one that computes the same."""

from __future__ import annotations

import torch
from torch import nn

from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError
from mmpetl.core.inject import Injection, eject, injection_of
from mmpetl.core.site import AFTER_ONLY, Site


@torch.no_grad()
def fold(backbone: nn.Module) -> nn.Module:
    """Write every enabled method into the base weights and take it out, in place.

    Afterwards the backbone is an ordinary instance of its own class that needs no
    mmpetl: same keys, same shapes, no extra operation.

    Raises:
        PETLError: A method has no exact equivalent in the base weights.
    """
    module, state = injection_of(backbone)
    for name, slot in state.slots.items():
        if slot.sites and not slot.method.folds:
            raise PETLError(
                f'{type(slot.method).__name__} in slot {name!r} has no exact '
                'equivalent in the base weights, so it cannot be folded; export the '
                'delta instead'
            )
        if not slot.enabled:
            raise PETLError(
                f'slot {name!r} ({type(slot.method).__name__}) is disabled; enable it '
                'or eject it before folding'
            )
    for name, site, delta in _in_order(module, state):
        affine = state.site_map.affine(module, site)
        state.slots[name].method.fold(site, delta, affine)
    for name in list(state.slots):
        eject(module, name, restore=False)
    return backbone


def _in_order(module: nn.Module, state: Injection) -> list[tuple[str, Site, Delta]]:
    """Slot, site and delta from the weight outwards.

    What acts behind a projection is nearer to its weight than what acts in front, since
    it sees the edited input; the rows of the fused projection run before the whole.
    """
    behind, front = [], []
    for name, slot in state.slots.items():
        for site in slot.sites:
            delta = module.get_submodule(f'{site.path}.{name}')
            acts_before = type(delta).before is not Delta.before
            (front if acts_before else behind).append((name, site, delta))
    behind.sort(key=lambda entry: entry[1].kind not in AFTER_ONLY)
    return behind + front[::-1]
