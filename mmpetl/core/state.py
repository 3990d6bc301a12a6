"""What a tuned model adds to its base."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.delta_file import BASE_KEY, check_values, plain_key
from mmpetl.core.errors import PETLError, shorten
from mmpetl.core.injection import injections
from mmpetl.core.sitemap import is_below
from mmpetl.lazy import moved_names


def frozen_keys(model: nn.Module) -> set[str]:
    """Keys of ``model.state_dict()`` that belong to the frozen base."""
    keys = set()
    for prefix, _, record in injections(model):
        frozen = record.base - record.selected()
        keys |= {f'{prefix}.{name}'.lstrip('.') for name in frozen}
    return keys


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """The state minus the frozen base: deltas, what they select, and all heads.

    What switched-off slots have learnt is among it, below ``petl.kept``.

    Args:
        model: An injected backbone, or a model that contains one.
    """
    frozen = frozen_keys(model)
    return {k: v for k, v in model.state_dict().items() if k not in frozen}


def head_state(model: nn.Module) -> dict[str, Tensor]:
    """What of :func:`delta_state` belongs to no method: heads, buffers included."""
    found = delta_state(model)
    for path, _, record in injections(model):
        prefix = f'{path}.' if path else ''
        for key in [key for key in found if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            is_of_base = name in record.base and name not in record.head
            if is_of_base or 'petl' in name.split('.'):
                del found[key]
    return found


def load_delta_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`delta_state` gave, all of it, or raise and change nothing.

    Raises:
        PETLError: Keys or shapes differ from what the model expects.
    """
    fill(type(model).__name__, delta_state(model), state)


def fill(who: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a state into the tensors that expect it, all of it or nothing.

    Args:
        who: What it is loaded into, for messages.
        expected: Tensors that are written to.
        state: Their values.

    Raises:
        PETLError: Keys, shapes or kinds of numbers differ, or a value is not finite.
    """
    # It says which base a state is of, and is compared where states are read.
    expected, state = (
        {k: v for k, v in part.items() if k != BASE_KEY} for part in (expected, state)
    )
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    if missing or extra:
        raise PETLError(
            f'the delta does not fit {who}: {_names(missing)} missing and '
            f'{_names(extra)} not expected; was it made with another method, depth or '
            'head?'
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise PETLError(
                f'{key} has shape {tuple(value.shape)} in the delta and '
                f'{tuple(expected[key].shape)} in {who}; was it made with other sizes?'
            )
    check_values(state, expected)
    with torch.no_grad():
        for key, value in state.items():
            expected[key].copy_(value)


def completed(
    model: nn.Module,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Complete a delta of an older version by what the model starts with.

    Args:
        model: An injected model.
        expected: Its tensors by the keys of ``state``.
        state: The tensors of the delta.
        facts: What the delta says of itself. Without ``sites`` it is from when the norm
            behind a mean over tokens had no site in plain image transformers; without
            ``head`` it may lack the buffers of heads inside of a backbone, which a
            warning names.
    """
    missing = {k: v for k, v in expected.items() if k not in state}
    found: dict[str, Tensor] = {}
    if 'sites' not in facts:
        later = _pooled_norms(model)
        found |= {
            k: v for k, v in missing.items() if any(is_below(k, p) for p in later)
        }
    if 'head' not in facts:
        inside = _buffers_of_inner_heads(model)
        lost = {k: v for k, v in missing.items() if plain_key(k) in inside}
        # A file that has one of them was written with all.
        if len(lost) == len(inside) > 0:
            warnings.warn(
                f'the delta is of an older version and lacks {shorten(sorted(lost))} '
                'of the head, which stay as they are; export it again from the '
                'trained model where there still is one',
                stacklevel=3,
            )
            found |= lost
    return {**found, **state}


def _buffers_of_inner_heads(model: nn.Module) -> set[str]:
    """Keys, free of wrappers, of buffers of heads that lie inside of a backbone."""
    heads = set(head_state(model)) - {name for name, _ in model.named_parameters()}
    prefixes = tuple(f'{path}.' if path else '' for path, _, _ in injections(model))
    return {plain_key(key) for key in heads if key.startswith(prefixes)}


def _pooled_norms(model: nn.Module) -> list[str]:
    """Paths of the deltas at norms behind a mean over tokens, and of these norms."""
    found = []
    for path, module, record in injections(model):
        names = {id(part): name for name, part in module.named_modules()}
        outer = record.site_map.outer_modules(module)
        for site in record.sites:
            if site.kind == 'out.norm' and site.index == site.num_blocks:
                for name in (site.path, names[id(outer[site.key])]):
                    found.append(plain_key(f'{path}.{name}'.lstrip('.')))
    return found


def _names(keys: list[str]) -> str:
    if not keys:
        return 'nothing is'
    return f'{shorten(keys)} {"is" if len(keys) == 1 else "are"}'


__getattr__, __dir__ = moved_names(
    __name__,
    {
        'base_changes': 'mmpetl.core.fingerprint',
        'fingerprint': 'mmpetl.core.fingerprint',
        'tensor_digests': 'mmpetl.core.fingerprint',
    },
)
