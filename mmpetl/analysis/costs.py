"""What a model costs to run: operations, time, energy."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

RAPL = '/sys/class/powercap'
"""Where Linux shows the energy meters of a processor."""


@contextlib.contextmanager
def attention_in_parts() -> Iterator[None]:
    """Let fused attention run as matrix products, so that each of them is counted.

    The counter of torch knows some fused kernels of GPUs and not those of a CPU, and
    the fast path of ``nn.MultiheadAttention`` is one operator that it does not know.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Operations(TorchDispatchMode):
    """Counts floating-point operations of what is computed in it.

    The formulas are those of torch's own counter, which also keeps them by module and
    takes every other operator apart to look for some, at many times the cost.

    Attributes:
        total: Operations so far, two for each multiplication with its addition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._parts = attention_in_parts()

    def __enter__(self) -> Operations:
        self._parts.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._parts.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


def flops_of(compute: Callable[[], Any]) -> int:
    """Floating-point operations of what a function computes, backward passes included.

    Matrix products, convolutions and attention count, two for each multiplication with
    its addition; what works element by element does not. Also on the meta device.
    """
    with Operations() as counter:
        compute()
    return counter.total


def latencies(
    computes: Sequence[Callable[[], Any]], rounds: int = 11, warmup: int = 2
) -> list[float]:
    """Median seconds of each of several functions, timed by turns.

    By turns, for a machine that is busy for a while is so for all of them.
    """
    times: list[list[float]] = [[] for _ in computes]
    for turn in range(warmup + rounds):
        for found, compute in zip(times, computes, strict=True):
            _wait()
            began = time.perf_counter()
            compute()
            _wait()
            if turn >= warmup:
                found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def energy_of(compute: Callable[[], Any], least_s: float = 2.0) -> float | None:
    """Joules of one call, repeated for some seconds; None where there is no meter.

    Of a GPU its own counter, of a CPU that of the package (RAPL): both count whatever
    else runs there meanwhile.
    """
    before = _joules()
    if before is None:
        return None
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < least_s:
        compute()
        calls += 1
    _wait()
    after = _joules()
    if after is None or after < before:  # the counter has begun anew
        return None
    return (after - before) / calls


def _joules() -> float | None:
    if torch.cuda.is_available():
        with contextlib.suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        return None
    found = []
    for path in sorted(Path(RAPL).glob('intel-rapl:[0-9]*/energy_uj')):
        if path.parent.name.count(':') > 1:
            continue  # a part of a package
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1e6)
    return sum(found) if found else None
