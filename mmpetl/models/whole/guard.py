"""What a whole tuned model sees to by itself, in whichever Runner it is.

A config with nothing of mmpetl but its ``model`` line has none of our hooks, and its
checkpoints are read by functions that know nothing of deltas. So the model itself

- writes the fingerprint of its base into its state, and compares it when a state
  without a base is loaded: upstream's ``init_detector`` and ``init_model`` drop
  ``init_cfg`` and would leave the base random;
- takes a whole checkpoint as its new base, on record, or says what does not fit;
- keeps frozen modules in eval mode, and looks, before it trains, whether its trunks
  are still the injected ones;
- looks, at the first step of an optimizer, whether that one holds the deltas, at
  their full rate, and whether gradients reach them.

All of it hangs on the instance, as functions of this module: the class stays
upstream's, and copies and pickles keep it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from mmpetl.core import (
    Owner,
    PETLError,
    fingerprint,
    frozen_keys,
    injections,
    load_base,
    owners,
)
from mmpetl.core.delta_file import BASE_KEY
from mmpetl.core.errors import shorten
from mmpetl.core.fingerprint import tensor_digests
from mmpetl.core.host import Host
from mmpetl.core.injection import Injection, find_submodule
from mmpetl.core.sitemap import is_below


@dataclass
class Guarded:
    """What the guard of a model knows.

    Attributes:
        freeze: Paths of modules outside of the trunks that do not train.
        checked: Whether the trunks were looked at since something was loaded.
        without: Optimizers that made a step and hold nothing of the method.
    """

    freeze: tuple[str, ...] = ()
    checked: bool = False
    without: set[int] = field(default_factory=set)


def guard_model(model: nn.Module, freeze: Iterable[str] = ()) -> None:
    """Let a model with injected trunks watch over itself.

    Args:
        model: The whole model, upstream's own.
        freeze: Paths of modules outside of the trunks that stay as they are.

    Raises:
        PETLError: A path to freeze names nothing, or lies in a trunk.
    """
    freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    for path in freeze:
        _freeze(model, path)
    model.__dict__['_petl_model'] = Guarded(freeze)
    for part in model.modules():
        if hasattr(part, '_is_init'):
            part._is_init = True
    # MMEngine initialises once more when training starts; DETR and its kin redraw
    # their own parts on every call.
    model.init_weights = keep_weights
    model._register_state_dict_hook(_write_base)
    model.register_load_state_dict_pre_hook(_read_state)
    model.register_forward_pre_hook(_before_forward)
    _watch_steps(model)


def keep_weights(*args: Any, **kwargs: Any) -> None:
    """Nothing: the model was initialised before the injection."""


def _freeze(model: nn.Module, path: str) -> None:
    part = find_submodule(model, path)
    if part is None:
        names = ', '.join(name for name, _ in model.named_children())
        raise PETLError(
            f'freeze names {path!r}, and {type(model).__name__} has no such module; '
            f'there are: {names}'
        )
    trunks = [trunk for trunk, _, _ in injections(model)]
    if any(is_below(path, trunk) or is_below(trunk, path) for trunk in trunks):
        raise PETLError(
            f'{path} holds a trunk or lies in one, which is frozen anyway; drop it '
            'from freeze'
        )
    for param in part.parameters():
        param.requires_grad_(False)


# ----------------------------------------------------------------------- state


def _write_base(
    model: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any
) -> None:
    """Add the fingerprint of the base to a state."""
    if injections(model):
        like = next(iter(model.parameters()))
        digits = list(bytes.fromhex(fingerprint(model)))
        state[prefix + BASE_KEY] = torch.tensor(
            digits, dtype=torch.uint8, device=like.device
        )


def _read_state(
    model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Compare or take the base of a state that is about to be loaded."""
    given = state.pop(prefix + BASE_KEY, None)
    found = injections(model)
    if not found or not state:
        return
    inside = {
        k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
    }
    wanted = {
        _join(path, name): module.get_parameter(name)
        for path, module, record in found
        for name in set(record.digests) - record.selected()
    }
    missing = [name for name in wanted if name not in inside]
    has_delta = any('.petl.' in f'.{name}' for name in inside)
    if len(missing) < len(wanted):
        _take_base(model, inside, wanted, missing, given)
    elif wanted and (has_delta or given is not None):
        _compare(model, given)
        # Readers list what a state lacks, and a strict one stops: the base is here.
        own = model.state_dict()
        for name in frozen_keys(model) & set(own):
            state.setdefault(prefix + name, own[name])
    elif wanted and not set(inside) & set(model.state_dict()):
        raise PETLError(
            f'what is loaded fits nothing in {type(model).__name__} (it begins with '
            f'{next(iter(inside))}): it is no delta and no checkpoint of this model; '
            'name base weights as base= of mmpetl.PETLModel'
        )
    model.__dict__['_petl_model'].checked = False


def _join(path: str, name: str) -> str:
    return f'{path}.{name}' if path else name


def _compare(model: nn.Module, given: Tensor | None) -> None:
    here = fingerprint(model)
    base = _base_of(model)
    if given is None:
        raise PETLError(
            'the delta that is loaded does not say which base it was made on; load it '
            'with mmpetl.apis.load_delta, which compares them'
        )
    there = bytes(given.tolist()).hex()
    if there != here:
        raise PETLError(
            f'the delta that is loaded was made on the base [{there}], this model '
            f'holds {base} [{here}]; name its base as base=FILE of mmpetl.PETLModel '
            "(init_detector and init_model drop the backbone's init_cfg, not base)"
        )


def _base_of(model: nn.Module) -> str:
    return injections(model)[0][2].source.get('checkpoint') or 'a random one'


def _take_base(
    model: nn.Module,
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    missing: list[str],
    given: Tensor | None,
) -> None:
    """Let a whole checkpoint be the base, if it is another one."""
    if missing:
        raise PETLError(
            f'what is loaded holds a part of the base: {shorten(missing)} are not in '
            'it; load a delta or a whole checkpoint, or name the file as base= of '
            'mmpetl.PETLModel'
        )
    for name, param in wanted.items():
        if state[name].shape != param.shape:
            raise PETLError(
                f'{name} has shape {tuple(state[name].shape)} in what is loaded and '
                f'{tuple(param.shape)} in the model; name the file as base= of '
                'mmpetl.PETLModel, which resizes tables and names misfits'
            )
    there = tensor_digests({name: state[name].to(p) for name, p in wanted.items()})
    here = {
        _join(path, name): record.digest(name)
        for path, _, record in injections(model)
        for name in record.digests
    }
    if all(there[name] == here[name] for name in wanted):
        return
    if any(record.originals for _, _, record in injections(model)) and any(
        '.petl.' in f'.{name}' or given is not None for name in state
    ):
        raise PETLError(
            'what is loaded is tuned on another base than this model holds '
            f'({_base_of(model)}), and does not say the base of what its method '
            'selects; name that base as base=FILE of mmpetl.PETLModel'
        )
    if load_base(model, state):
        print_log(
            f'the base of {type(model).__name__} is now that of the checkpoint that '
            f'is loaded [{fingerprint(model)}]; deltas need it as base=',
            logger='current',
        )


# -------------------------------------------------------------------- training


def _before_forward(model: nn.Module, args: Any) -> None:
    """Keep frozen modules asleep; look at the trunks before the first step."""
    if not model.training:
        return
    guarded = model.__dict__['_petl_model']
    for path in guarded.freeze:
        part = model.get_submodule(path)
        if part.training:
            part.eval()
    if guarded.checked:
        return
    for path, module, record in injections(model):
        _check_hosts(path, module, record)
        _check_flags(path, module, record)
    guarded.checked = True


def _check_hosts(path: str, module: nn.Module, record: Injection) -> None:
    hosts = {site.host for slot in record.slots.values() for site in slot.sites}
    for name in sorted(hosts):
        host = find_submodule(module, name) if name else module
        if not isinstance(host, Host):
            raise PETLError(
                f'{_join(path, name)} is a {type(host).__name__} and runs no delta any '
                'more: something has exchanged the module after the injection, as '
                'conversions to SyncBN do (sync_bn of the config); leave that out, or '
                'convert before'
            )
    for name, part in module.named_modules():
        forward = part.__dict__.get('forward')
        if 'activation_checkpointing' in _file_of(forward):
            raise PETLError(
                f"activation_checkpointing wraps {_join(path, name)} in torch's "
                'reentrant checkpoint, which hands no gradient to deltas over a frozen '
                'trunk; leave it out and set with_cp=True of the backbone'
            )


def _file_of(function: Any) -> str:
    code = getattr(function, '__code__', None)
    return '' if code is None else code.co_filename


def _check_flags(path: str, module: nn.Module, record: Injection) -> None:
    frozen = record.base - record.selected()
    loose = [
        _join(path, name)
        for name, param in module.named_parameters()
        if name in frozen and param.requires_grad
    ]
    if loose:
        raise PETLError(
            f'{shorten(loose)} of the frozen base would train: something set '
            'requires_grad after the injection; take that out, or choose a method that '
            'selects it'
        )


_unstepped: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_handles: list[Any] = []
"""Holds the hook of steps once it is there. It stays: torch walks over its hooks while
it calls them, so that none can take itself out."""


def _watch_steps(model: nn.Module) -> None:
    _unstepped.add(model)
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_before_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Look at the first step that an optimizer makes for a model."""
    if not _unstepped:
        return
    group_of = {id(p): g for g in optimizer.param_groups for p in g['params']}
    for model in list(_unstepped):
        tuned = _tuned(model)
        if not tuned:
            _unstepped.discard(model)
        elif any(id(param) in group_of for param in tuned.values()):
            _unstepped.discard(model)
            check_step(model, tuned, optimizer, group_of)
        elif any(id(param) in group_of for param in model.parameters()):
            # There may be others, of which one holds them; each steps in turn.
            without = model.__dict__['_petl_model'].without
            if id(optimizer) in without:
                check_step(model, tuned, optimizer, group_of)
            without.add(id(optimizer))


def _tuned(model: nn.Module) -> dict[str, nn.Parameter]:
    """What methods train: their own parameters and those that they select."""
    who = owners(model)
    ours = (Owner.DELTA, Owner.SELECTED)
    return {
        name: param
        for name, param in model.named_parameters()
        if who[name] in ours and param.requires_grad
    }


def check_step(
    model: nn.Module,
    tuned: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    group_of: Mapping[int, dict[str, Any]],
) -> None:
    """Refuse a step that would not tune what it should.

    Raises:
        PETLError: The optimizer lacks parameters of the method, or slows them down by
            what was meant for a whole backbone; no gradient reaches any of them; or a
            data pass of the method has not been made.
    """
    absent = [name for name, param in tuned.items() if id(param) not in group_of]
    if absent:
        raise PETLError(
            f'the optimizer does not hold {shorten(absent)}, which the method trains; '
            'build it after the model, of all of its parameters'
        )
    if all(param.grad is None for param in tuned.values()):
        raise PETLError(
            f'no gradient reaches {shorten(list(tuned))}: the trunk ran without '
            'gradients (torch.no_grad, or a reentrant checkpoint around it), so the '
            'method would learn nothing'
        )
    _check_rates(model, tuned, optimizer, group_of)
    for _, module, record in injections(model):
        buffers = dict(module.named_buffers())
        for name, slot in record.slots.items():
            done = buffers.get(f'petl.shared.{name}.done')
            active = slot.enabled and not slot.frozen and slot.method.calibrates
            if active and done is not None and not bool(done):
                raise PETLError(
                    f'{type(slot.method).__name__} needs a pass over the data before '
                    "it trains; add runner_type = 'mmpetl.TuningRunner' to the config, "
                    'which makes it'
                )


def _check_rates(
    model: nn.Module,
    tuned: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    group_of: Mapping[int, dict[str, Any]],
) -> None:
    """Refuse, or for layer decay say, that deltas train at a part of the rate."""
    full = optimizer.defaults.get('lr')
    if not full:
        return
    rates = {id(g): g.get('initial_lr', g['lr']) for g in optimizer.param_groups}
    top = max(rates.values())
    trunks = [path for path, _, _ in injections(model)]
    slow, decayed = {}, {}
    for name, param in tuned.items():
        group = group_of[id(param)]
        rate = rates[id(group)]
        if rate >= 0.999 * full or rate >= 0.999 * top or _is_wanted(group, trunks):
            continue
        (decayed if 'lr_scale' in group else slow)[name] = rate / full
    if slow:
        name, factor = min(slow.items(), key=lambda item: item[1])
        ours = 'name' in group_of[id(tuned[name])]
        way = (
            'put it below paramwise_cfg.outside'
            if ours
            else "add runner_type = 'mmpetl.TuningRunner' to the config (it applies "
            'paramwise_cfg to what is outside of the backbone)'
        )
        raise PETLError(
            f'{name} would train at {factor:.3g} of the rate, by a paramwise_cfg that '
            f'was meant for a whole backbone; {way}'
        )
    if decayed:
        low, high = min(decayed.values()), max(decayed.values())
        print_log(
            f'{len(decayed)} tensors of the method train at {low:.3g} to {high:.3g} of '
            "the rate, by upstream's layer decay; runner_type = 'mmpetl.TuningRunner' "
            'applies it to what is outside of the backbone',
            logger='current',
            level=logging.WARNING,
        )


def _is_wanted(group: Mapping[str, Any], trunks: Iterable[str]) -> bool:
    """Whether our constructor was told this rate for deltas."""
    name = str(group.get('name', ''))
    if not name.startswith((Owner.DELTA.value, Owner.SELECTED.value)):
        return False
    key = name.partition('[')[2].rpartition(']')[0]
    return not key or not any(key in f'{trunk}.' for trunk in trunks)
