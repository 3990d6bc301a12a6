"""timm's cosine rule, which the published image recipes were run with."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim import _ParamScheduler

from mmpetl.core import PETLError, check_range
from mmpetl.registry import PARAM_SCHEDULERS

ENDLESS = 10**9
"""MMEngine's ``end`` of a schedule that has none."""


@PARAM_SCHEDULERS.register_module()
class TimmCosineLR(_ParamScheduler):
    """Linear warm-up, then a cosine that has run since epoch 0.

    For an epoch t, with W epochs of warm-up, T of the cosine, rate r and floor m::

        t < W        start + t (r - start) / W
        W <= t < T   m + (r - m) (1 + cos(pi t / T)) / 2
        t >= T       m

    So the rate jumps at W to what the cosine has come down to by then (97.6 % of r for
    10 of 100). MMEngine's pair LinearLR and CosineAnnealingLR has no such jump.

    Args:
        optimizer: The optimizer or its wrapper.
        T_max: Epochs of the cosine, counted from 0.
        warmup: Epochs of warm-up.
        start: Rate at epoch 0.
        eta_min: Floor.
        late: Whether the rule is applied after each epoch, as scripts do that call
            ``step(epoch)`` there: epoch 0 runs at ``start``, epoch e at f(e - 1). A
            number says how many steps of the schedule late it is.
        begin: First epoch.
        end: Last epoch, exclusive.
        last_step: Epochs already done.
        verbose: Whether to print every change.
    """

    def __init__(
        self,
        optimizer: Any,
        T_max: int,
        warmup: int = 0,
        start: float = 0.0,
        eta_min: float = 0.0,
        late: bool | int = False,
        begin: int = 0,
        end: int = ENDLESS,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        check_range('TimmCosineLR', 'T_max', T_max, 1)
        check_range('TimmCosineLR', 'warmup', warmup, 0, T_max)
        check_range('TimmCosineLR', 'start', start, 0)
        check_range('TimmCosineLR', 'eta_min', eta_min, 0)
        self.T_max = T_max
        self.warmup = warmup
        self.start = start
        self.eta_min = eta_min
        self.late = late
        super().__init__(
            optimizer,
            param_name='lr',
            begin=begin,
            end=end,
            last_step=last_step,
            by_epoch=by_epoch,
            verbose=verbose,
        )

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        T_max: int,
        warmup: int = 0,
        late: bool | int = False,
        begin: int = 0,
        end: int = ENDLESS,
        by_epoch: bool = True,
        epoch_length: int | None = None,
        **kwargs: Any,
    ) -> TimmCosineLR:
        """The same rule by iterations; MMEngine asks for it by the config.

        At the end of each epoch the rate is that of the rule by epochs.

        Args:
            args: The optimizer.
            T_max: In epochs.
            warmup: In epochs.
            late: In epochs; True for one.
            begin: In epochs.
            end: In epochs.
            by_epoch: That the arguments count epochs.
            epoch_length: Iterations of an epoch.
            kwargs: Arguments that count nothing.

        Raises:
            PETLError: The arguments are in iterations, or an epoch has none.
        """
        if not by_epoch or not epoch_length:
            raise PETLError(
                'TimmCosineLR converts epochs of at least one iteration; leave '
                'by_epoch=False or convert_to_iter_based out'
            )
        return cls(
            *args,
            T_max=T_max * epoch_length,
            warmup=warmup * epoch_length,
            late=int(late) * epoch_length,
            begin=begin * epoch_length,
            end=end if end >= ENDLESS else end * epoch_length,
            by_epoch=False,
            **kwargs,
        )

    def value(self, base: float, epoch: int) -> float:
        """The rate of an epoch for a group whose own rate is ``base``."""
        t = max(0, epoch - int(self.late))
        if t < self.warmup:
            return self.start + t * (base - self.start) / self.warmup
        if t >= self.T_max:
            return self.eta_min
        swing = 1 + math.cos(math.pi * t / self.T_max)
        return self.eta_min + 0.5 * (base - self.eta_min) * swing

    def _get_value(self) -> list[float]:
        return [self.value(base, self.last_step) for base in self.base_values]
