"""Turning a tuned backbone into a plain one that computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from mmpetl.core.affine import Affine, in_rows
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError
from mmpetl.core.fingerprint import tensor_digests
from mmpetl.core.injection import Injection, check_whole, injection_of, prune
from mmpetl.core.method import Method
from mmpetl.core.packed import PackedWeight
from mmpetl.core.site import AFTER_ONLY, Site
from mmpetl.core.slots import pick_slot, remove


@torch.no_grad()
def fold(backbone: nn.Module, slot: str | None = None) -> nn.Module:
    """Write every enabled method into the base weights and take it out, in place.

    Afterwards the backbone is an ordinary instance of its own class that needs no
    mmpetl: same keys, same shapes, no extra operation.

    Args:
        backbone: An injected backbone.
        slot: The method that is folded, where the others are to stay; what it makes of
            the weights is their base from then on. None means all.

    Returns:
        The same object.

    Raises:
        PETLError: A method has no exact equivalent in the base weights, or they are
            quantised, or lack a bias that it needs; or a method that is to stay acts on
            weights that would change. Nothing is changed then.

    Examples:
        >>> import timm, mmpetl
        >>> model = mmpetl.inject(timm.create_model('test_vit'), 'LoRA')
        >>> mmpetl.count_trainable(model).delta > 0
        True
        >>> any('petl' in key for key in mmpetl.fold(model).state_dict())
        False
    """
    module, record = injection_of(backbone)
    check_whole(module)
    names = list(record.slots) if slot is None else [pick_slot(record, slot)]
    for name in names:
        _check_folds(name, record)
    with in_rows(module):
        _write(module, record, names, alone=slot is not None)
    for name in names:
        remove(module, record, name, restore=False)
    return backbone


def _write(module: nn.Module, record: Injection, names: list[str], alone: bool) -> None:
    """Write what slots have learnt into the base weights; the slots stay.

    Args:
        module: The backbone.
        record: Its injection.
        names: The slots.
        alone: Whether others stay that must not meet the same weights.
    """
    parts = [
        (write, site, delta, record.site_map.affine(module, site))
        for write, site, delta in _in_order(module, record, names)
    ]
    for *_, affine in parts:
        affine.check_writable()
    writers = Counter(key for *_, affine in parts for key in _storages(affine))
    for _, _, delta, affine in parts:
        shared = any(writers[key] > 1 for key in _storages(affine))
        if shared and delta.reads_base:
            affine.keep_base()
    for write, site, delta, affine in parts:
        # Into a copy first: what cannot be folded is found before anything changes.
        write(site, delta, affine.copy())
    written = _parameters_of(module, [affine for *_, affine in parts])
    if alone:
        _check_apart(record, names[0], written)
    for write, site, delta, affine in parts:
        write(site, delta, affine)
    _renew_digests(record, written)


Write = Callable[[Site, Delta, Affine], None]
"""Writes an exact equivalent of a delta into the base weights of its site."""


@torch.no_grad()
def fold_sites(
    backbone: nn.Module, slot: str, kind: type[Delta], write: Write
) -> nn.Module:
    """Fold one method at some of its sites, and take it out there; the rest stays.

    For inference with a method that has no equivalent as a whole: what stays needs
    what was taken out, so it can no longer be saved or ejected.

    Args:
        backbone: An injected backbone.
        slot: The method.
        kind: Class of the deltas that are folded.
        write: What folds one of them.

    Returns:
        The same object.

    Raises:
        PETLError: Weights are quantised, or another slot acts on them. Nothing is
            changed then.
    """
    module, record = injection_of(backbone)
    entry = record.slots[slot]
    with in_rows(module):
        parts = [
            (site, delta, record.site_map.affine(module, site))
            for site in entry.sites
            if isinstance(delta := module.get_submodule(f'{site.path}.{slot}'), kind)
        ]
        for site, delta, affine in parts:
            affine.check_writable()
            write(site, delta, affine.copy())
        written = _parameters_of(module, [affine for *_, affine in parts])
        _check_apart(record, slot, written)
        for part in parts:
            write(*part)
        # What the method itself trains is its own, and the base keeps another value.
        kept = {n: p for n, p in written.items() if n not in entry.selected}
        _renew_digests(record, kept)
    folded = [site for site, *_ in parts]
    for site in folded:
        host = module.get_submodule(site.host)
        host.petl._modules[site.key]._modules.pop(slot)
        prune(host)
    entry.sites = tuple(site for site in entry.sites if site not in folded)
    record.site_map.settle(module)
    return backbone


def _check_folds(name: str, record: Injection) -> None:
    """Refuse a slot that no base weights can stand for."""
    slot = record.slots[name]
    who = type(slot.method).__name__
    if slot.sites and not slot.method.folds:
        others = [n for n, s in record.slots.items() if s.method.folds and n != name]
        way = f', or fold another slot alone (slot={others[0]!r})' if others else ''
        raise PETLError(
            f'{who} in slot {name!r} has no exact equivalent in the base weights, so '
            f'it cannot be folded; export the delta instead{way}'
        )
    if not slot.enabled:
        raise PETLError(
            f'slot {name!r} ({who}) is disabled; enable it or eject it before folding'
        )


def _storages(affine: Affine) -> set[int]:
    """Where the tensors behind a map lie, whole tensors for views of them."""
    return {tensor.untyped_storage().data_ptr() for tensor in affine.tensors}


def _parameters_of(module: nn.Module, affines: list[Affine]) -> dict[str, nn.Parameter]:
    """The parameters that hold the tensors of maps, by name; these may be views."""
    held = {key: affine.name for affine in affines for key in _storages(affine)}
    found, owned = {}, set()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, PackedWeight):
            continue
        place = tensor.untyped_storage().data_ptr()
        if place in held and isinstance(tensor, nn.Parameter):
            found[name] = tensor
        owned.add(place)
    lost = next((name for place, name in held.items() if place not in owned), None)
    if lost is not None:
        raise PETLError(
            f'the weight of {lost} is computed from other tensors, as by a '
            'parametrization, so that nothing can be folded into it; keep the delta '
            'unfolded'
        )
    return found


def _check_apart(record: Injection, name: str, written: Iterable[str]) -> None:
    """Refuse to fold one slot where another that stays meets the same weights."""
    own = {_place(site) for site in record.slots[name].sites}
    for other, slot in record.slots.items():
        if other == name:
            continue
        met = next((site for site in slot.sites if _place(site) in own), None)
        trained = next(iter(sorted(slot.selected & set(written))), None)
        if met or trained:
            what = f'acts at {met}' if met else f'trains {trained}'
            raise PETLError(
                f'slot {other!r} ({type(slot.method).__name__}) stays and {what}, '
                f'whose weights folding slot {name!r} would change; fold or eject both'
            )


def _place(site: Site) -> tuple[str, str, int | None]:
    """Where the weights of a site lie: rows of a projection are part of it."""
    kind = 'attn.qkv' if site.kind in AFTER_ONLY else site.kind
    return site.host, kind, site.index


def _renew_digests(record: Injection, written: Mapping[str, nn.Parameter]) -> None:
    """Let the weights of the base be what they are now."""
    now = tensor_digests(written)
    record.digests |= now
    record.converted |= {n: d for n, d in now.items() if n in record.converted}


def _in_order(
    module: nn.Module, record: Injection, names: Iterable[str]
) -> list[tuple[Write, Site, Delta]]:
    """What writes, site and delta, from the weight outwards.

    What acts behind a projection is nearer to its weight than what acts in front, since
    it sees the edited input; the rows of the fused projection run before the whole.
    """
    behind: list[tuple[Write, Site, Delta]] = []
    front: list[tuple[Write, Site, Delta]] = []
    for name in names:
        slot = record.slots[name]
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
