"""The data pass that some methods need before training."""

from __future__ import annotations

import torch
from mmengine.dist import broadcast, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpetl.core import find_injected
from mmpetl.engine.hooks.common import plain_model
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Runs ``Method.calibrate`` once before training, on rank 0, and broadcasts.

    A resumed run skips it: the buffers it fills are in the checkpoint.
    """

    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        model = plain_model(runner)
        for _, module in find_injected(model):
            slots = module.__dict__['_petl'].slots.values()
            methods = [s.method for s in slots if s.method.calibrates]
            for method in methods:
                if is_main_process():
                    runner.logger.info(f'calibrating {method!r}')
                    method.calibrate(model, runner.train_loop.dataloader)
                if is_distributed():
                    with torch.no_grad():
                        for tensor in module.state_dict().values():
                            broadcast(tensor)
