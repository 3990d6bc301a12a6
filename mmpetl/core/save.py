"""Saving and loading the delta of any injected model, whole or slot by slot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmpetl.core.delta_file import (
    BASE_KEY,
    FORMAT,
    SITES,
    check_facts,
    file_key,
    head_of,
    lone_slot,
    methods_of,
    plain_key,
    read_delta_file,
    to_data,
    write_delta_file,
)
from mmpetl.core.errors import PETLError, shorten
from mmpetl.core.fingerprint import changed, fingerprint
from mmpetl.core.host import check_hosts
from mmpetl.core.injection import (
    Injection,
    Slot,
    injection_of,
    injections,
    learnt_values,
    parts_of,
)
from mmpetl.core.sitemap import class_name
from mmpetl.core.slots import pick_slot
from mmpetl.core.state import completed, fill, head_state
from mmpetl.version import __version__


def save_delta(
    model: nn.Module, path: str | os.PathLike, slot: str | None = None
) -> Path:
    """Write what tuning has made of a model: two files, kilobytes, no code.

    They are the files of ``mmpetl publish``: tensors in
    ``<path>.safetensors``, method, base and fingerprint in ``<path>.json``.

    Args:
        model: An injected backbone, or a model that contains one; wrapped or not.
        path: Path without a suffix, or with either suffix.
        slot: Which method, with the heads; None means all. What a switched-off slot
            has learnt is saved like that of any other.

    Returns:
        The ``.safetensors`` file. Both files are whole or as they were before.

    Raises:
        PETLError: There is no method or no such slot, the base has moved, values are
            not finite, or a file cannot be written.

    Examples:
        >>> import tempfile, timm, mmpetl
        >>> model = mmpetl.inject(timm.create_model('test_vit'), 'SSF')
        >>> twin = timm.create_model('test_vit')
        >>> _ = twin.load_state_dict(model.state_dict(), strict=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = mmpetl.save_delta(model, f'{folder}/ssf')
        ...     _ = mmpetl.load_delta(mmpetl.inject(twin, 'SSF'), file)
    """
    module, record = injection_of(model)
    names = _names(record, slot)
    check_hosts(module, record)
    moved = changed(module, record)
    if moved:
        raise PETLError(
            f'{shorten(moved)} of the frozen base changed after the injection, so a '
            'delta of it would fit no base; load the base first and inject then'
        )
    return write_delta_file(
        path, delta_tensors(model, names), delta_facts(model, names)
    )


def load_delta(
    model: nn.Module, path: str | os.PathLike, slot: str | None = None
) -> nn.Module:
    """Load what :func:`save_delta` or ``publish_delta.py`` wrote.

    Args:
        model: A model that holds the same method on the same base.
        path: Either file, or the stem.
        slot: Which method it is for; None means all that the model holds.

    Returns:
        The model. Nothing in it has changed where an error is raised.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: A file is damaged; or method, arguments, depth, base or sizes are not
            the model's: what differs, both sides named.
    """
    tensors, facts = read_delta_file(path)
    if not injections(model):
        raise PETLError(
            f'{path} is a delta, and {type(model).__name__} holds no method; first '
            f'{_calls(facts)}'
        )
    _, record = injection_of(model)
    names = _names(record, slot)
    try:
        check_facts(facts, delta_facts(model, names))
        expected = delta_tensors(model, names)
        # Old files have the name that the slot had.
        own = lone_slot(tensors, len(names))
        found = {file_key(key, own): value for key, value in tensors.items()}
        found = completed(model, expected, found, facts)
        fill(type(model).__name__, expected, found)
    except PETLError as error:
        raise PETLError(f'{path}: {error}') from None
    return model


def delta_tensors(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Tensors of slots and heads by the keys of a file; they are the model's own.

    A base parameter that several of the slots select has the name it has in the
    backbone for the last of them, and lies below ``petl.kept`` for the others,
    whichever slots are switched on.
    """
    found: dict[str, Tensor] = {}
    for path, module, record in injections(model):
        prefix = f'{path}.' if path else ''
        for key, value in _slot_tensors(module, record, names).items():
            found[file_key(f'{prefix}{key}', names)] = value
    heads = head_state(model).items()
    found |= {plain_key(key): value for key, value in heads}
    return {key: value for key, value in found.items() if key != BASE_KEY}


def _slot_tensors(
    module: nn.Module, record: Injection, names: list[str]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in names:
        slot = record.slots[name]
        for path, part in parts_of(module, name, slot).items():
            for key, value in part.state_dict().items():
                found[f'{path}.{key}'] = value
        later = names[names.index(name) + 1 :]
        for key, value in learnt_values(module, record, name).items():
            shadowed = any(key in record.slots[n].selected for n in later)
            where = f'petl.kept.{name}.{key}' if shadowed else key
            found[where] = value.detach()
    return found


def delta_facts(model: nn.Module, names: list[str] | None = None) -> dict[str, Any]:
    """What a delta says of itself: format, version, method, backbone, base.

    Args:
        model: An injected model.
        names: Its slots; None means all of the first backbone.
    """
    (path, _, record), *others = injections(model)
    trunks = [
        {'path': plain_key(where), **_of_trunk(one, list(one.slots))}
        for where, _, one in ((path, None, record), *others)
    ]
    return {
        'format': FORMAT,
        'version': __version__,
        **_of_trunk(record, names or list(record.slots)),
        'base': record.source.get('checkpoint'),
        'fingerprint': fingerprint(model),
        'sites': SITES,
        **({} if record.bits is None else {'base_bits': record.bits}),
        **({'trunks': trunks} if others else {}),
    }


def _of_trunk(record: Injection, names: list[str]) -> dict[str, Any]:
    """What is said of one backbone: class, depth, methods, where they are, heads."""
    slots = [record.slots[name] for name in names]
    methods = [slot.method.config() for slot in slots]
    backbone = record.source.get('backbone') or {
        'type': class_name(record.site_map.host)
    }
    return {
        'method': to_data(methods[0] if len(methods) == 1 else methods),
        'backbone': to_data(backbone),
        'num_blocks': max((s.num_blocks for s in record.sites), default=0),
        'head': list(record.extra_head),
        **_where(slots),
    }


def _where(slots: list[Slot]) -> dict[str, Any]:
    """Which layers and blocks the slots are about; nothing where it is all of them."""
    where = [
        {'layers': slot.layers, 'blocks': slot.blocks}
        | ({} if slot.places is None else {'places': slot.places})
        for slot in slots
    ]
    if all(value is None for part in where for value in part.values()):
        return {}
    return {'where': to_data(where[0] if len(where) == 1 else where)}


def _calls(facts: Mapping[str, Any]) -> str:
    """The injections that make a model fit for a delta, for messages."""
    calls, head = [], head_of(facts)
    for method, part in methods_of(facts):
        # The first injection says it, and the others find it said.
        part |= {} if calls or not head else {'head': head}
        given = ''.join(f', {k}={v!r}' for k, v in part.items())
        calls.append(f'mmpetl.inject(model, {method!r}{given})')
    return ' and '.join(calls)


def _names(record: Injection, slot: str | None) -> list[str]:
    return list(record.slots) if slot is None else [pick_slot(record, slot)]
