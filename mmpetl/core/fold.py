"""Turning a tuned backbone into a plain one that computes the same."""

from __future__ import annotations

import torch
from torch import nn

from mmpetl.core.errors import PETLError
from mmpetl.core.inject import eject, injection_of


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
    for name, slot in list(state.slots.items()):
        for site in slot.sites:
            delta = module.get_submodule(f'{site.path}.{name}')
            slot.method.fold(site, delta, state.site_map.affine(module, site))
    for name in list(state.slots):
        eject(module, name, restore=False)
    return backbone
