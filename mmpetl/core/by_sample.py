"""Different slots for different samples of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.context import Share
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Injection, injection_of
from mmpetl.core.slots import pick_slot, set_active


def run_by_slot(
    model: nn.Module,
    inputs: Any,
    slots: Sequence[str | None],
    call: Callable[[Any], Any] | None = None,
) -> Any:
    """Run a batch in which each sample has a slot of its own.

    The frozen trunk runs once over the samples of all slots that can share a pass, and
    each delta acts on those of its own slot; other slots get a pass each
    (:func:`passes_by_slot`). Either way a sample gets what its slot alone computes,
    with all others off, and outputs come back in the order of the batch.

    Gradients are recorded as in any forward pass: those of a sample reach its own slot,
    if that is on and not frozen, and every head. No slot that trains base parameters
    gets any.

    Args:
        model: An injected backbone, or a model that contains one.
        inputs: A tensor (B, ...), or a tuple, list or dict of these.
        slots: The slot of each sample, None for the base alone.
        call: What runs a part of the batch; by default the model itself, with a dict as
            keyword arguments.

    Returns:
        What the model returns, of the whole batch. Tensors in it have a sample in every
        row; a feature that has not is refused.

    Raises:
        PETLError: There is no such slot, there are more or fewer than samples, what
            leaves is not by sample, or gradients are recorded and a slot trains base
            parameters.
    """
    module, record = injection_of(model)
    size = _size_of(inputs)
    if size != len(slots):
        raise PETLError(
            f'the batch has {size} samples, and {len(slots)} slots are named'
        )
    if not size:
        raise PETLError('the batch has no samples')
    groups = passes_by_slot(model, slots)
    switched = _switched(record, slots)
    bound = next((s for s in switched if record.slots[s].selected), None)
    if bound is not None and torch.is_grad_enabled():
        raise PETLError(
            f'{type(record.slots[bound].method).__name__} in slot {bound!r} trains '
            'parameters of the base, which hold the values of one slot at a time, so '
            'that there are no gradients for several: run it under torch.no_grad(), or '
            'each slot by itself'
        )

    def run(part: Any) -> Any:
        if call is not None:
            return call(part)
        if isinstance(part, Mapping):
            return model(**part)
        return model(*part) if isinstance(part, tuple) else model(part)

    outputs, order = [], []
    with _kept(module) if switched else nullcontext():
        for group in groups:
            own = {s: [i for i, name in enumerate(slots) if name == s] for s in group}
            rows = [i for part in own.values() for i in part]
            if switched:
                set_active(module, [name for name in group if name in switched])
            sorted_ = rows == list(range(size))
            part = inputs if sorted_ else _rows(inputs, torch.tensor(rows))
            with _sharing(record, own):
                outputs.append(run(part))
            order.append(rows)
    back = torch.tensor([i for rows in order for i in rows]).argsort()
    return _joined(outputs, [len(rows) for rows in order], back)


def passes_by_slot(
    model: nn.Module, slots: Iterable[str | None]
) -> list[tuple[str | None, ...]]:
    """Which slots share a pass over a batch in which they meet.

    Args:
        model: An injected backbone, or a model that contains one.
        slots: Names, in any number and order; None for the base alone.

    Returns:
        The slots of each pass of :func:`run_by_slot`; together they are those that were
        named.

    Raises:
        PETLError: There is no such slot.

    Example:
        >>> import timm, mmpetl
        >>> model = timm.create_model('test_vit')
        >>> for name, method in {'a': 'LoRA', 'b': 'SSF', 'c': 'BitFit'}.items():
        ...     _ = mmpetl.inject(model, method, slot=name)
        >>> mmpetl.passes_by_slot(model, ['c', 'a', None, 'b', 'a'])
        [('a', None, 'b'), ('c',)]
    """
    module, record = injection_of(model)
    together: list[str | None] = []
    apart: list[tuple[str | None, ...]] = []
    for slot in dict.fromkeys(slots):
        if slot is not None:
            pick_slot(record, slot)
        if _fits_beside(record, slot):
            together.append(slot)
        else:
            apart.append((slot,))
    return [tuple(together), *apart] if together else apart


def _fits_beside(record: Injection, slot: str | None) -> bool:
    """Whether other slots can share a pass with this one.

    Not where nobody says along which axis of a feature the samples lie, as in a model
    that no file describes, nor where base parameters, which hold one value at a time,
    are those of the slot.
    """
    if record.site_map.own_forward:
        return False
    entry = None if slot is None else record.slots[slot]
    return entry is None or (entry.method.shares_pass and not entry.selected)


def _switched(record: Injection, slots: Iterable[str | None]) -> list[str]:
    """Slots that must be switched: their values are put into the base and taken out.

    Of a model that no file describes all slots, as its layers know of no batch.
    """
    return [
        name
        for name, slot in record.slots.items()
        if slot.enabled or name in slots
        if slot.selected or record.site_map.own_forward
    ]


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Slots are switched inside of it, and are as they were behind it."""
    _, record = injection_of(module)
    on = [name for name, slot in record.slots.items() if slot.enabled]
    try:
        yield
    finally:
        set_active(module, on)


@contextmanager
def _sharing(
    record: Injection, rows: Mapping[str | None, Sequence[int]]
) -> Iterator[None]:
    """In passes inside of it each slot acts on as many samples, one after another."""
    ends = list(accumulate(map(len, rows.values()), initial=0))
    firsts = zip(rows, ends, strict=False)
    record.shares = tuple(Share(s, first, len(rows[s])) for s, first in firsts)
    try:
        yield
    finally:
        record.shares = None


def _size_of(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return len(inputs)
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    sizes = (
        {_size_of(part) for part in parts}
        if isinstance(inputs, Mapping | tuple | list)
        else set()
    )
    if len(sizes) != 1:
        raise PETLError(
            'inputs are a tensor (B, ...), or a tuple, list or dict of tensors of one '
            f'batch; got {type(inputs).__name__}'
        )
    return sizes.pop()


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device))
    if isinstance(value, Mapping):
        return {key: _rows(part, rows) for key, part in value.items()}
    return type(value)(_rows(part, rows) for part in value)


def _joined(parts: list[Any], counts: list[int], order: Tensor) -> Any:
    """Outputs of groups as one, in the order of the batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        if any(not p.ndim or len(p) != n for p, n in zip(parts, counts, strict=True)):
            raise PETLError(
                f'what leaves has shapes {[tuple(p.shape) for p in parts]} for '
                f'{counts} samples, and so no row for each'
            )
        if len({p.shape[1:] for p in parts}) > 1:
            raise PETLError(
                'slots hand over features of different shapes: '
                f'{sorted({tuple(p.shape[1:]) for p in parts})}'
            )
        return torch.cat(parts).index_select(0, order.to(first.device))
    if isinstance(first, Mapping):
        made = {
            key: _joined([part[key] for part in parts], counts, order) for key in first
        }
        return made if type(first) is dict else type(first)(**made)
    if isinstance(first, tuple | list):
        made = [_joined(list(row), counts, order) for row in zip(*parts, strict=True)]
        named = hasattr(first, '_fields')
        return type(first)(*made) if named else type(first)(made)
    if first is None:
        return None
    raise PETLError(
        f'a {type(first).__name__} leaves, and no tensors; give call= what returns some'
    )
