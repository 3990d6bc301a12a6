"""Proof that the frozen base has not moved."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmpetl.core import (
    GradientWatch,
    Owner,
    PETLError,
    base_changes,
    check_hosts,
    injections,
    owners,
    tensor_digests,
)
from mmpetl.engine.hooks.common import plain_model
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class BaseGuardHook(Hook):
    """Stops the run where a frozen parameter has changed or could change.

    Before training no parameter of the frozen base may require a gradient; before and
    after it every one equals, bit for bit, what was loaded. An optimizer may know them:
    it leaves alone what gets no gradient, weight decay included. Slots that are frozen
    or switched off end as they began. Every module with deltas must still run them, and
    each chosen layer of a model that no file describes must get a gradient in the first
    iteration.
    """

    priority = 'VERY_HIGH'
    _watch: GradientWatch | None = None

    def before_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        for _, module, record in injections(model):
            check_hosts(module, record)
        self._watch = GradientWatch(model)
        params = dict(model.named_parameters())
        frozen = [n for n, o in owners(model).items() if o is Owner.BASE]
        trains = [name for name in frozen if params[name].requires_grad]
        if trains:
            raise PETLError(
                f'{trains[0]} (and {len(trains) - 1} more) belongs to the frozen base '
                'but would train: something set requires_grad after the injection (a '
                'hook or the model itself); take that out, or choose a method that '
                'selects it'
            )
        self._check(model, 'before training; a checkpoint or an initialiser wrote it')
        self.note_resting(model)

    def note_resting(self, model: nn.Module) -> None:
        """Remember what slots that are frozen or switched off hold in this process.

        Args:
            model: The model, without wrappers.
        """
        params = dict(model.named_parameters())
        self._resting = tensor_digests(
            {
                name: params[name]
                for name, owner in owners(model).items()
                if owner in (Owner.DELTA, Owner.SELECTED)
                and not params[name].requires_grad
            }
        )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.check()

    def after_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        self._check(model, 'during training')
        now = tensor_digests({n: model.get_parameter(n) for n in self._resting})
        moved = [name for name, digest in now.items() if digest != self._resting[name]]
        if moved:
            raise PETLError(
                f'{len(moved)} parameters of slots that are frozen or switched off '
                f'changed during training: {", ".join(moved[:3])}'
            )

    def _check(self, model: nn.Module, when: str) -> None:
        changed = base_changes(model)
        if changed:
            raise PETLError(
                f'{len(changed)} frozen parameters changed {when}: '
                f'{", ".join(changed[:3])}'
            )
