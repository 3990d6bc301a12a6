"""Different slots for different samples of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError
from mmpetl.core.injection import injection_of
from mmpetl.core.slots import pick_slot, set_active


@torch.no_grad()
def run_by_slot(
    model: nn.Module,
    inputs: Any,
    slots: Sequence[str | None],
    call: Callable[[Any], Any] | None = None,
) -> Any:
    """Run a batch in which each sample has a slot of its own, without gradients.

    The samples of one slot run together, with that slot on and all others off, and
    outputs come back in the order of the batch. So it serves every method, prompts and
    base parameters included, and computes for each sample just what its slot computes.

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
        PETLError: There is no such slot, there are more or fewer than samples, or what
            leaves is not by sample.
    """
    module, record = injection_of(model)
    for slot in slots:
        if slot is not None:
            pick_slot(record, slot)
    size = _size_of(inputs)
    if size != len(slots):
        raise PETLError(
            f'the batch has {size} samples, and {len(slots)} slots are named'
        )
    if not size:
        raise PETLError('the batch has no samples')

    def run(part: Any) -> Any:
        if call is not None:
            return call(part)
        if isinstance(part, Mapping):
            return model(**part)
        return model(*part) if isinstance(part, tuple) else model(part)

    groups = {
        slot: [i for i, own in enumerate(slots) if own == slot]
        for slot in dict.fromkeys(slots)
    }
    outputs = []
    with _kept(module):
        for slot, rows in groups.items():
            set_active(model, () if slot is None else slot)
            outputs.append(run(_rows(inputs, torch.tensor(rows))))
    order = torch.tensor([i for rows in groups.values() for i in rows]).argsort()
    counts = [len(rows) for rows in groups.values()]
    return _joined(outputs, counts, order)


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Slots are switched inside of it, and are as they were behind it."""
    _, record = injection_of(module)
    on = [name for name, slot in record.slots.items() if slot.enabled]
    try:
        yield
    finally:
        set_active(module, on)


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
