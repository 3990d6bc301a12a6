"""The frozen base spread over the processes of a run: each keeps its share of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmpetl.core import Injection, PETLError, injections
from mmpetl.core.fingerprint import converting, frozen_parameters
from mmpetl.core.injection import is_share, own_share


def shard_base(model: nn.Module, mesh: DeviceMesh | None = None) -> int:
    """Leave each process its share of the frozen weights of every block, in place.

    A block's weights are gathered when it runs, forward and backward, and dropped
    behind it (FSDP2, ``torch.distributed.fsdp.fully_shard``). What trains stays whole
    in every process, as the heads, the stem, what several blocks share, and what a
    method selects of the base: its gradients are averaged as without this, by
    DistributedDataParallel. No number changes: gathered weights are what they were.

    Call it in every process, behind the wrapper and before the first step; all of them
    run the model equally often from then on.

    Args:
        model: An injected backbone, or a model that contains some.
        mesh: The processes, one axis; by default all of them.

    Returns:
        Bytes that this process holds less.

    Raises:
        PETLError: Nothing is injected, the processes are fewer than two, the base is
            in few bits, or it is sharded already.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if several else 1
    found = _checked(model, count)
    if mesh is None:
        kind = next(model.parameters()).device.type
        mesh = init_device_mesh(kind, (count,))
    before = _bytes_here(model)
    for module, record in found:
        converting(module, record, lambda m=module, r=record: _shard(m, r, mesh))
    return before - _bytes_here(model)


def sharded_bytes(model: nn.Module, count: int) -> tuple[int, int]:
    """What :func:`shard_base` does to memory, told without any process.

    Args:
        model: An injected backbone, or a model that contains some.
        count: Processes that would share its base.

    Returns:
        Bytes that the first of them would hold less, and those of the largest block's
        weights that are gathered when it runs.

    Raises:
        PETLError: Nothing is injected, the processes are fewer than two, or the base is
            in few bits or sharded already.
    """
    spared = largest = 0
    for module, record in _checked(model, count):
        for _, frozen in _shared(module, record):
            whole = sum(p.numel() * p.element_size() for p in frozen)
            # Rows are dealt in equal chunks, of which the first process has a full one.
            kept = sum(
                -(-len(p) // count) * p[:1].numel() * p.element_size() for p in frozen
            )
            spared, largest = spared + whole - kept, max(largest, whole)
    return spared, largest


def _checked(model: nn.Module, count: int) -> list[tuple[nn.Module, Injection]]:
    """Backbones whose bases so many processes can share, with their records."""
    found = [(module, record) for _, module, record in injections(model)]
    if not found:
        raise PETLError(
            f'{type(model).__name__} holds no method, so nothing of it is frozen that '
            'could be sharded'
        )
    if count < 2:
        raise PETLError(
            'a base is sharded over the processes of a run, and this one has one; '
            'start several (tools/dist_train.sh CONFIG GPUS, or --gpus)'
        )
    for module, record in found:
        _check(module, record)
    return found


def _check(module: nn.Module, record: Injection) -> None:
    name = type(module).__name__
    if record.bits is not None:
        raise PETLError(
            f'the base of {name} is in {record.bits} bits, which are not sharded; '
            'leave out one of base_bits and shard_base'
        )
    if any(is_share(param) for param in module.parameters()):
        raise PETLError(f'the base of {name} is sharded already')
    if not any(True for _ in _blocks(module, record)):
        raise PETLError(
            f'{name} is tuned layer by layer, and which blocks it has is said by no '
            'file; its base cannot be sharded'
        )


def _blocks(module: nn.Module, record: Injection) -> Iterator[nn.Module]:
    """The blocks of a trunk, which hold most of its weights."""
    hosts = dict.fromkeys(site.host for site in record.sites if site.kind == 'block')
    return (module.get_submodule(host) for host in hosts)


def _shared(
    module: nn.Module, record: Injection
) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The blocks, with those of their weights that are spread over the processes."""
    blocks = list(_blocks(module, record))
    uses = Counter(id(param) for block in blocks for param in set(block.parameters()))
    frozen = {
        id(param)
        for param in frozen_parameters(module, record).values()
        if not param.requires_grad and uses[id(param)] == 1
    }
    for block in blocks:
        if spread := [param for param in block.parameters() if id(param) in frozen]:
            yield block, spread


def _shard(module: nn.Module, record: Injection, mesh: DeviceMesh) -> None:
    # A list, for what is frozen is looked up before any of it is replaced.
    for block, spread in list(_shared(module, record)):
        whole = set(block.parameters()).difference(spread)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def _bytes_here(model: nn.Module) -> int:
    """Bytes of the parameters that this process holds."""
    here = (own_share(p) for p in model.parameters())
    return sum(tensor.numel() * tensor.element_size() for tensor in here)
