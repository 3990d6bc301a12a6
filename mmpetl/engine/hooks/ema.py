"""An average of what trains: the weights that some published code evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.core.errors import shorten
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.resumable import check_fits
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class TrainableEMAHook(Hook):
    """Keeps ``a <- decay a + (1 - decay) p`` of every trainable p, and evaluates a.

    MMEngine's EMAHook keeps a second copy of the whole model; here the average is as
    small as what trains. Buffers are those of the model. Checkpoints hold the average
    in place of the model's own values, which lie beside it for a resumed run.

    Args:
        decay: Between 0 and 1; timm's ``--model-ema-decay``.
    """

    # Behind the optimizer, before any hook that evaluates or saves.
    priority = 'VERY_HIGH'

    KEY = 'own_values'
    """Where a checkpoint holds the values that train."""

    def __init__(self, decay: float = 0.9998) -> None:
        if not 0.0 < decay < 1.0:
            raise PETLError(f'TrainableEMAHook needs 0 < decay < 1, got {decay!r}')
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._swapped = False

    @staticmethod
    def _trainable(runner: Runner) -> dict[str, Tensor]:
        model = plain_model(runner)
        return {n: p.data for n, p in model.named_parameters() if p.requires_grad}

    def before_train_epoch(self, runner: Runner) -> None:
        """Start from the values there are, unless a checkpoint brought an average.

        What a data pass before training has drawn is among them.
        """
        values = self._trainable(runner)
        if not self._average:
            self._average = {name: value.clone() for name, value in values.items()}
        lacking = [name for name in values if name not in self._average]
        if lacking:
            raise PETLError(
                f'the average that was resumed lacks {shorten(lacking)}; in its run '
                'other parameters train'
            )

    @torch.no_grad()
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """One step of the average."""
        for name, value in self._trainable(runner).items():
            self._average[name].lerp_(value, 1.0 - self.decay)

    def _swap(self, runner: Runner) -> None:
        for name, value in self._trainable(runner).items():
            own = value.clone()
            value.copy_(self._average[name])
            self._average[name] = own
        self._swapped = not self._swapped

    def before_val_epoch(self, runner: Runner) -> None:
        """Evaluate the average."""
        if self._average and not self._swapped:
            self._swap(runner)

    def after_val_epoch(
        self, runner: Runner, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Train on with the model's own values."""
        if self._swapped:
            self._swap(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """See :meth:`before_val_epoch`."""
        self.before_val_epoch(runner)

    def after_test_epoch(
        self, runner: Runner, metrics: Mapping[str, float] | None = None
    ) -> None:
        """See :meth:`after_val_epoch`."""
        self.after_val_epoch(runner)

    def after_train(self, runner: Runner) -> None:
        """Leave the average in the model: it is what the run has made."""
        if not self._swapped:
            self._swap(runner)
        self._average, self._swapped = {}, False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the average where the model's values are, and these beside."""
        if not self._average:
            return
        state = checkpoint['state_dict']
        values = self._trainable(runner)
        average = values if self._swapped else self._average
        own = self._average if self._swapped else values
        checkpoint[self.KEY] = {name: own[name].cpu().clone() for name in own}
        for name in values:
            state[name] = average[name].cpu().clone()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the average apart from the model's own values, to train on."""
        own = checkpoint.get(self.KEY)
        if own is None or not runner._resume:
            return
        state = checkpoint['state_dict']
        place = str(getattr(runner, '_load_from', None) or 'the checkpoint')
        self._check(own, state, plain_model(runner), place)
        device = next(iter(self._trainable(runner).values())).device
        self._average = {name: state[name].to(device).clone() for name in own}
        for name, value in own.items():
            state[name] = value

    def _check(self, own: Any, state: Any, model: nn.Module, place: str) -> None:
        """Hold both the average and the model's own values to the model."""
        place = f'{place}: {self.KEY}'
        params = dict(model.named_parameters())
        if not isinstance(own, Mapping) or not all(
            isinstance(value, Tensor) for value in own.values()
        ):
            raise PETLError(f'{place} holds no tensors by name')
        for name in own:
            if name not in params or name not in state:
                where = 'the model' if name not in params else 'state_dict'
                raise PETLError(f'{place} has {name!r}, which {where} has not')
        check_fits(own, params, place)
        average = {name: state[name] for name in own}
        check_fits(average, params, f'{place}: the average')
