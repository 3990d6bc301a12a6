"""What a training step keeps in memory, by part.

A step's memory is affine in the batch: weights, gradients and the optimizer's state do
not depend on it, and every sample keeps the same activations. So a step is run with two
small batches, every tensor that lives is counted, and the line through both is the
estimate for any other. What kernels take for themselves while they run is not seen, nor
is what a GPU's allocator rounds up; docs/memory.md says what follows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpetl.core import Owner, owners
from mmpetl.core.packed import stored

GROUPS: Mapping[Owner, str] = {
    Owner.BASE: 'trunk',
    Owner.SELECTED: 'trunk',
    Owner.DELTA: 'deltas',
    Owner.HEAD: 'heads',
}
"""What an owner's parameters are called in an estimate."""


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made in it and still live.

    Storages count once, however many views look at them.

    Attributes:
        bytes: Of what lives now.
        peak: The most so far; set it to ``bytes`` to begin anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            part.untyped_storage()._cdata
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor)
            for part in stored(x)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            for part in stored(x) if isinstance(x, Tensor) else ():
                self._see(part, given)
        return out

    def _see(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        # A view, or what was there before this mode: not made here.
        if key in given or key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.bytes -= self._known.pop(key, 0)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step with one batch.

    Attributes:
        kept: Of what the forward pass keeps for the backward pass, its inputs too.
        gradients: Of the gradients when the backward pass is over.
        state: Of the optimizer.
        passes: The most that lives during forward and backward pass, beside weights
            and state.
        update: The most that lives while the optimizer steps, beside weights and state.
    """

    kept: int
    gradients: int
    state: int
    passes: int
    update: int


def bytes_of(tensors: Any) -> int:
    """Of the storages behind some tensors, each counted once."""
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors
    }
    return sum(storages.values())


def step_memory(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer
) -> StepMemory:
    """Run two training steps and count what lives in the second.

    Args:
        loss: Makes a batch and returns its loss.
        optimizer: Of all that trains. Its first step makes its state.
    """
    # The first step makes the optimizer's state, and what the model keeps for later.
    loss().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = bytes_of(
        x for x in tree_leaves(list(optimizer.state.values())) if isinstance(x, Tensor)
    )
    with Living() as living:
        value = loss()
        kept = living.bytes
        value.backward()
        del value
        passes, living.peak = living.peak, living.bytes
        optimizer.step()
        update = living.peak
    gradients = bytes_of(
        p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None
    )
    optimizer.zero_grad(set_to_none=True)
    return StepMemory(kept, gradients, state, passes, update)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training run by part.

    Attributes:
        batch: Samples of a step.
        trunk: Of the base's weights and of all buffers.
        deltas: Of the methods' own weights.
        heads: Of heads and necks.
        optimizer: Of the optimizer's state.
        gradients: Of what trains.
        kept: Of activations kept for the backward pass, with the batch itself.
        passes: The most that lives during the passes, beside weights and state.
        update: The same while the optimizer steps; no batch changes it.
        kept_per_sample: What one more sample adds to ``kept``.
        passes_per_sample: What one more sample adds to ``passes``.
        exchanged: Of the buffers in which processes exchange gradients.
        gathered: Of weights that are gathered while a block of a sharded base runs.
        before: Of all weights while a base that will be sharded is whole.
        offloaded: Of activations that wait in the memory of the machine; None where
            that was not asked for.
    """

    batch: int
    trunk: int
    deltas: int
    heads: int
    optimizer: int
    gradients: int
    kept: int
    passes: int
    update: int
    kept_per_sample: int
    passes_per_sample: int
    exchanged: int = 0
    gathered: int = 0
    before: int = 0
    offloaded: int | None = None

    @property
    def resting(self) -> int:
        """Of weights, buffers, the optimizer's state, and what processes exchange."""
        own = self.trunk + self.deltas + self.heads
        return own + self.optimizer + self.exchanged

    @property
    def peak(self) -> int:
        """The most that lives at once, all parts together."""
        step = self.resting + max(self.passes + self.gathered, self.update)
        return max(step, self.before)

    def fits(self, limit: int) -> int:
        """The largest batch whose peak is within ``limit`` bytes; 0 where none is."""
        if max(self.resting + self.update, self.before) > limit:
            return 0
        left = limit - self.resting - self.passes - self.gathered
        return max(0, self.batch + left // max(1, self.passes_per_sample))


def weights_of(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's parameters and buffers by part."""
    params = dict(model.named_parameters())
    found = dict.fromkeys(('trunk', 'deltas', 'heads'), 0)
    seen: set[int] = set()
    for name, owner in owners(model).items():
        # Of a weight in few bits, its integers and scales.
        for part in stored(params[name]):
            key = part.untyped_storage()._cdata
            if key not in seen:
                seen.add(key)
                found[GROUPS[owner]] += part.untyped_storage().nbytes()
    found['trunk'] += bytes_of(model.buffers())
    return found


def estimate(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    batch: int,
    tried: tuple[int, int] = (2, 3),
) -> MemoryEstimate:
    """Memory of training with a batch, from steps with two smaller ones.

    Args:
        model: In training mode, on the device that is asked about.
        loss_of: Makes a batch of so many samples and returns its loss.
        optimizer: Of all that trains.
        batch: Samples of a step.
        tried: The two batches that are run.
    """
    weights = weights_of(model)
    small, large = (step_memory(lambda n=n: loss_of(n), optimizer) for n in tried)
    step = tried[1] - tried[0]

    def at(name: str) -> tuple[int, int]:
        """Bytes at the batch asked for, and what a sample adds."""
        first, second = getattr(small, name), getattr(large, name)
        slope = max(0, (second - first) // step)
        return second + slope * (batch - tried[1]), slope

    kept, kept_per_sample = at('kept')
    passes, passes_per_sample = at('passes')
    return MemoryEstimate(
        batch=batch,
        **weights,
        optimizer=large.state,
        gradients=large.gradients,
        kept=kept,
        passes=passes,
        update=large.update,
        kept_per_sample=kept_per_sample,
        passes_per_sample=passes_per_sample,
    )
