"""What a tuned model adds to its base, and proof that the base has not moved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpetl.core.delta_file import plain_key
from mmpetl.core.errors import PETLError
from mmpetl.core.inject import find_injected


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().cpu()
    hasher = hashlib.sha256(f'{tuple(data.shape)}{data.dtype}'.encode())
    hasher.update(data.flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()[:16]


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of shape, dtype and bytes per tensor; ``''`` on the meta device."""
    return {n: '' if t.is_meta else _digest(t) for n, t in tensors.items()}


def fingerprint(model: nn.Module) -> str:
    """Digest of the base weights of an injected model, as they were at injection.

    It does not depend on the method, so deltas of one base share it.

    Returns:
        16 hexadecimal digits.
    """
    hasher = hashlib.sha256()
    for prefix, module in find_injected(model):
        state = module.__dict__['_petl']
        # What trains with the head is new, so it is no part of the base's identity.
        for name in sorted(set(state.digests) - state.head):
            line = f'{plain_key(prefix)}:{name}={state.digests[name]}\n'
            hasher.update(line.encode())
    return hasher.hexdigest()[:16]


def base_changes(model: nn.Module) -> list[str]:
    """Names of frozen base parameters that differ from what they were at injection."""
    changed = []
    for prefix, module in find_injected(model):
        state = module.__dict__['_petl']
        selected = state.selected()
        frozen = {
            n: p
            for n, p in module.named_parameters()
            if n in state.base and n not in selected
        }
        now = tensor_digests(frozen)
        changed += [
            f'{prefix}.{n}'.lstrip('.') for n, d in now.items() if d != state.digests[n]
        ]
    return changed


def frozen_keys(model: nn.Module) -> set[str]:
    """Keys of ``model.state_dict()`` that belong to the frozen base."""
    keys = set()
    for prefix, module in find_injected(model):
        state = module.__dict__['_petl']
        frozen = state.base - state.selected()
        keys |= {f'{prefix}.{name}'.lstrip('.') for name in frozen}
    return keys


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """The state minus the frozen base: deltas, what they select, and all heads.

    Args:
        model: An injected backbone, or a model that contains one.
    """
    frozen = frozen_keys(model)
    return {k: v for k, v in model.state_dict().items() if k not in frozen}


def load_delta_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`delta_state` gave, all of it, or raise and change nothing.

    Raises:
        PETLError: Keys or shapes differ from what the model expects.
    """
    expected = delta_state(model)
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    if missing or extra:
        raise PETLError(
            f'the delta does not fit {type(model).__name__}: {_names(missing)} '
            f'missing and {_names(extra)} not expected; was it made with another '
            'method, depth or head?'
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise PETLError(
                f'{key} has shape {tuple(value.shape)} in the delta and '
                f'{tuple(expected[key].shape)} in {type(model).__name__}; was it made '
                'with other sizes?'
            )
    with torch.no_grad():
        for key, value in state.items():
            expected[key].copy_(value)


def _names(keys: list[str], show: int = 2) -> str:
    if not keys:
        return 'nothing is'
    more = f' and {len(keys) - show} more' if len(keys) > show else ''
    return f'{", ".join(keys[:show])}{more} {"is" if len(keys) == 1 else "are"}'
