"""Activations of a run that wait for the backward pass in the memory of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import is_grad_enabled, nn

from mmpetl.core import PETLError
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.offload import BESIDE_COMPILE, Offloading
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class OffloadHook(Hook):
    """Offloads what the model's training passes keep; see :class:`Offloading`.

    On a CPU it says that there is nothing to do, and does nothing.
    """

    def __init__(self) -> None:
        self._end: Callable[[], None] | None = None

    def before_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        if {'forward', 'train_step'} & {*vars(model), *vars(runner.model)}:
            raise PETLError(BESIDE_COMPILE)
        if all(param.device.type == 'cpu' for param in model.parameters()):
            runner.logger.warning(
                'offload_activations does nothing on a CPU: activations lie in the '
                'memory of the machine as it is'
            )
            return
        self.after_train(runner)  # of a training that was interrupted
        _, self._end = offload_passes(model)
        runner.logger.info(
            'activations of a MiB and more wait for the backward pass in the memory of '
            'the machine'
        )

    def after_train(self, runner: Runner) -> None:
        if self._end is not None:
            self._end()
            self._end = None


def offload_passes(model: nn.Module) -> tuple[Offloading, Callable[[], None]]:
    """Offload what every pass of a model keeps for a backward pass from now on.

    Returns:
        What offloads, and a function that ends it.
    """
    offloading = Offloading(model)

    def begin(module: nn.Module, args: Any) -> None:
        if is_grad_enabled():
            offloading.start()

    def end(module: nn.Module, args: Any, out: Any) -> None:
        offloading.stop()

    handles = (
        model.register_forward_pre_hook(begin),
        model.register_forward_hook(end, always_call=True),
    )

    def leave() -> None:
        offloading.stop()
        for handle in handles:
            handle.remove()

    return offloading, leave
