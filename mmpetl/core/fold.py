"""Turning a tuned backbone into a plain one that computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from mmpetl.core.affine import Affine
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Injection, injection_of
from mmpetl.core.method import Method
from mmpetl.core.site import AFTER_ONLY, Site
from mmpetl.core.slots import remove


@torch.no_grad()
def fold(backbone: nn.Module) -> nn.Module:
    """Write every enabled method into the base weights and take it out, in place.

    Afterwards the backbone is an ordinary instance of its own class that needs no
    mmpetl: same keys, same shapes, no extra operation.

    Raises:
        PETLError: A method has no exact equivalent in the base weights, or they are
            quantised, or lack a bias that it needs. Nothing is changed then.

    Example:
        >>> import timm, mmpetl
        >>> model = mmpetl.inject(timm.create_model('test_vit'), 'LoRA')
        >>> mmpetl.count_trainable(model).delta > 0
        True
        >>> any('petl' in key for key in mmpetl.fold(model).state_dict())
        False
    """
    module, record = injection_of(backbone)
    for name, slot in record.slots.items():
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
    parts = [
        (write, site, delta, record.site_map.affine(module, site))
        for write, site, delta in _in_order(module, record)
    ]
    written = Counter(key for *_, affine in parts for key in _storages(affine))
    for _, _, delta, affine in parts:
        shared = any(written[key] > 1 for key in _storages(affine))
        if shared and delta.reads_base:
            affine.keep_base()
    for write, site, delta, affine in parts:
        affine.check_writable()
        # Into a copy first: what cannot be folded is found before anything changes.
        write(site, delta, affine.copy())
    for write, site, delta, affine in parts:
        write(site, delta, affine)
    for name in list(record.slots):
        remove(module, record, name, restore=False)
    return backbone


def _storages(affine: Affine) -> set[int]:
    """Where the tensors behind a map lie, whole tensors for views of them."""
    return {tensor.untyped_storage().data_ptr() for tensor in affine.tensors}


Write = Callable[[Site, Delta, Affine], None]


def _in_order(module: nn.Module, record: Injection) -> list[tuple[Write, Site, Delta]]:
    """What writes, site and delta, from the weight outwards.

    What acts behind a projection is nearer to its weight than what acts in front, since
    it sees the edited input; the rows of the fused projection run before the whole.
    """
    behind: list[tuple[Write, Site, Delta]] = []
    front: list[tuple[Write, Site, Delta]] = []
    for name, slot in record.slots.items():
        method = slot.method
        in_parts = type(method).fold_before is not Method.fold_before
        for site in slot.sites:
            delta = module.get_submodule(f'{site.path}.{name}')
            acts_before = type(delta).before is not Delta.before
            if acts_before and in_parts:
                behind.append((method.fold, site, delta))
                front.append((method.fold_before, site, delta))
            else:
                (front if acts_before else behind).append((method.fold, site, delta))
    behind.sort(key=lambda entry: entry[1].kind not in AFTER_ONLY)
    return behind + front[::-1]
