"""Slots: what is injected, and switching, freezing and ejecting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from mmpetl.core.errors import PETLError, suggest
from mmpetl.core.fingerprint import tensor_digests
from mmpetl.core.injection import (
    Injection,
    Slot,
    check_whole,
    injection_of,
    injections,
    learnt_values,
    own_parameters,
    rearranging,
    unplug,
)
from mmpetl.core.method import Method
from mmpetl.core.stacking import check_stack, unread


@dataclass(frozen=True)
class SlotFacts:
    """One line of :func:`slots`.

    Attributes:
        name: Name of the slot.
        backbone: Path of the backbone in the model, empty for the model itself.
        method: The method.
        enabled: Whether it acts.
        frozen: Whether it acts without training.
        delta: Parameters that it added.
        selected: Base parameters that it trains, counted in numbers.
    """

    name: str
    backbone: str
    method: Method
    enabled: bool
    frozen: bool
    delta: int
    selected: int


def slots(model: nn.Module) -> list[SlotFacts]:
    """Every slot of a model, in the order of injection; empty where there is none."""
    return [
        SlotFacts(
            name,
            path,
            slot.method,
            slot.enabled,
            slot.frozen,
            sum(p.numel() for p in own_parameters(module, name, slot).values()),
            sum(p.numel() for n, p in base.items() if n in slot.selected),
        )
        for path, module, record in injections(model)
        for base in [dict(module.named_parameters())]
        for name, slot in record.slots.items()
    ]


def pick_slot(record: Injection, slot: str | None) -> str:
    """The name of a slot, which may be left out where there is only one.

    Raises:
        PETLError: There is no such slot, or several and none is named.
    """
    if slot is None and len(record.slots) == 1:
        return next(iter(record.slots))
    if slot not in record.slots:
        near = suggest(slot, record.slots) if isinstance(slot, str) else ''
        raise PETLError(
            f'no slot {slot!r}; there are: {", ".join(record.slots)} (name one of '
            f'them){near}'
        )
    return slot


def _check_restores(slot: Slot, name: str) -> None:
    if not slot.restores:
        raise PETLError(
            f'{type(slot.method).__name__} in slot {name!r} trains most of the base, '
            'of which no second copy is kept; load the base again instead'
        )


def switch(module: nn.Module, record: Injection, name: str, on: bool) -> None:
    """Let a slot act, or not."""
    slot = record.slots[name]
    if slot.enabled == on:
        return
    _check_restores(slot, name)
    if on:
        check_stack(name, slot.method, slot.sites, record.slots)
    with (
        rearranging(module, record),
        retraining(module, record),
        pausing(module, name, slot),
    ):
        slot.enabled = on
    for site in slot.sites:
        plug = module.get_submodule(site.path)
        (plug.off.discard if on else plug.off.add)(name)
    module.train(record.training)


@contextmanager
def pausing(module: nn.Module, name: str, slot: Slot) -> Iterator[None]:
    """A slot is switched or frozen inside of it; its own parameters follow.

    Those that a user had frozen when it stopped stay frozen when it goes on.
    """
    own = own_parameters(module, name, slot)
    trained = slot.enabled and not slot.frozen
    if trained:
        slot.paused = frozenset(n for n, p in own.items() if p.requires_grad)
    yield
    trains = slot.enabled and not slot.frozen
    if trains != trained:
        for key, param in own.items():
            param.requires_grad_(trains and key in slot.paused)


@contextmanager
def retraining(module: nn.Module, record: Injection) -> Iterator[None]:
    """Slots change inside of it; then those base parameters train that must.

    What trains before and after alike is left as it is, so that a user may freeze it;
    what a user had frozen when a slot stopped stays so when that goes on.
    """
    before = trained_base(module, record)
    yield
    after = trained_base(module, record)
    for name, param in module.named_parameters():
        if name in before - after:
            if not param.requires_grad:
                record.by_hand.add(name)
            param.requires_grad_(False)
        elif name in after - before:
            param.requires_grad_(name not in record.by_hand)
            record.by_hand.discard(name)


def trained_base(module: nn.Module, record: Injection) -> frozenset[str]:
    """Base parameters that train: those whose value belongs to an unfrozen slot.

    Not those whose output another slot replaces.
    """
    names = set()
    for slot in record.slots.values():
        for name in slot.selected:
            holder = record.holder(name)
            if holder is not None and not record.slots[holder].frozen:
                names.add(name)
    return frozenset(names) - unread(module, record)


def enable(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the method in ``slot`` act again.

    Raises:
        PETLError: There is no such slot, or it cannot act beside those that do.
    """
    module, record = injection_of(backbone)
    switch(module, record, pick_slot(record, slot), True)


def disable(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the backbone compute as if the method in ``slot`` were not there.

    What it has learnt is kept. :func:`disabled` switches for a while.

    Raises:
        PETLError: There is no such slot, or the method trained most of the base.
    """
    module, record = injection_of(backbone)
    switch(module, record, pick_slot(record, slot), False)


def set_active(backbone: nn.Module, slots: str | Iterable[str]) -> None:
    """Let these slots act, and no others.

    Either all of them are switched or, with an error, none.

    Args:
        backbone: An injected backbone, or a model that contains one.
        slots: A name or several; none of them for the base alone.

    Raises:
        PETLError: There is no such slot, two cannot act together, or one that is to be
            switched off has trained most of the base.

    Example:
        >>> import timm, mmpetl
        >>> model = mmpetl.inject(timm.create_model('test_vit'), 'LoRA', slot='birds')
        >>> _ = mmpetl.inject(model, 'BitFit', slot='cars')
        >>> mmpetl.set_active(model, 'cars')
        >>> [slot.name for slot in mmpetl.slots(model) if slot.enabled]
        ['cars']
    """
    module, record = injection_of(backbone)
    names = [slots] if isinstance(slots, str) else list(slots)
    wanted = [pick_slot(record, name) for name in names]
    before = [name for name, slot in record.slots.items() if slot.enabled]
    try:
        for name in record.slots:
            if name not in wanted:
                switch(module, record, name, False)
        for name in record.slots:
            if name in wanted:
                switch(module, record, name, True)
    except PETLError:
        for name in record.slots:
            if name not in before:
                switch(module, record, name, False)
        for name in before:
            switch(module, record, name, True)
        raise


@contextmanager
def disabled(backbone: nn.Module, slot: str | None = None) -> Iterator[nn.Module]:
    """Run the base inside of a ``with`` statement, and the method behind it again.

    Args:
        backbone: An injected backbone, or a model that contains one.
        slot: The slot that is switched off meanwhile; None means all.

    Raises:
        PETLError: As :func:`disable`.
    """
    module, record = injection_of(backbone)
    names = list(record.slots) if slot is None else [pick_slot(record, slot)]
    off = [name for name in names if record.slots[name].enabled]
    for name in off:
        _check_restores(record.slots[name], name)
    for name in off:
        switch(module, record, name, False)
    try:
        yield backbone
    finally:
        for name in off:
            switch(module, record, name, True)


def freeze(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the method in ``slot`` act without training, so that others build on it.

    Its deltas go into eval mode, as the frozen base does.

    Raises:
        PETLError: There is no such slot.
    """
    _set_frozen(backbone, slot, True)


def unfreeze(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the method in ``slot`` train again.

    Raises:
        PETLError: There is no such slot.
    """
    _set_frozen(backbone, slot, False)


def _set_frozen(backbone: nn.Module, slot: str | None, frozen: bool) -> None:
    module, record = injection_of(backbone)
    name = pick_slot(record, slot)
    entry = record.slots[name]
    with retraining(module, record), pausing(module, name, entry):
        entry.frozen = frozen
    module.train(record.training)


def eject(
    backbone: nn.Module, slot: str | None = None, *, restore: bool = True
) -> nn.Module:
    """Take a method out. After the last one the backbone is what it was before.

    Args:
        backbone: An injected backbone.
        slot: Which method; needed where there are several.
        restore: Whether base parameters that the method trained get their values
            back. Otherwise what it made of them is the base from now on.

    Returns:
        The same object.

    Raises:
        PETLError: There is no such slot, or ``restore`` is asked for, but the method
            trained most of the base.

    Examples:
        >>> import timm, mmpetl
        >>> model = timm.create_model('test_vit')
        >>> keys = list(model.state_dict())
        >>> _ = mmpetl.inject(model, 'BitFit')
        >>> mmpetl.eject(model) is model
        True
        >>> type(model).__name__, list(model.state_dict()) == keys
        ('VisionTransformer', True)
    """
    module, record = injection_of(backbone)
    check_whole(module)
    name = pick_slot(record, slot)
    if restore:
        _check_restores(record.slots[name], name)
    remove(module, record, name, restore=restore)
    return backbone


def remove(
    module: nn.Module, record: Injection, name: str, *, restore: bool = True
) -> None:
    """Unplug a slot, and give the backbone its own class back after the last one."""
    with rearranging(module, record), retraining(module, record):
        if not restore:
            record.originals |= (learnt := learnt_values(module, record, name))
            params = {n: v for n, v in learnt.items() if n in record.digests}
            record.digests |= tensor_digests(params)
        del record.slots[name]
    unplug(module, record, name)
    if not record.slots:
        release(module, record)
    record.by_hand &= {n for slot in record.slots.values() for n in slot.selected}
    module.train(record.training)


def release(module: nn.Module, record: Injection) -> None:
    """Give a backbone without slots its own classes and flags back."""
    del module.__dict__['_petl']
    record.site_map.unswap(module)
    free = record.trainable_before - record.by_hand
    for key, param in module.named_parameters():
        # A head is the user's, and so is what came later.
        if key in record.base and key not in record.head:
            param.requires_grad_(key in free)
