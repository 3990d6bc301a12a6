"""Passes that are accumulated to one step: what they read, and what moves on with it.

A process that makes ``passes`` passes for a step stands for so many processes. It reads
what they would, and its schedules move as theirs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import DATA_SAMPLERS as SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from mmpetl.core import PETLError, check_range
from mmpetl.registry import DATA_SAMPLERS, HOOKS


@HOOKS.register_module()
class AccumulatingSchedulerHook(ParamSchedulerHook):
    """Moves schedules by iteration on with the steps of the optimizer.

    MMEngine's hook moves them with every pass. Those that a config counts in iterations
    count steps here. Those that MMEngine converts from epochs count passes, since an
    epoch has so many of them, and move by ``passes`` at each step.

    Args:
        passes: Passes of a step, as of ``optim_wrapper.accumulative_counts``.
    """

    def __init__(self, passes: int = 1) -> None:
        check_range('AccumulatingSchedulerHook', 'passes', passes, 1)
        self.passes = passes
        self._counts: list[int] = []

    def before_train(self, runner: Any) -> None:
        """Find out what each schedule counts."""
        given = runner.cfg.get('param_scheduler') or []
        given = given if isinstance(given, list | tuple) else [given]
        self._counts = [
            self.passes if one.get('convert_to_iter_based') else 1 for one in given
        ]

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Move on, if the optimizer has."""
        schedulers = runner.param_schedulers
        if not schedulers or not runner.optim_wrapper.should_update():
            return
        if not isinstance(schedulers, list) or len(schedulers) != len(self._counts):
            raise PETLError(
                'accumulation to a batch needs param_scheduler as one list, of one '
                'optimizer'
            )
        for scheduler, count in zip(schedulers, self._counts, strict=True):
            for _ in range(0 if scheduler.by_epoch else count):
                scheduler.step()


@DATA_SAMPLERS.register_module()
class SharesSampler(Sampler):
    """Batches of several processes, one after another in this one.

    Of ``P`` processes with ``passes`` shares each, this one reads what the processes
    ``rank, rank + P, ...`` of ``P x passes`` would: the same samples in the same
    batches, and as many batches of each.

    Args:
        sampler: Indices of this process.
        batch_size: Samples of a pass.
        passes: Shares.
        inner: Config of the batch sampler of each share; torch's by default.
        drop_last: Whether torch's drops what does not fill a batch.

    Raises:
        PETLError: The sampler cannot be told which share it is of.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        passes: int,
        inner: Mapping[str, Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        check_range('SharesSampler', 'passes', passes, 1)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = Shares([share(sampler, i, passes) for i in range(passes)])
        self._batches = []
        for one in self.sampler.samplers:
            given = {'sampler': one, 'batch_size': batch_size}
            self._batches.append(
                SAMPLERS.build(dict(inner), default_args=given)
                if inner
                else BatchSampler(one, batch_size, drop_last)
            )

    def __iter__(self) -> Iterator[list[int]]:
        # A sampler may end with fewer batches than others only where it drops some.
        for batches in zip(*self._batches, strict=False):
            yield from batches

    def __len__(self) -> int:
        return len(self._batches) * min(len(batches) for batches in self._batches)


class Shares(Sampler):
    """The samplers of all shares, as one that an epoch can be set for."""

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self.samplers = list(samplers)
        self.dataset = samplers[0].dataset

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch to all of them."""
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        for sampler in self.samplers:
            yield from sampler

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.samplers)


def share(sampler: Any, number: int, passes: int) -> Any:
    """The sampler of one of the processes that this one stands for.

    Raises:
        PETLError: It is none of MMEngine's two.
    """
    found = copy.copy(sampler)
    if type(sampler) not in (DefaultSampler, InfiniteSampler):
        raise PETLError(
            f'{type(sampler).__name__} cannot be shared out to accumulated passes; '
            'take DefaultSampler or InfiniteSampler, or ask for processes'
        )
    found.rank = sampler.rank + number * sampler.world_size
    found.world_size = sampler.world_size * passes
    if isinstance(found, InfiniteSampler):
        found.indices = found._indices_of_rank()
        return found
    size = len(found.dataset)
    if found.round_up:
        found.num_samples = math.ceil(size / found.world_size)
        found.total_size = found.num_samples * found.world_size
    else:
        found.num_samples = math.ceil((size - found.rank) / found.world_size)
    return found
