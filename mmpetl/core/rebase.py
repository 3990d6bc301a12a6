"""Another base under an injected model, with a record that follows.

Injection renames no key, so a zoo detector's file fits the injected detector: its
trunk can replace the base, if digests, kept values and starts that are read off the
base are then those of the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.errors import PETLError
from mmpetl.core.fingerprint import fingerprint, tensor_digests
from mmpetl.core.injection import Injection, check_whole, injections, plug_of, tensor_of


@torch.no_grad()
def load_base(
    model: nn.Module, state: Mapping[str, Tensor], source: str | None = None
) -> bool:
    """Take the base of an injected model from the state of a whole one.

    Call it before training: what the method has learnt belongs to the old base.

    Args:
        model: A model that contains an injected backbone.
        state: State of a model of the same kind, with or without deltas.
        source: The file it comes from, for the record.

    Returns:
        Whether it was another base; if not, nothing is touched.

    Raises:
        PETLError: A tensor of the base is missing, or has another shape.
    """
    changed = False
    for _, module, record in injections(model):
        check_whole(module)
        if record.bits is not None:
            raise PETLError(
                f'the base of {type(module).__name__} is in {record.bits} bits, and '
                f'{source or "a state"} would be another under it; name that file as '
                'the base of the model (checkpoint= or base=)'
            )
    for path, module, record in injections(model):
        prefix = f'{path}.' if path else ''
        base = _base_in(state, module, record, prefix)
        _check_named_once(record, base, source)
        changed |= _rebase(module, record, base, state, prefix)
    if changed:
        for _, _, record in injections(model):
            record.source |= {
                'checkpoint': source and PurePath(source).name,
                'fingerprint': fingerprint(model),
            }
    return changed


def _base_in(
    state: Mapping[str, Tensor], module: nn.Module, record: Injection, prefix: str
) -> dict[str, Tensor]:
    params = {n: p for n, p in module.named_parameters() if n in record.base}
    missing = [n for n in params if prefix + n not in state]
    if missing:
        raise PETLError(
            f'the checkpoint is no delta of mmpetl (it has no such record), and no '
            f'whole model of this kind: {len(missing)} of {len(params)} tensors of the '
            f'base are not in it ({prefix}{missing[0]} is one); base weights go to '
            'model.backbone.checkpoint'
        )
    for name, param in params.items():
        if state[prefix + name].shape != param.shape:
            raise PETLError(
                f'{prefix}{name} has shape {tuple(state[prefix + name].shape)} in the '
                f'checkpoint and {tuple(param.shape)} in the model; name the file as '
                'model.backbone.checkpoint, which resizes tables and names misfits'
            )
    return {n: state[prefix + n].to(p) for n, p in params.items()}


def _check_named_once(
    record: Injection, base: Mapping[str, Tensor], source: str | None
) -> None:
    given = record.source.get('given')
    if given and _differs(record, base):
        raise PETLError(
            f'base={given} is in the model and {source or "a checkpoint"} is loaded '
            'over it, with another base; keep one of the two (load_from=None, or no '
            'base=)'
        )


def _differs(record: Injection, base: Mapping[str, Tensor]) -> bool:
    digests = tensor_digests({n: base[n] for n in set(base) - record.selected()})
    return any(digest != record.digests[name] for name, digest in digests.items())


def _rebase(
    module: nn.Module,
    record: Injection,
    base: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    prefix: str,
) -> bool:
    digests = tensor_digests(base)
    frozen = set(base) - record.selected()
    if all(digests[n] == record.digests[n] for n in frozen):
        return False
    for name, value in base.items():
        module.get_parameter(name).copy_(value)
    record.digests, record.converted, record.versions = digests, {}, {}
    buffers = {
        n: state[prefix + n]
        for n, b in module.named_buffers(remove_duplicate=False)
        if n in record.base and getattr(state.get(prefix + n), 'shape', None) == b.shape
    }
    for name, value in buffers.items():  # running statistics belong to a base
        tensor_of(module, name).copy_(value)
    known = record.originals | buffers | dict(base)
    record.originals = {n: known[n].to(v).clone() for n, v in record.originals.items()}
    if not any(k.startswith(prefix) and '.petl.' in f'.{k}' for k in state):
        _start_again(module, record)
    return True


def _start_again(module: nn.Module, record: Injection) -> None:
    """Read starts off the new base, for the methods that do so."""

    def weights(host: str, kind: str, index: int | None = None) -> Affine:
        site: Any = next(
            s
            for s in record.sites
            if s.host == host and s.kind == kind and index in (None, s.index)
        )
        return record.site_map.affine(module, site)

    for name, slot in record.slots.items():
        deltas = {site: plug_of(module, site)[name] for site in slot.sites}
        slot.method.initialise(deltas, weights)
