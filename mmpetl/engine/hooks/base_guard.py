"""Proof that the frozen base has not moved."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpetl.core import Owner, PETLError, base_changes, owners
from mmpetl.engine.hooks.common import plain_model
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class BaseGuardHook(Hook):
    """Stops the run where a frozen parameter has changed or could change.

    Before training nothing of the frozen base may require a gradient or be known to
    the optimizer; before and after it every frozen parameter equals, bit for bit,
    what was loaded.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        by_owner = owners(model)
        params = dict(model.named_parameters())
        frozen = {id(params[n]): n for n, o in by_owner.items() if o is Owner.BASE}
        handed = [
            frozen[id(p)]
            for group in runner.optim_wrapper.param_groups
            for p in group['params']
            if id(p) in frozen
        ]
        handed += [n for i, n in frozen.items() if params[n].requires_grad]
        if handed:
            raise PETLError(
                f'{handed[0]} (and {len(handed) - 1} more) belongs to the frozen base '
                'but would train; something set requires_grad after the injection'
            )
        self._check(model, 'before training; a checkpoint or an initialiser wrote it')

    def after_train(self, runner: Runner) -> None:
        self._check(plain_model(runner), 'during training')

    def _check(self, model, when: str) -> None:
        changed = base_changes(model)
        if changed:
            raise PETLError(
                f'{len(changed)} frozen parameters changed {when}: '
                f'{", ".join(changed[:3])}'
            )
