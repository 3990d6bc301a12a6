"""Stop at a loss that is not finite, before it reaches the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Raises on a NaN or infinite loss and names the batch.

    The check stands between the forward pass and the optimizer step, so weights and
    checkpoints stay as they were.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        if getattr(wrapper.update_params, '_guarded', False):
            return
        update = wrapper.update_params

        def guarded(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            if not torch.isfinite(loss).all():
                raise PETLError(self._message(runner, float(loss)))
            update(loss, *args, **kwargs)

        guarded._guarded = True
        wrapper.update_params = guarded

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self._batch = data_batch

    def _message(self, runner: Runner, loss: float) -> str:
        files = list(dict.fromkeys(_files(self._batch)))
        shown = ', '.join(files[:4]) + (
            f' and {len(files) - 4} more' if len(files) > 4 else ''
        )
        return (
            f'the loss is {loss} at iteration {runner.iter + 1}; the batch holds '
            f'{shown or "no named files"}. Lower the learning rate, or look at these '
            'samples. Weights and checkpoints are as before this batch'
        )


def _files(item: Any) -> Iterator[str]:
    """File names of the samples in a collated batch."""
    if isinstance(item, dict):
        for value in item.values():
            yield from _files(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _files(value)
    elif hasattr(item, 'metainfo'):
        for key in ('img_path', 'filename', 'frame_dir', 'video_path'):
            if isinstance(item.metainfo.get(key), str):
                yield item.metainfo[key]
