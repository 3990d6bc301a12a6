"""Digests of tensors, and proof that a frozen base has not moved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mmpetl.core.delta_file import plain_key
from mmpetl.core.errors import PETLError, shorten
from mmpetl.core.injection import Injection, injections, own_share
from mmpetl.core.packed import PackedWeight, stored


def _update(hasher: hashlib._Hash, tensor: Tensor) -> None:
    if isinstance(tensor, PackedWeight):
        # What its class says of itself names the device.
        for part in stored(tensor):
            _update(hasher, part)
        return
    inner = getattr(tensor, '__tensor_flatten__', None)
    if inner is not None:
        # A quantised tensor says which plain tensors it is made of.
        names, facts = inner()
        hasher.update(f'{type(tensor).__name__}{facts}'.encode())
        for name in names:
            _update(hasher, getattr(tensor, name))
        return
    # FSDP's kind has flattened itself above; DeepSpeed's parts hang at a parameter.
    data = own_share(tensor).detach().contiguous().cpu()
    hasher.update(f'{tuple(data.shape)}{data.dtype}'.encode())
    hasher.update(data.flatten().view(torch.uint8).numpy())


def _digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        return ''
    hasher = hashlib.sha256()
    try:
        _update(hasher, tensor)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise PETLError(
            f'{name} is a {type(tensor).__name__}, whose contents cannot be read, so '
            f'the base cannot be told from another one ({error})'.splitlines()[0]
        ) from error
    return hasher.hexdigest()[:16]


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of shape, dtype and bytes per tensor; ``''`` on the meta device.

    Raises:
        PETLError: A tensor class hides what it holds.
    """
    return {name: _digest(name, tensor) for name, tensor in tensors.items()}


def fingerprint(model: nn.Module) -> str:
    """Digest of the base weights of an injected model, as they were at injection.

    It does not depend on the method, so deltas of one base share it.

    Returns:
        16 hexadecimal digits.
    """
    hasher = hashlib.sha256()
    for prefix, _, record in injections(model):
        # What trains with the head is new, so it is no part of the base's identity.
        for name in sorted(set(record.digests) - record.head):
            line = f'{plain_key(prefix)}:{name}={record.digests[name]}\n'
            hasher.update(line.encode())
    return hasher.hexdigest()[:16]


def base_changes(model: nn.Module) -> list[str]:
    """Names of frozen base parameters that differ from what they were at injection."""
    return [
        f'{prefix}.{name}'.lstrip('.')
        for prefix, module, record in injections(model)
        for name in changed(module, record)
    ]


def changed(
    module: nn.Module, record: Injection, among: Iterable[str] | None = None
) -> list[str]:
    """Frozen base parameters of one backbone that are not what they were.

    Args:
        module: The module with the sites.
        record: Its record.
        among: Only these are looked at; None means all.
    """
    frozen = frozen_parameters(module, record)
    if among is not None:
        frozen = {name: frozen[name] for name in among}
    now = tensor_digests(frozen)
    return [name for name, digest in now.items() if digest != record.digest(name)]


def frozen_parameters(module: nn.Module, record: Injection) -> dict[str, nn.Parameter]:
    """Parameters of one backbone that hold the base's own values."""
    selected = record.selected()
    return {
        name: param
        for name, param in module.named_parameters()
        if name in record.base and name not in selected
    }


def check_unmoved(module: nn.Module, record: Injection) -> None:
    """Stop where something has written to the frozen base since the last look.

    Writing in place raises a tensor's version, so that digests are taken of those
    tensors alone.

    Raises:
        PETLError: A frozen parameter differs from what it was at injection.
    """
    frozen = frozen_parameters(module, record)
    now = {name: (id(p), p._version) for name, p in frozen.items()}
    touched = [n for n, at in now.items() if record.versions.get(n) != at]
    if record.versions and touched:
        moved = changed(module, record, touched)
        if moved:
            raise PETLError(
                f'{len(moved)} of {len(frozen)} frozen parameters of the base were '
                f'overwritten after the injection ({shorten(moved)}): an initialiser '
                'or a checkpoint that was loaded too late (load the base first and '
                'inject then), or a delta that writes to what ctx.affine gives'
            )
    record.versions = now


def converting(
    module: nn.Module, record: Injection, convert: Callable[[], object]
) -> None:
    """Run a conversion that a user asks for, after which the base is the new values.

    What had moved before stays reported.
    """
    frozen = frozen_parameters(module, record)
    moved = set(changed(module, record))
    convert()
    now = dict(module.named_parameters())
    fresh = {name: now[name] for name in frozen if name not in moved}
    record.converted |= tensor_digests(fresh)
