"""An adapter of peft as a run of mmpetl: a delta, and the config that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmpetl.apis.building import build_model, dataset_meta
from mmpetl.apis.delta import export_delta
from mmpetl.apis.model import part_of
from mmpetl.apis.peft_files import load_peft
from mmpetl.config.add_petl import add_petl
from mmpetl.core import PETLError, find_injected, injection_of, load_delta_state
from mmpetl.core.delta_file import write_all
from mmpetl.core.state import delta_state
from mmpetl.models.whole.trunks import find_trunks


def import_peft(
    adapter: str | os.PathLike, config: Any, out: str | os.PathLike, module: str = ''
) -> tuple[Path, Path]:
    """Write an adapter as a delta, and the config of the model with its method.

    Args:
        adapter: Folder of the adapter.
        config: ``Config`` of the model without a method, with its base weights.
        out: Path without a suffix.
        module: Path of the part of the model whose paths the adapter has.

    Returns:
        ``<out>.safetensors``, with its record beside it, and ``<out>.py``.

    Raises:
        FileNotFoundError: A file of the adapter is missing.
        PETLError: The config has a method, or the adapter does not fit its model.
    """
    plain = build_model(config)
    if find_injected(plain):
        raise PETLError(
            'the config has a method already, and the adapter brings its own; give '
            'that of the model without one'
        )
    where, *others = find_trunks(plain, None)
    if others:
        raise PETLError(
            f'the model has trunks at {where}, {", ".join(others)}, and an adapter is '
            'of one'
        )
    part = part_of(plain, module)
    trunk = '' if f'{module}.'.startswith(f'{where}.') else _below(where, module)
    load_peft(part, adapter, trunk=trunk)
    _, record = injection_of(plain)
    slots = [(s.method.config(), list(s.layers or ())) for s in record.slots.values()]
    if len(slots) == 1:
        method, layers = slots[0]
        tuned = add_petl(config, method, layers=layers or None)
    else:
        entries = [m | ({'layers': layers} if layers else {}) for m, layers in slots]
        tuned = add_petl(config, entries)
    model = build_model(tuned)
    load_delta_state(model, delta_state(plain))
    model.dataset_meta = dataset_meta(tuned)
    delta = export_delta(model, tuned, out)
    text = Path(out).with_suffix('.py') if Path(out).suffix else Path(f'{out}.py')
    write_all({text: tuned.pretty_text.encode()})
    return delta, text


def _below(path: str, part: str) -> str:
    """A path in the model as one in a part of it.

    Raises:
        PETLError: It is not in that part.
    """
    if not part:
        return path
    if not path.startswith(f'{part}.'):
        raise PETLError(f'the trunk is {path!r}, which is not in {part!r}')
    return path.removeprefix(f'{part}.')
