"""Activations of a run that wait for the backward pass in the memory of the machine."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import is_grad_enabled, nn

from mmpetl.core import PETLError
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.offload import Offloading
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class OffloadHook(Hook):
    """Offloads what the model's training passes keep; see :class:`Offloading`.

    On a CPU it says that there is nothing to do, and does nothing.
    """

    def before_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        if {'forward', 'train_step'} & set(vars(model)):
            raise PETLError(
                'offload_activations is not supported beside compile, which decides by '
                'itself what a pass keeps; leave one out'
            )
        if all(param.device.type == 'cpu' for param in model.parameters()):
            runner.logger.warning(
                'offload_activations does nothing on a CPU: activations lie in the '
                'memory of the machine as it is'
            )
            return
        offload_passes(model)
        runner.logger.info(
            'activations wait for the backward pass in the memory of the machine'
        )


def offload_passes(model: nn.Module) -> Offloading:
    """Offload what every pass of a model keeps for a backward pass from now on."""
    offloading = Offloading(model)

    def begin(module: nn.Module, args: Any) -> None:
        offloading.stop()  # that of a pass which was interrupted
        if is_grad_enabled():
            offloading.start()

    def end(module: nn.Module, args: Any, out: Any) -> None:
        offloading.stop()

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end, always_call=True)
    return offloading
